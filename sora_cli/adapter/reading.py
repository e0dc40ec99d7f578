"""An adapter directory, open for reading: its header at once, its tensors one module at a time.

Ours and any tool's PEFT LoRA, rsLoRA or AdaLoRA; see `peft/layout` for keys and `peft/config` for
what is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from methods.factors import LowRankFactors
from sora_cli.adapter.metadata import AdapterMeta, BaseReference, read_json, read_sora_file
from sora_cli.adapter.moved import located
from sora_cli.adapter.peft import adalora
from sora_cli.adapter.peft.config import LARGEST_RANK, PeftConfig, parse_config
from sora_cli.adapter.peft.layout import Pair, SplitKeys, check_name, check_tensor, split_keys
from sora_cli.adapter.peft.targets import check_targets
from sora_cli.adapter.places import locate_adapter
from sora_cli.core.errors import SoraError
from sora_cli.model.files import ADAPTER_CONFIG, ADAPTER_PICKLE, ADAPTER_WEIGHTS, SORA_FILE
from sora_cli.model.fingerprint import StoredTensor
from sora_cli.model.references import hub_name
from sora_cli.model.tensors import TensorFile, dtype_name, open_tensors

T = TypeVar("T")

_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_LARGEST_SIDE = 2**24  # inputs or outputs of a layer; the largest vocabularies are below 2**20


@dataclass(frozen=True)
class AdapterFile:
    """An open adapter directory: its facts at once, its tensors on demand.

    Attributes:
        directory: the adapter directory itself.
        paths: the adapted modules, in the model's order as far as it is known. Modules without a
            component left are not among them; if there is no other, the first is, as a zero pair.
        shapes: module path -> (out, in).
        ranks: module path -> components stored, zero ones among them.
        dtype: of the stored factors, such as "bfloat16"; "float32" where they are mixed.
        head_names: parameters of the base model that are stored in full.
        head_shapes: their shapes.
        head_modules: paths of the modules they belong to.
        notes: what is odd, but harmless.
    """

    directory: Path
    config: PeftConfig
    meta: AdapterMeta
    base: BaseReference
    paths: list[str]
    shapes: dict[str, tuple[int, int]]
    ranks: dict[str, int]
    dtype: str
    head_names: list[str]
    head_shapes: dict[str, tuple[int, ...]]
    head_modules: tuple[str, ...]
    notes: tuple[str, ...]
    _tensors: TensorFile
    _keys: SplitKeys

    @property
    def kind(self) -> str:
        """PEFT's name for its kind: "LoRA", "rsLoRA" or "AdaLoRA"."""
        if self.config.is_adalora:
            return "AdaLoRA"
        return "rsLoRA" if self.config.use_rslora else "LoRA"

    @property
    def parameters(self) -> int:
        """Numbers in A and B of all modules; the head not counted."""
        return sum(self.ranks[path] * sum(self.shapes[path]) for path in self.paths)

    @property
    def head_parameters(self) -> int:
        """Numbers stored in full."""
        return sum(torch.Size(shape).numel() for shape in self.head_shapes.values())

    @property
    def layers(self) -> Mapping[str, LowRankFactors]:
        """Module path -> factors; each access reads them."""
        return OnDemand(self.paths, self.factors)

    @property
    def head(self) -> Mapping[str, Tensor]:
        """Parameter name -> tensor stored in full; each access reads it."""
        return OnDemand(self.head_names, self.head_tensor)

    def factors(self, path: str) -> LowRankFactors:
        """Read one module's factors: float32, with E and all scaling in B.

        Raises:
            SoraError: NaN or infinity, or the file got shorter meanwhile.
        """
        pair, where = self._keys.pairs[path], str(self._tensors.file)
        n_out, n_in = self.shapes[path]
        if not self._tensors.shape(pair.a)[0]:
            rank = self.ranks[path]
            return LowRankFactors(torch.zeros(rank, n_in), torch.zeros(n_out, rank))
        a, b = self._tensors.read(pair.a).float(), self._tensors.read(pair.b).float()
        if pair.e is not None:
            b = adalora.fold(b, self._tensors.read(pair.e))
        scaled = b * self._scaling(path, pair)
        check_tensor(pair.a, a, where)
        check_tensor(f"{pair.b}, scaled,", scaled, where)
        return LowRankFactors(a, scaled)

    def raw(self, path: str) -> tuple[Tensor, Tensor, float]:
        """Read one module's A (r, in) and B (out, r) in float32, and the scaling of their product.

        Unlike in `factors` the scaling is not in B, and E is in A: where PEFT has them, too.

        Raises:
            SoraError: see `factors`.
        """
        pair, rank = self._keys.pairs[path], self.ranks[path]
        n_out, n_in = self.shapes[path]
        if not self._tensors.shape(pair.a)[0]:
            return torch.zeros(rank, n_in), torch.zeros(n_out, rank), 1.0
        a, b = self._finite(pair.a).float(), self._finite(pair.b).float()
        if pair.e is not None:
            a = a * self._finite(pair.e).float()  # (r, in), (r, 1)
        return a, b, self._scaling(path, pair)

    def head_entry(self, name: str) -> StoredTensor:
        """Return where one parameter that is stored in full lies in the file, and its dtype."""
        return self._tensors.entry(self._keys.head[name])

    def head_tensor(self, name: str) -> Tensor:
        """Read one parameter that is stored in full, as it is stored.

        Raises:
            SoraError: NaN or infinity, or the file got shorter meanwhile.
        """
        return self._finite(self._keys.head[name])

    def _finite(self, key: str) -> Tensor:
        tensor = self._tensors.read(key)
        check_tensor(key, tensor, str(self._tensors.file))
        return tensor

    def _scaling(self, path: str, pair: Pair) -> float:
        if pair.ranknum is None:
            return self.config.scaling(path)
        number = float(self._finite(pair.ranknum).reshape(()))
        if number <= 0:
            raise SoraError(f"'{pair.ranknum}' must be above 0, not {number:g}",
                            where=str(self._tensors.file))  # fmt: skip
        return adalora.scaling(self.config.lora_alpha, number)


class OnDemand(Mapping[str, T]):
    """A mapping whose values are made at each access."""

    def __init__(self, names: Sequence[str], make: Callable[[str], T]) -> None:
        self._names = dict.fromkeys(names)
        self._make = make

    def __getitem__(self, name: str) -> T:
        if name not in self._names:
            raise KeyError(name)
        return self._make(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


@contextmanager
def open_adapter(directory: Path) -> Iterator[AdapterFile]:
    """Open our adapter or any PEFT LoRA, rsLoRA or AdaLoRA, and check all but the numbers.

    Args:
        directory: the adapter directory, or a run directory that holds one.

    Raises:
        SoraError: no adapter, one of another kind, or a damaged one.
    """
    directory = locate_adapter(directory)
    config = parse_config(read_json(directory / ADAPTER_CONFIG), str(directory / ADAPTER_CONFIG))
    meta, base = read_sora_file(directory / SORA_FILE)
    for path in (*meta.ranks, *meta.ranks_start):
        check_name(path, str(directory / SORA_FILE))
    with open_tensors(_weights(directory)) as tensors:
        yield _describe(directory, config, meta, located(base or _base(config)), tensors)


def _base(config: PeftConfig) -> BaseReference:
    name = config.base_model_name_or_path or ""
    hub_id = (hub_name(name) or (None,))[0]
    return BaseReference(path=name, resolved=name, revision=config.revision, hub_id=hub_id)


def _weights(directory: Path) -> Path:
    file = directory / ADAPTER_WEIGHTS
    if file.is_file():
        return file
    if (directory / ADAPTER_PICKLE).is_file():
        raise SoraError(
            f"{directory / ADAPTER_PICKLE} is a pickle, which can run any code when it is read",
            hint="if you trust it, load it with PEFT and save_pretrained() it again",
        )
    raise SoraError(f"{directory} holds no {ADAPTER_WEIGHTS}")


def _describe(
    directory: Path,
    config: PeftConfig,
    meta: AdapterMeta,
    base: BaseReference,
    tensors: TensorFile,
) -> AdapterFile:
    keys = split_keys(tensors.keys, config, str(tensors.file))
    order = list(dict.fromkeys([*(p for p in meta.ranks if p in keys.pairs), *keys.pairs]))
    check_targets(config, order, str(directory / ADAPTER_CONFIG))
    notes = config.prepare(order, str(directory / ADAPTER_CONFIG))
    shapes = {path: _shape(path, keys.pairs[path], config, tensors) for path in order}
    ranks = {path: config.rank(path) for path in order}
    live = [path for path in order if ranks[path]]
    if config.is_adalora and not meta.ranks:
        start = dict.fromkeys(order, config.r)
        meta = meta.model_copy(update={"ranks": dict(ranks), "ranks_start": start})
    paths = live or order[:1]
    dtypes = {tensors.dtype(key) for p in live for key in (keys.pairs[p].a, keys.pairs[p].b)}
    modules = (config.head_module(name) for name in keys.head)
    head_modules = tuple(dict.fromkeys(module for module in modules if module))
    return AdapterFile(
        directory=directory,
        config=config,
        meta=meta,
        base=base,
        paths=paths,
        shapes={path: shapes[path] for path in paths},
        ranks={path: max(ranks[path], 1) for path in paths},
        dtype=dtype_name(dtypes.pop()) if len(dtypes) == 1 else "float32",
        head_names=list(keys.head),
        head_shapes={name: tensors.shape(key) for name, key in keys.head.items()},
        head_modules=head_modules,
        notes=(*notes, *config.head_notes(head_modules), *_copy_notes(keys)),
        _tensors=tensors,
        _keys=keys,
    )


def _shape(path: str, pair: Pair, config: PeftConfig, tensors: TensorFile) -> tuple[int, int]:
    """Check that a module's tensors fit together, and return (out, in)."""
    where, rank = str(tensors.file), config.rank(path)
    a, b = tensors.shape(pair.a), tensors.shape(pair.b)
    lowest = 0 if config.is_adalora else 1
    if len(a) != 2 or len(b) != 2 or not a[0] == b[1] == rank or rank < lowest:
        raise SoraError(f"'{path}': A {a} and B {b} are not a pair of rank {rank}", where=where)
    if pair.e is not None and tensors.shape(pair.e) != (rank, 1):
        raise SoraError(f"'{path}': E {tensors.shape(pair.e)} is not of rank {rank}", where=where)
    if pair.ranknum is not None and torch.Size(tensors.shape(pair.ranknum)).numel() != 1:
        raise SoraError(f"'{pair.ranknum}' is not a single number", where=where)
    if not (0 < a[1] <= _LARGEST_SIDE and 0 < b[0] <= _LARGEST_SIDE and rank <= LARGEST_RANK):
        raise SoraError(
            f"'{path}': a layer with {a[1]} inputs and {b[0]} outputs is not possible", where=where
        )
    for key in filter(None, (pair.a, pair.b, pair.e)):
        if tensors.dtype(key) not in _FLOATS:
            dtype = dtype_name(tensors.dtype(key))
            raise SoraError(f"'{key}' is stored as {dtype}; only floating-point factors of 16 bits "
                            "or more can be read", where=where)  # fmt: skip
    return b[0], a[1]


def _copy_notes(keys: SplitKeys) -> Iterator[str]:
    for path in keys.copies:
        yield (
            f"'{path}': the file also holds the base model's own weight, as PEFT does for targets "
            "among the embeddings; it is taken to be unchanged and left out"
        )
