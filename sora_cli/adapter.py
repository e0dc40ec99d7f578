"""The adapter directory: a plain PEFT LoRA adapter, plus `sora.json` with what PEFT has no key for.

Read ours or any tool's PEFT LoRA, write ours. Either way an adapter in memory is plain factors with
all scaling in B; see `peft_layout` for keys and configuration.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from methods.factors import LowRankFactors
from sora_cli.atomic import new_directory
from sora_cli.errors import SoraError
from sora_cli.peft_layout import (
    CONFIG_FILE,
    PICKLE_FILE,
    PREFIX,
    WEIGHTS_FILE,
    PeftConfig,
    check_tensor,
    exact_config,
    pair_keys,
    parse_config,
    split_keys,
)
from sora_cli.sora_file import (
    SORA_FILE,
    AdapterMeta,
    BaseReference,
    read_json,
    read_sora_file,
    write_json,
    write_sora_file,
)

__all__ = [
    "Adapter",
    "AdapterMeta",
    "BaseReference",
    "locate_adapter",
    "read_adapter",
    "write_adapter",
]


@dataclass(frozen=True)
class Adapter:
    """An adapter in memory.

    Attributes:
        layers: module path in the base model -> float32 factors, all scaling folded into B.
        head: parameter name in the base model -> tensor, for what is stored in full.
        head_modules: paths of the modules that `head` covers; each needs all its tensors there.
        task_type: PEFT's, such as "SEQ_CLS" or "CAUSAL_LM". For "SEQ_CLS" PEFT expects a
            `classifier` or `score` to be stored, also where it was not trained.
        fan_in_fan_out: some target is a Conv1D.
    """

    layers: dict[str, LowRankFactors]
    head: dict[str, Tensor]
    head_modules: tuple[str, ...]
    task_type: str | None
    base: BaseReference
    fan_in_fan_out: bool = False
    meta: AdapterMeta = dataclasses.field(default_factory=AdapterMeta)

    @property
    def parameters(self) -> int:
        """Numbers in the factors; the head not counted."""
        return sum(factors.parameters for factors in self.layers.values())

    @property
    def head_parameters(self) -> int:
        """Numbers stored in full."""
        return sum(tensor.numel() for tensor in self.head.values())

    def ranks(self) -> dict[str, int]:
        """Components alive per module, 0 for dead ones (also for those that are not stored)."""
        live = {path: factors.drop_zeros().rank for path, factors in self.layers.items()}
        known = [*self.meta.ranks, *(path for path in live if path not in self.meta.ranks)]
        return {path: live.get(path, 0) for path in known}

    def ranks_start(self) -> dict[str, int]:
        """Components training started with, as far as known: else those stored."""
        stored = {path: factors.rank for path, factors in self.layers.items()}
        return {path: self.meta.ranks_start.get(path, stored.get(path, 0)) for path in self.ranks()}


def locate_adapter(directory: Path) -> Path:
    """The adapter directory itself, or the one inside a run directory.

    Raises:
        SoraError: neither is there.
    """
    for candidate in (directory, directory / "adapter"):
        if (candidate / CONFIG_FILE).is_file():
            return candidate
    if not directory.is_dir():
        raise SoraError(f"there is no directory {directory}")
    raise SoraError(f"{directory} is no adapter directory: it holds no {CONFIG_FILE}")


def read_adapter(directory: Path) -> Adapter:
    """Read our adapter or any PEFT LoRA: rsLoRA, rank and alpha patterns, heads stored in full.

    Args:
        directory: the adapter directory, or a run directory that holds one.

    Raises:
        SoraError: no adapter, one of another kind, or a damaged one.
    """
    directory = locate_adapter(directory)
    config = parse_config(read_json(directory / CONFIG_FILE), str(directory / CONFIG_FILE))
    layers, head = _read_tensors(directory, config)
    meta, base = read_sora_file(directory / SORA_FILE)
    if base is None:
        name = config.base_model_name_or_path or ""
        base = BaseReference(path=name, resolved=name, revision=config.revision)
    modules = (config.head_module(name) for name in head)
    return Adapter(
        layers=_in_order(layers, meta.ranks),
        head=head,
        head_modules=tuple(dict.fromkeys(module for module in modules if module)),
        task_type=config.task_type,
        base=base,
        fan_in_fan_out=config.fan_in_fan_out,
        meta=meta,
    )


def write_adapter(directory: Path, adapter: Adapter, *, force: bool = False) -> None:
    """Write the exact layout, atomically: complete and read back, or not at all.

    Terms that are exactly zero are left out, and so are modules left with none. If that is all of
    them, one module stays as a zero pair of rank 1, so that every tool can load the directory.

    Args:
        force: replace an adapter directory that is there.

    Raises:
        SoraError: the directory exists, or the adapter can not be written or read back.
    """
    layers = _storable(adapter.layers)
    head = {name: tensor.detach().cpu().contiguous() for name, tensor in adapter.head.items()}
    _check_head(head, adapter.head_modules)
    tensors = {f"{PREFIX}{name}": tensor.clone() for name, tensor in head.items()}
    for path, factors in layers.items():
        key_a, key_b = pair_keys(path)
        tensors[key_a], tensors[key_b] = factors.A, factors.B
    for key, tensor in tensors.items():
        check_tensor(key, tensor, f"for {directory}")
    config = exact_config(
        {path: factors.rank for path, factors in layers.items()},
        base=adapter.base.resolved,
        revision=adapter.base.revision,
        task_type=adapter.task_type,
        head_modules=adapter.head_modules,
        fan_in_fan_out=adapter.fan_in_fan_out,
    )
    try:
        with new_directory(directory, force=force, markers=(CONFIG_FILE,)) as temporary:
            save_file(tensors, str(temporary / WEIGHTS_FILE), metadata={"format": "pt"})
            write_json(temporary / CONFIG_FILE, config)
            write_sora_file(temporary / SORA_FILE, _final_meta(adapter), adapter.base)
            _check_written(temporary, layers, head)
    except (OSError, SafetensorError) as error:
        raise SoraError(f"{directory} can not be written: {error}") from error


def _storable(layers: Mapping[str, LowRankFactors]) -> dict[str, LowRankFactors]:
    """Float32 on the CPU without zero terms and dead modules; one zero pair if all are dead."""
    if not layers:
        raise SoraError("there is no adapted layer to write")
    cast = {path: LowRankFactors(_plain(f.A), _plain(f.B)) for path, f in layers.items()}
    live = {path: factors.drop_zeros() for path, factors in cast.items()}
    live = {path: factors for path, factors in live.items() if factors.rank}
    if live:
        return live
    path, dead = next(iter(cast.items()))
    zero_a, zero_b = torch.zeros(1, dead.A.shape[1]), torch.zeros(dead.B.shape[0], 1)
    return {path: LowRankFactors(zero_a, zero_b)}


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32)


def _final_meta(adapter: Adapter) -> AdapterMeta:
    """The metadata with the ranks as they are now."""
    stored = {path: factors.rank for path, factors in adapter.layers.items()}
    start = adapter.meta.ranks_start or stored
    return adapter.meta.model_copy(update={"ranks": adapter.ranks(), "ranks_start": start})


def _check_head(head: Mapping[str, Tensor], modules: tuple[str, ...]) -> None:
    for name in head:
        if not any(name.startswith(f"{module}.") for module in modules):
            raise SoraError(f"'{name}' is stored in full but belongs to none of {modules}")
    for module in modules:
        if not any(name.startswith(f"{module}.") for name in head):
            raise SoraError(f"'{module}' is to be stored in full but has no tensors")


def _check_written(
    directory: Path, layers: Mapping[str, LowRankFactors], head: Mapping[str, Tensor]
) -> None:
    """Read the directory back and compare."""
    back = read_adapter(directory)
    same = back.layers.keys() == layers.keys() and back.head.keys() == head.keys()
    same = same and all(
        torch.equal(back.layers[path].A, factors.A) and torch.equal(back.layers[path].B, factors.B)
        for path, factors in layers.items()
    )
    if not (same and all(torch.equal(back.head[name], tensor) for name, tensor in head.items())):
        raise SoraError("what was written reads back differently: is the disk all right?")


def _read_tensors(
    directory: Path, config: PeftConfig
) -> tuple[dict[str, LowRankFactors], dict[str, Tensor]]:
    file = directory / WEIGHTS_FILE
    if not file.is_file():
        if (directory / PICKLE_FILE).is_file():
            raise SoraError(
                f"{directory / PICKLE_FILE} is a pickle, which can run any code when it is read",
                hint="if you trust it, load it with PEFT and save_pretrained() it again",
            )
        raise SoraError(f"{directory} holds no {WEIGHTS_FILE}")
    try:
        with safe_open(str(file), framework="pt") as stored:
            keys = split_keys(stored.keys(), config, str(file))
            layers = {}
            for path, pair in keys.pairs.items():
                a, b = (_finite(stored, key, file) for key in pair)
                layers[path] = _factors(path, a, b, config, str(file))
            return layers, {name: _finite(stored, key, file) for name, key in keys.head.items()}
    except SafetensorError as error:
        raise SoraError(f"{file} is truncated or corrupt: {error}") from error


def _finite(stored: Any, key: str, file: Path) -> Tensor:
    tensor: Tensor = stored.get_tensor(key)
    check_tensor(key, tensor, str(file))
    return tensor


def _factors(path: str, a: Tensor, b: Tensor, config: PeftConfig, where: str) -> LowRankFactors:
    """The pair of a module with PEFT's scaling folded into B, in float32."""
    rank = config.rank(path)
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != rank or b.shape[1] != rank or not a.numel():
        raise SoraError(
            f"'{path}': A {tuple(a.shape)} and B {tuple(b.shape)} are no pair of rank {rank}",
            where=where,
        )
    scaled = b.float() * config.scaling(path)
    check_tensor(path, scaled, where)
    return LowRankFactors(a.float().contiguous(), scaled.contiguous())


def _in_order(
    layers: Mapping[str, LowRankFactors], order: Mapping[str, int]
) -> dict[str, LowRankFactors]:
    """Known modules in the model's order first, others as the file has them."""
    paths = [path for path in order if path in layers]
    return {path: layers[path] for path in dict.fromkeys([*paths, *layers])}
