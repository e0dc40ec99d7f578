"""An adapter prepared for a merge: names and shapes now, its tensors only when they are merged."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import Any, cast

import torch
from torch import Tensor

from methods.updates import Product, Stacked, Update
from sora_cli.adapter.adapter import Adapter
from sora_cli.adapter.metadata import AdapterMeta
from sora_cli.adapter.parts.part import Content, Part
from sora_cli.adapter.row_recipe import recorded_row_recipe
from sora_cli.core.errors import SoraError
from sora_cli.model.tensors import torch_dtype

_CHUNK = 2**22  # bytes


@dataclass(frozen=True)
class Incoming:
    """An adapter in memory or open on its file, read part by part.

    Attributes:
        meta: of the merged model.
    """

    adapter: Adapter
    meta: AdapterMeta

    @cached_property
    def changes(self) -> Mapping[str, Callable[[], Update]]:
        """Name of a change -> function that reads it; parts of one tensor also as one change."""
        changes: dict[str, Callable[[], Update]] = {}
        for part in self.adapter.parts:
            changes |= part.changes()
        for name, parts in self._groups().items():
            if parts[0].parameter is not None:
                changes[name] = partial(_stacked, [*parts])
        return changes

    def content(self, name: str) -> Content:
        """Return a parameter that is stored in full."""
        return self.adapter.full[name].content

    @property
    def modules(self) -> int:
        """Number of changed layers; all parts of one tensor are one."""
        return sum(bool(parts[0].peft_types) for parts in self._groups().values())

    @property
    def numbers(self) -> int:
        """Numbers in memory for the largest change."""
        groups = ([p for p in parts if p.peft_types] for parts in self._groups().values())
        return max((sum(part.parameters for part in parts) for parts in groups), default=0)

    def _groups(self) -> dict[str, list[Part]]:
        groups: dict[str, list[Part]] = {}
        for part in self.adapter.parts:
            groups.setdefault(part.parameter or part.path, []).append(part)
        return groups

    def digest(self) -> str:
        """Return the SHA-256 of all tensors to merge: live components in float32, and the head.

        Names, dtypes, shapes and bytes of the tensors enter the digest; metadata does not.
        """
        digest = hashlib.sha256()

        @lru_cache(maxsize=1)  # in sorted order the names of a part follow each other
        def read(number: int) -> Mapping[str, tuple[Content, ...]]:
            return self.adapter.parts[number].digested()

        names = [
            (not part.digested_first, name, number)
            for number, part in enumerate(self.adapter.parts)
            for name in part.digest_names
        ]
        for _, name, number in sorted(names):
            for content in read(number).get(name, ()):
                dtype, shape = _kind(content)
                digest.update(f"{name} {dtype} {shape}\n".encode())
                for chunk in _chunks(content):
                    digest.update(chunk)
        return digest.hexdigest()


def incoming(adapter: Adapter) -> Incoming:
    """Prepare an adapter, in memory or open on its file, for a merge.

    The merged model's metadata are the adapter's, without quantisation of the base.
    """
    meta, opened = adapter.meta, adapter.opened
    known = meta.row_recipe if opened is None else recorded_row_recipe(opened.directory, meta)
    recipe = copy.deepcopy(known or {})
    for key in ("quantise", "new_tokens"):  # the merged model is whole, and its tokenizer knows
        recipe.get("model", {}).pop(key, None)
    for part in adapter.full.values():
        part.check_readable()
    return Incoming(adapter, meta.model_copy(update={"row_recipe": recipe, "quantise": None}))


def _stacked(parts: list[Part]) -> Stacked:
    updates = [part.changes()[part.path]() for part in parts]
    return Stacked(tuple(cast("list[Product]", updates)))


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
