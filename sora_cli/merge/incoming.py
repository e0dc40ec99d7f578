"""An adapter prepared for a merge: names and shapes now, factors only when a layer is merged."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from methods.factors import LowRankFactors
from methods.updates import Product, Rescaled, Stacked, Update
from sora_cli.adapter.directory import Adapter, lazy_adapter
from sora_cli.adapter.metadata import AdapterMeta
from sora_cli.adapter.reading import AdapterFile
from sora_cli.adapter.row_recipe import recorded_row_recipe
from sora_cli.adapter.stored import grouped
from sora_cli.core.errors import SoraError
from sora_cli.model.fingerprint import StoredTensor
from sora_cli.model.tensors import torch_dtype

Content = StoredTensor | Tensor
"""A tensor stored in full: its place in a file, or the tensor in memory."""

_CHUNK = 2**22  # bytes


@dataclass(frozen=True)
class Incoming:
    """An adapter in memory or in its file, read layer by layer.

    Attributes:
        outline: the adapter with its tensors on torch's meta device: shapes without numbers. Its
            metadata are those of the merged model.
        update: reads the update of a module, or of all experts in a parameter.
        head: returns a parameter stored in full.
        factors: reads a module's factors with the scaling in B; only if its update is a `Product`.
        numbers: numbers in memory for the largest update.
    """

    outline: Adapter
    update: Callable[[str], Update]
    head: Callable[[str], Content]
    factors: Callable[[str], LowRankFactors]
    numbers: int

    def digest(self) -> str:
        """Return the SHA-256 of all tensors to merge: live components in float32, and the head.

        Names, dtypes, shapes and bytes of the tensors enter the digest; metadata does not.
        """
        digest = hashlib.sha256()

        def add(name: str, tensor: Tensor, content: Content) -> None:
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            for chunk in _chunks(content):
                digest.update(chunk)

        halves = {f"{path}.{half}": (path, half) for path in self.outline.layers for half in "AB"}

        @lru_cache(maxsize=1)  # in sorted order A and B of a layer follow each other
        def live(path: str) -> tuple[Tensor, ...]:
            update = self.update(path)
            if not isinstance(update, Product):
                return update.tensors()
            factors = self.factors(path).drop_zeros()
            return (factors.A, factors.B) if factors.rank else ()

        for path in sorted(self.outline.token_rows):
            for tensor in self.update(path).tensors():
                add(f"{path}.tokens", tensor, tensor)
        for name in sorted({**self.outline.head, **halves}):
            if name not in halves:
                add(name, self.outline.head[name], self.head(name))
                continue
            path, half = halves[name]
            tensors = live(path)
            for tensor in tensors[:1] if half == "A" else tensors[1:]:
                add(name, tensor, tensor)
        return digest.hexdigest()


def incoming(adapter: Adapter | AdapterFile) -> Incoming:
    """Prepare an adapter, in memory or open in its file, for a merge."""
    if isinstance(adapter, AdapterFile):
        return _from_file(adapter)
    return _from_memory(adapter)


def _from_memory(adapter: Adapter) -> Incoming:
    def factors(path: str) -> LowRankFactors:
        f = adapter.layers[path]
        return LowRankFactors(_float32_on_cpu(f.A), _float32_on_cpu(f.B))

    def update(path: str) -> Update:
        if path in adapter.token_rows:
            return adapter.token_rows[path]
        f, magnitude = factors(path), adapter.magnitudes.get(path)
        product = Product(f.A, f.B)
        return product if magnitude is None else Rescaled(product, _float32_on_cpu(magnitude))

    layers = {p: _outline(f.B.shape[0], f.rank, f.A.shape[1]) for p, f in adapter.layers.items()}
    heads = {name: torch.empty_like(t, device="meta") for name, t in adapter.head.items()}
    meta = _merged_meta(adapter.meta, None)
    outline = dataclasses.replace(adapter, layers=layers, head=heads, meta=meta)

    def head(name: str) -> Tensor:
        return adapter.head[name].detach().cpu()

    return Incoming(outline, _with_stacks(update, outline), head, factors, _largest(outline))


def _from_file(file: AdapterFile) -> Incoming:
    layers = {}
    for path in file.paths:
        n_out, n_in = file.shapes[path]
        layers[path] = _outline(n_out, file.ranks[path], n_in)
    head = {}
    for name in file.head_names:
        entry = file.head_entry(name)
        dtype = torch_dtype(entry.dtype)
        if dtype is None or dtype.itemsize * torch.Size(entry.shape).numel() != entry.length:
            raise SoraError(f"'{name}' is stored as {entry.dtype}, which cannot be read",
                            where=str(entry.file))  # fmt: skip
        head[name] = torch.empty(entry.shape, dtype=dtype, device="meta")
    meta = _merged_meta(file.meta, file.directory)
    outline = dataclasses.replace(lazy_adapter(file), layers=layers, head=head, meta=meta)

    def update(path: str) -> Update:
        return file.token_rows[path] if path in file.tokens else file.update(path)

    read, largest = _with_stacks(update, outline), max(file.largest, _largest(outline))
    return Incoming(outline, read, file.head_entry, file.factors, largest)


def _with_stacks(update: Callable[[str], Update], outline: Adapter) -> Callable[[str], Update]:
    """Return a reader that also takes the name of a parameter, for all of its experts."""
    stacks = grouped(outline.experts, outline.forms)

    def read(path: str) -> Update:
        if path not in stacks:
            return update(path)
        return Stacked(cast("tuple[Product, ...]", tuple(map(update, stacks[path]))))

    return read


def _largest(outline: Adapter) -> int:
    """Return the numbers in the factors of the largest module; all experts in a tensor are one."""
    sizes = {path: factors.parameters for path, factors in outline.layers.items()}
    groups = grouped(outline.layers, outline.forms).values()
    return max(sum(sizes[path] for path in paths) for paths in groups)


def _merged_meta(meta: AdapterMeta, place: Path | None) -> AdapterMeta:
    """Return the merged model's metadata: the adapter's, without quantisation of the base."""
    known = meta.row_recipe if place is None else recorded_row_recipe(place, meta)
    recipe = copy.deepcopy(known or {})
    for key in ("quantise", "new_tokens"):  # the merged model is whole, and its tokenizer knows
        recipe.get("model", {}).pop(key, None)
    return meta.model_copy(update={"row_recipe": recipe, "quantise": None})


def _outline(n_out: int, rank: int, n_in: int) -> LowRankFactors:
    shapes = ((rank, n_in), (n_out, rank))
    return LowRankFactors(*(torch.empty(shape, device="meta") for shape in shapes))


def _float32_on_cpu(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32)


def _chunks(content: Content) -> Iterator[Any]:
    """Yield the bytes of a tensor in pieces of `_CHUNK`."""
    if isinstance(content, Tensor):
        flat = content.contiguous().reshape(-1).view(torch.uint8).numpy().data
        for start in range(0, len(flat), _CHUNK):
            yield flat[start : start + _CHUNK]
        return
    with content.file.open("rb") as stream:
        stream.seek(content.start)
        left = content.length
        while left:
            chunk = stream.read(min(_CHUNK, left))
            if not chunk:
                raise SoraError(f"{content.file} is truncated or corrupt")
            yield chunk
            left -= len(chunk)


def same_content(first: Content, second: Content) -> bool:
    """Return True if two tensors have the same dtype, shape and bytes."""
    if _kind(first) != _kind(second):
        return False
    return all(a == b for a, b in zip(_chunks(first), _chunks(second), strict=True))


def _kind(content: Content) -> tuple[object, tuple[int, ...]]:
    if isinstance(content, Tensor):
        return content.dtype, tuple(content.shape)
    return torch_dtype(content.dtype) or content.dtype, content.shape
