"""An adapter directory, open for reading: its header at once, its tensors one module at a time.

It reads our adapters and any tool's PEFT LoRA, rsLoRA, DoRA, AdaLoRA, LoHa or LoKr; see
`peft/layout` for keys, `peft/config` for refused adapters, and `stored` for the tensors of a
module's update.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from methods.factors import LowRankFactors
from methods.updates import Replaced, Update
from sora_cli.adapter.base_weights import without_copies
from sora_cli.adapter.metadata import AdapterMeta, BaseReference, read_json, read_sora_file
from sora_cli.adapter.moved import located
from sora_cli.adapter.peft.config import PeftConfig, parse_config
from sora_cli.adapter.peft.layout import SplitKeys, check_name, check_tensor, split_keys
from sora_cli.adapter.peft.targets import check_targets
from sora_cli.adapter.places import locate_adapter
from sora_cli.adapter.stored import (
    LINEAR,
    Form,
    StoredModule,
    StoredPair,
    checked_tokens,
    experts_in,
    grouped,
    stored_modules,
)
from sora_cli.core.errors import SoraError
from sora_cli.model.files import ADAPTER_CONFIG, ADAPTER_PICKLE, ADAPTER_WEIGHTS, SORA_FILE
from sora_cli.model.fingerprint import StoredTensor
from sora_cli.model.references import hub_name
from sora_cli.model.tensors import TensorFile, dtype_name, open_tensors

T = TypeVar("T")


@dataclass(frozen=True)
class AdapterFile:
    """An open adapter directory: its facts at once, its tensors on demand.

    Attributes:
        directory: the adapter directory itself.
        paths: the adapted modules, in the model's order as far as it is known. Dead modules are
            left out; if all are dead, the first is listed, as a zero pair.
        shapes: module path -> (out, in); a convolution's `in` includes its kernel.
        ranks: module path -> stored components, also those that are zero; for LoHa and LoKr the
            number of rank-one terms that their products are sums of.
        forms: module path -> the kind of layer, for layers that are not linear.
        dtype: of the stored factors, such as "bfloat16"; "float32" if they are mixed.
        head_names: parameters of the base model that are stored in full.
        head_shapes: their shapes.
        head_modules: paths of the modules they belong to.
        biases: names in `head_names` of trained biases, whose modules are not stored in full.
        base_weights: names in `head_names` that replace the base model's own parameter, also for
            the parameters tied to it; see `base_weights`.
        tokens: path of an embedding -> (its rows that are trained in full, numbers in each row).
        notes: odd but harmless facts.
    """

    directory: Path
    config: PeftConfig
    meta: AdapterMeta
    base: BaseReference
    paths: list[str]
    shapes: dict[str, tuple[int, int]]
    ranks: dict[str, int]
    forms: dict[str, Form]
    dtype: str
    head_names: list[str]
    head_shapes: dict[str, tuple[int, ...]]
    head_modules: tuple[str, ...]
    biases: tuple[str, ...]
    base_weights: tuple[str, ...]
    tokens: dict[str, tuple[tuple[int, ...], int]]
    notes: tuple[str, ...]
    _tensors: TensorFile
    _keys: SplitKeys
    _modules: dict[str, StoredModule]

    @property
    def kind(self) -> str:
        """PEFT's name of the kind: "LoRA", "rsLoRA", "DoRA", "AdaLoRA", "LoHa" or "LoKr"."""
        return self.config.kind

    @property
    def groups(self) -> dict[str, list[str]]:
        """The modules, with all experts in a parameter as one: name -> its paths in `paths`."""
        return grouped(self.paths, self.forms)

    @property
    def experts(self) -> tuple[str, ...]:
        """The paths in `paths` that are experts in a parameter."""
        return experts_in(self.forms)

    def components(self) -> dict[str, int]:
        """Return the stored components of each of `groups`."""
        return {name: sum(self.ranks[p] for p in paths) for name, paths in self.groups.items()}

    @property
    def file_bytes(self) -> int:
        """Size of the file with the tensors."""
        return self._tensors.file.stat().st_size

    @property
    def parameters(self) -> int:
        """Numbers in the factors of all modules, without the head."""
        return sum(self._parameters(path) for path in self.paths)

    @property
    def largest(self) -> int:
        """Numbers in the factors of the largest module."""
        return max(self._parameters(path) for path in self.paths)

    def _parameters(self, path: str) -> int:
        stored = self._modules[path]
        if not isinstance(stored, StoredPair):
            return stored.parameters
        return self.ranks[path] * sum(self.shapes[path])

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

    @property
    def magnitudes(self) -> Mapping[str, Tensor]:
        """Module path -> magnitudes (out,), for modules with DoRA's; each access reads them.

        Such a module's weight is rescaled to them: its factors are not all of its update.
        """
        stored = [p for p in self.paths if _magnitude_key(self._modules[p])]
        return OnDemand(stored, self._magnitude)

    def factors(self, path: str) -> LowRankFactors:
        """Read one module's factors: float32, with E and all scaling in B; see `magnitudes`."""
        return self._modules[path].factors()

    def update(self, path: str) -> Update:
        """Read one module's update, with the same products that PEFT computes."""
        return self._modules[path].update()

    @property
    def token_rows(self) -> Mapping[str, Replaced]:
        """Path of an embedding -> its trained rows; each access reads them."""
        return OnDemand(list(self.tokens), self._token_rows)

    def _token_rows(self, path: str) -> Replaced:
        values = self._finite(self._keys.tokens[path]).float()
        return Replaced(torch.tensor(self.tokens[path][0]), values)

    def _magnitude(self, path: str) -> Tensor:
        stored = self._modules[path]
        assert isinstance(stored, StoredPair)
        magnitude = stored.magnitude()
        assert magnitude is not None
        return magnitude

    def head_entry(self, name: str) -> StoredTensor:
        """Return the place and dtype in the file of one parameter that is stored in full."""
        return self._tensors.entry(self._keys.head[name])

    def head_tensor(self, name: str) -> Tensor:
        """Read one parameter that is stored in full, in its stored dtype."""
        return self._finite(self._keys.head[name])

    def _finite(self, key: str) -> Tensor:
        tensor = self._tensors.read(key)
        check_tensor(key, tensor, str(self._tensors.file))
        return tensor


class OnDemand(Mapping[str, T]):
    """A mapping that makes its values anew at each access."""

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
def open_adapter(
    directory: Path, *, base: str | None = None, as_stored: bool = False
) -> Iterator[AdapterFile]:
    """Open our adapter or one of PEFT's, and check everything except the numbers.

    Args:
        directory: the adapter directory, or a run directory that holds one.
        base: reference of the base model, if it is not the model that the adapter names.
        as_stored: keep stored base weights even if they equal the base model's own.
    """
    directory = locate_adapter(directory)
    config = parse_config(read_json(directory / ADAPTER_CONFIG), str(directory / ADAPTER_CONFIG))
    meta, named = read_sora_file(directory / SORA_FILE)
    for path in (*meta.ranks, *meta.ranks_start):
        check_name(path, str(directory / SORA_FILE))
    with open_tensors(_weights(directory)) as tensors:
        reference = located(named or _base(config))
        keys = split_keys(tensors.keys, config, str(tensors.file))
        notes: tuple[str, ...] = ()
        if not as_stored:
            keys, notes = without_copies(keys, tensors, reference, base)
        file = _describe(directory, config, meta, reference, tensors, keys)
        yield replace(file, notes=(*file.notes, *notes))


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
    keys: SplitKeys,
) -> AdapterFile:
    """Check an adapter's configuration against its tensors, without reading numbers."""
    stored_paths = dict.fromkeys([*keys.pairs, *keys.products])
    targets = list(dict.fromkeys([*(p for p in meta.ranks if p in stored_paths), *stored_paths]))
    where = str(directory / ADAPTER_CONFIG)
    check_targets(config, [path for path in targets if path not in keys.parameters], where)
    notes = config.prepare(targets, where)
    modules = stored_modules(keys, config, tensors)
    order = list(dict.fromkeys([*(p for p in meta.ranks if p in modules), *modules]))
    ranks = {path: modules[path].rank for path in order}
    live = [path for path in order if ranks[path]]
    if config.is_adalora and not meta.ranks:
        start = dict.fromkeys(order, config.r)
        meta = meta.model_copy(update={"ranks": dict(ranks), "ranks_start": start})
    paths = live or order[:1]
    # the first two are the factors: E and magnitudes may be stored in another dtype
    dtypes = {tensors.dtype(key) for p in live for key in modules[p].keys[:2]}
    heads = (config.head_module(name) for name in keys.head)
    head_modules = tuple(dict.fromkeys(module for module in heads if module))
    return AdapterFile(
        directory=directory,
        config=config,
        meta=meta,
        base=base,
        paths=paths,
        shapes={path: modules[path].shape for path in paths},
        ranks={path: max(ranks[path], 1) for path in paths},  # a dead module is read as a zero pair
        forms={path: modules[path].form for path in paths if modules[path].form != LINEAR},
        dtype=dtype_name(dtypes.pop()) if len(dtypes) == 1 else "float32",
        head_names=list(keys.head),
        head_shapes={name: tensors.shape(key) for name, key in keys.head.items()},
        head_modules=head_modules,
        biases=keys.biases,
        base_weights=keys.base_weights,
        tokens=checked_tokens(keys, config, tensors),
        notes=(*notes, *config.head_notes(head_modules)),
        _tensors=tensors,
        _keys=keys,
        _modules=modules,
    )


def _magnitude_key(stored: StoredModule) -> str | None:
    return stored.pair.magnitude if isinstance(stored, StoredPair) else None
