"""The adapter directory: a plain PEFT LoRA adapter, plus `sora.json` for facts without a PEFT key.

It reads our adapters and those of any tool in PEFT's kinds, and writes ours. In memory an adapter
is always plain factors with all scaling in B; see `reading` for files on demand, `peft/layout` for
keys.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from methods.factors import LowRankFactors
from methods.updates import Replaced
from sora_cli.adapter.card import adapter_card, stored
from sora_cli.adapter.kernels import forms_in
from sora_cli.adapter.metadata import AdapterMeta, BaseReference, write_json, write_sora_file
from sora_cli.adapter.peft.layout import token_key, written_config
from sora_cli.adapter.places import new_adapter_place
from sora_cli.adapter.reading import AdapterFile, OnDemand, open_adapter
from sora_cli.adapter.stored import Form, experts_in
from sora_cli.adapter.writing import Plan
from sora_cli.core.errors import SoraError, reason
from sora_cli.model.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, CARD, SORA_FILE
from sora_cli.model.tensors import write_tensors
from sora_cli.model.threads import one_thread

_MERGE = "sora merge, without --format, adds all of it to the base model"


@dataclass(frozen=True)
class Adapter:
    """An adapter in memory, or an adapter on disk with its tensors read at each access.

    Attributes:
        layers: module path in the base model -> float32 factors, all scaling folded into B.
        head: parameter name in the base model -> tensor that is stored in full.
        head_modules: paths of the modules that `head` covers; each needs all its tensors there.
        task_type: PEFT's, such as "SEQ_CLS" or "CAUSAL_LM". For "SEQ_CLS" PEFT expects a
            `classifier` or `score` to be stored, also if it was not trained.
        fan_in_fan_out: some target is a Conv1D.
        forms: module path -> the kind of layer, for layers that are not linear.
        magnitudes: module path -> DoRA's magnitudes (out,): the weight with the update in it is
            rescaled to them. An adapter with magnitudes cannot be written, but it can be merged.
        biases: names in `head` of trained biases, whose modules are not stored in full.
        base_weights: names in `head` that replace the base model's own parameter, also for the
            parameters tied to it; their modules may have factors besides.
        token_rows: path of an embedding -> its rows that are trained in full.
    """

    layers: Mapping[str, LowRankFactors]
    head: Mapping[str, Tensor]
    head_modules: tuple[str, ...]
    task_type: str | None
    base: BaseReference
    fan_in_fan_out: bool = False
    meta: AdapterMeta = dataclasses.field(default_factory=AdapterMeta)
    forms: Mapping[str, Form] = dataclasses.field(default_factory=dict)
    magnitudes: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    biases: tuple[str, ...] = ()
    base_weights: tuple[str, ...] = ()
    token_rows: Mapping[str, Replaced] = dataclasses.field(default_factory=dict)

    @property
    def experts(self) -> tuple[str, ...]:
        """The paths in `layers` that are experts in a parameter."""
        return experts_in(self.forms)

    @property
    def parameters(self) -> int:
        """Numbers in the factors, without the head."""
        return sum(factors.parameters for factors in self.layers.values())

    @property
    def head_parameters(self) -> int:
        """Numbers stored in full."""
        return sum(tensor.numel() for tensor in self.head.values())

    def ranks(self) -> dict[str, int]:
        """Return {module path: live components}: 0 for dead modules, stored or not."""
        live = {path: int(f.live_components().sum()) for path, f in self.layers.items()}
        return {path: live.get(path, 0) for path in dict.fromkeys([*self.meta.ranks, *live])}

    def ranks_start(self) -> dict[str, int]:
        """Return {module path: components at the start of training, or stored ones if unknown}."""
        stored = {path: factors.rank for path, factors in self.layers.items()}
        return {path: self.meta.ranks_start.get(path, stored.get(path, 0)) for path in self.ranks()}


def read_adapter(directory: Path, *, base: str | None = None) -> Adapter:
    """Read our adapter or one of PEFT's: its factors, patterns and heads stored in full.

    Args:
        directory: the adapter directory, or a run directory that holds one.
        base: reference of the base model, if it is not the model that the adapter names.
    """
    with open_adapter(directory, base=base) as file:
        lazy = lazy_adapter(file)
        return dataclasses.replace(
            lazy,
            layers=dict(lazy.layers),
            head=dict(lazy.head),
            magnitudes=dict(lazy.magnitudes),
            token_rows=dict(lazy.token_rows),
        )


def lazy_adapter(file: AdapterFile) -> Adapter:
    """Return an adapter without tensors in memory: each access reads one, while `file` is open."""
    return Adapter(
        layers=file.layers,
        head=file.head,
        head_modules=file.head_modules,
        task_type=file.config.task_type,
        base=file.base,
        fan_in_fan_out=file.config.fan_in_fan_out,
        meta=file.meta,
        forms=forms_in(file),
        magnitudes=file.magnitudes,
        biases=file.biases,
        base_weights=file.base_weights,
        token_rows=file.token_rows,
    )


def check_low_rank(adapter: Adapter | AdapterFile, *, rows: bool = False) -> None:
    """Refuse an adapter that also rescales weights (DoRA) or replaces rows of an embedding.

    Its low-rank factors alone would be another adapter, with other outputs.

    Args:
        rows: the caller carries the rows of embeddings over, so they are permitted.
    """
    rescaled = next(iter(adapter.magnitudes), None)
    if rescaled is not None:
        raise SoraError(
            f"this is a DoRA adapter: it also rescales each output of '{rescaled}', which is not "
            "an update of low rank",
            where="its low-rank part alone would give other outputs",
            hint=_MERGE,
        )
    embedding = next(iter(adapter.token_rows), None)
    if embedding is not None and not rows:
        raise SoraError(
            f"this adapter also holds rows of '{embedding}' that were trained in full "
            "(trainable_token_indices), which is not an update of low rank",
            where="without them it would give other outputs",
            hint=_MERGE,
        )


@one_thread()
def write_adapter(
    directory: Path,
    adapter: Adapter,
    *,
    layout: str = "exact",
    dtype: str = "float32",
    force: bool = False,
    beside: Callable[[Path], None] | None = None,
    certify: Callable[[Path], Sequence[str]] | None = None,
) -> None:
    """Write an adapter and its card, atomically: complete and read back, or not at all.

    Components that are exactly zero are left out, and so are modules without any other. If no
    module is left, one stays as a zero pair of rank 1, so that every tool can load the directory.
    Each layer is requested twice, by several threads, with one layer per core in memory; the files
    are read back and compared by digests.

    Args:
        layout: "exact": each module at its own rank; "padded": all zero-padded to the largest.
        dtype: of the factors; they are folded in float32 and cast last. The head keeps its dtype.
        force: replace an adapter directory that is there.
        beside: writes more of `ADAPTER_FILES` into the directory, such as the tokenizer's.
        certify: writes the certificate of the written files, and returns its lines for the card.
    """
    check_low_rank(adapter, rows=True)
    loose = (*adapter.biases, *adapter.base_weights)
    plan = Plan(
        adapter.layers,
        _in_full(adapter),
        layout=layout,
        dtype=dtype,
        forms=adapter.forms,
        loose=loose,
    )
    _check_head(set(adapter.head) - set(loose), adapter.head_modules)
    config = written_config(
        plan.targets,
        parameters=plan.parameters,
        layout=layout,
        base=adapter.base.hub_id or adapter.base.resolved,  # an id loads on every machine
        revision=adapter.base.revision,
        task_type=adapter.task_type,
        head_modules=adapter.head_modules,
        fan_in_fan_out=adapter.fan_in_fan_out,
        biases=bool(adapter.biases),
        tokens={path: rows.indices.tolist() for path, rows in adapter.token_rows.items()},
    )
    ranks = {**dict.fromkeys(adapter.meta.ranks, 0), **plan.sums(plan.live)}
    start = adapter.meta.ranks_start or plan.sums(plan.start)
    facts: dict[str, Any] = {"ranks": ranks, "ranks_start": start, "bits": plan.bits}
    if plan.bits is None:
        facts["rounding_errors"] = {}
    meta = adapter.meta.model_copy(update=facts)
    try:
        with new_adapter_place(directory, force=force) as temporary:
            write_tensors(temporary / ADAPTER_WEIGHTS, plan.tensors(str(directory)))
            write_json(temporary / ADAPTER_CONFIG, config)
            write_sora_file(temporary / SORA_FILE, meta, adapter.base)
            if beside is not None:
                beside(temporary)
            # last, since the card describes the files as they were read back
            with open_adapter(temporary, as_stored=True) as back:
                plan.check(back.layers, _in_full(back))
                lines = () if certify is None else certify(temporary)
                (temporary / CARD).write_bytes(stored(adapter_card(back, certificate=lines)))
    except OSError as error:
        raise SoraError(f"{directory} cannot be written: {reason(error, directory)}") from error


def _in_full(adapter: Adapter | AdapterFile) -> Mapping[str, Tensor]:
    """Return the head and the trained rows of tokens by their names; each access reads one."""
    paths = {token_key(path): path for path in adapter.token_rows}

    def tensor(name: str) -> Tensor:
        return adapter.token_rows[paths[name]].values if name in paths else adapter.head[name]

    return OnDemand([*adapter.head, *paths], tensor)


def _check_head(head: Iterable[str], modules: tuple[str, ...]) -> None:
    head = tuple(head)
    for name in head:
        if not any(name.startswith(f"{module}.") for module in modules):
            raise SoraError(f"'{name}' is stored in full but belongs to none of {modules}")
    for module in modules:
        if not any(name.startswith(f"{module}.") for name in head):
            raise SoraError(f"'{module}' is to be stored in full but has no tensors")
