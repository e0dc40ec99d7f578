"""The difference between a fine-tuned model and its base, parameter by parameter.

Tied weights are one parameter and are compared once. `names` finds each parameter's tensor in the
checkpoint. Only file headers are kept in memory; comparing bytes takes a few megabytes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from methods.init import linear_shape
from sora_cli.adapter.peft.config import PeftConfig
from sora_cli.adapter.peft.refused import refused_today
from sora_cli.core.errors import SoraError
from sora_cli.core.words import first_few
from sora_cli.merge.incoming import same_content
from sora_cli.merge.names import Arrival, Runtime
from sora_cli.model.fingerprint import StoredTensor
from sora_cli.model.tensors import read_tensor

_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class Change:
    """A parameter's tensors in the two checkpoints; `base` is None if only the model has one."""

    model: StoredTensor
    base: StoredTensor | None


@dataclass(frozen=True)
class Difference:
    """All changes of a fine-tuned model against its base.

    Attributes:
        layers: module path -> changed weight of a linear layer, to be replaced by factors.
        transposed: paths of layers whose weight is stored (in, out), such as GPT-2's Conv1D.
        full: paths of modules to store in full, because other parameters in them have changed.
        head: parameter name -> tensor, for all parameters of the modules in `full`.
        biases: parameter name -> changed bias of a linear layer that is not in `full`.
        notes: remarks for the user.
        left_out: changes left out on purpose.
    """

    layers: dict[str, Change]
    transposed: frozenset[str]
    full: tuple[str, ...]
    head: dict[str, Change]
    biases: dict[str, Change]
    notes: tuple[str, ...]
    left_out: dict[str, Change] = field(default_factory=dict)

    def without_biases(self) -> Difference:
        """Return a copy that leaves the biases out."""
        return replace(self, biases={}, left_out=self.biases)


def find_difference(
    runtime: Runtime,
    model: Mapping[str, StoredTensor],
    base: Mapping[str, StoredTensor],
    task_type: str | None,
) -> Difference:
    """Compare two checkpoints of one kind of model.

    Args:
        runtime: the fine-tuned model's class.
        model: the fine-tuned model's tensors, by their names in the checkpoint.
        base: the base's tensors, by their names in the checkpoint.
        task_type: PEFT's name of the task; for some tasks PEFT always stores the head in full.
    """
    sides = _Side("the model", runtime, model), _Side("the base", runtime, base)
    _check_alike(*sides)
    _check_converted(*sides)
    sorted_out = _Sorter(runtime, PeftConfig(peft_type="LORA", task_type=task_type))
    for names in _groups(runtime):
        change = _changed(names, *sides, runtime)
        if change is not None:
            sorted_out.take(names, change)
    return sorted_out.result(sides[0], sides[1], _notes(*sides))


@dataclass
class _Side:
    """One checkpoint, with its tensors by parameter name in `places`."""

    called: str
    runtime: Runtime
    stored: Mapping[str, StoredTensor]
    arrivals: Mapping[str, Arrival] = field(init=False)
    places: dict[str, StoredTensor] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.arrivals = self.runtime.arrivals(self.stored)
        for name, tensor in self.stored.items():
            arrival = self.arrivals[name]
            if not (arrival.plain and arrival.known):
                continue
            target = arrival.names[0]
            if target in self.places:
                raise SoraError(f"{self.called} holds '{target}' twice, as '{name}' and "
                                f"'{self.places[target].name}': which one is meant?")  # fmt: skip
            self.places[target] = tensor

    def find(self, names: Iterable[str]) -> StoredTensor | None:
        """Return the tensor of a parameter, given all its tied names; None if it is not stored.

        Tied names stored with different numbers are an error.
        """
        tensors = {name: self.places[name] for name in names if name in self.places}
        first = next(iter(tensors.values()), None)
        for name, other in tensors.items():
            if first is not None and not same_content(first, other):
                raise SoraError(
                    f"{self.called} holds other numbers in '{name}' than in the weight that its "
                    "configuration ties it to",
                    hint="if they are meant to differ: set tie_word_embeddings to false in "
                    "config.json",
                )
        return first

    @property
    def unknown(self) -> list[str]:
        """Names of tensors that the model's class does not use."""
        return [name for name, arrival in self.arrivals.items() if not arrival.known]


def _groups(runtime: Runtime) -> list[tuple[str, ...]]:
    """Return the names of all parameters and buffers; tied names form one group."""
    groups: dict[str, tuple[str, ...]] = {}
    seen: set[str] = set()
    for name in runtime.state:
        if name not in seen:
            groups[name] = (name, *runtime.shared(name))
            seen.update(groups[name])
    return list(groups.values())


def _changed(names: tuple[str, ...], model: _Side, base: _Side, runtime: Runtime) -> Change | None:
    """Return a parameter's change; None: no difference, or an optional parameter not stored."""
    new, old = model.find(names), base.find(names)
    if new is None:
        missing = not any(runtime.may_be_missing(name) for name in names)
        if missing and not _is_converted(names, model) and _is_parameter(names[0], runtime):
            raise SoraError(f"the model's files lack '{names[0]}': are they complete?")
        return None
    if old is None:
        return Change(new, None)
    if new.shape != old.shape:
        raise SoraError(
            f"'{names[0]}' is {new.shape} in the model and {old.shape} in the base",
            hint="an adapter cannot change shapes: resize the base's embeddings first"
            if "emb" in names[0] or len(names) > 1
            else "is it the right base?",
        )
    return None if _same(new, old) else Change(new, old)


def _same(new: StoredTensor, old: StoredTensor) -> bool:
    """Return True if two tensors hold the same numbers, even in different dtypes."""
    if new.dtype == old.dtype:
        return same_content(new, old)
    return torch.equal(read_tensor(new).double(), read_tensor(old).double())


def _is_converted(names: tuple[str, ...], side: _Side) -> bool:
    converted = (a.names for a in side.arrivals.values() if not a.plain)
    return any(name in targets for targets in converted for name in names)


def _is_parameter(name: str, runtime: Runtime) -> bool:
    return any(name == known for known, _ in runtime.model.named_parameters(remove_duplicate=False))


def _check_alike(model: _Side, base: _Side) -> None:
    """Refuse a base with another number of layers, and a base of another model."""
    if not model.places.keys() & base.places.keys():
        raise SoraError("the model and the base have no parameter in common",
                        hint="is it the right base?")  # fmt: skip
    for one, other in ((model, base), (base, model)):
        # a layer that only one side has: its name, numbers aside, is known to the other side
        known = {_NUMBER.sub("*", name) for name in other.places}
        for name, arrival in one.arrivals.items():
            target = arrival.names[0]
            if target not in other.places and _NUMBER.search(target):
                pattern = _NUMBER.sub("*", target)
                repeated = pattern in known and arrival.plain and not other.runtime.shared(target)
                if repeated:
                    raise SoraError(f"{one.called} has a '{name}', and {other.called} has none: "
                                    "they have different numbers of layers",
                                    hint="is it the right base?")  # fmt: skip


def _check_converted(model: _Side, base: _Side) -> None:
    """Refuse changes of tensors that transformers splits or joins when it loads a model."""
    for name, arrival in model.arrivals.items():
        if arrival.plain:
            continue
        other = base.stored.get(name)
        if other is None or not same_content(model.stored[name], other):
            raise SoraError(
                f"'{name}' has changed, and transformers splits or joins it when it loads the "
                "model (fused experts, for example)",
                hint="such a change cannot be written as an adapter",
            )


def _notes(model: _Side, base: _Side) -> tuple[str, ...]:
    notes = []
    if model.unknown:
        notes.append(f"the model's class does not use {first_few(model.unknown)} in its files")
    only = [name for name in base.unknown if name not in model.unknown]
    if only:
        notes.append(f"the base also holds {first_few(only)}, which the model lacks")
    dtypes = [{t.dtype for t in side.places.values()} for side in (model, base)]
    if dtypes[0] != dtypes[1]:
        notes.append(
            f"the model is stored in {', '.join(sorted(dtypes[0]))}, the base in "
            f"{', '.join(sorted(dtypes[1]))}: the difference includes rounding"
        )
    return tuple(notes)


class _Sorter:
    """Sorts changes: weights for factors, biases, and modules to store in full."""

    def __init__(self, runtime: Runtime, config: PeftConfig) -> None:
        self._runtime, self._config = runtime, config
        self._modules: dict[str, nn.Module] = dict(runtime.model.named_modules())
        self._layers: dict[str, Change] = {}
        self._biases: dict[str, Change] = {}
        self._full: set[str] = set()

    def take(self, names: tuple[str, ...], change: Change) -> None:
        """Sort one parameter's change, given all its tied names."""
        owner, _, last = names[0].rpartition(".")
        # factors of one layer cannot stand for a tied weight, which belongs to several
        linear = len(names) == 1 and owner in self._modules and change.base is not None
        if (
            linear
            and linear_shape(self._modules[owner]) is not None
            and not self._always_in_full(names[0])
        ):
            (self._layers if last == "weight" else self._biases)[owner] = change
            return
        self._full.update(name.rpartition(".")[0] for name in names)

    def _always_in_full(self, name: str) -> bool:
        """Return True if PEFT always stores this parameter in full, for this task type."""
        return self._config.head_module(name) is not None

    def result(self, model: _Side, base: _Side, notes: tuple[str, ...]) -> Difference:
        """Return the difference, with each change in one place only."""
        kind = str(getattr(self._runtime.model.config, "model_type", ""))
        refused = refused_today(kind, self._layers)
        self._full |= refused.keys()
        self._extend_like_peft()
        if "" in self._full:
            raise SoraError("parameters have changed that belong to the model, not to a module",
                            hint="such a change cannot be written as an adapter")  # fmt: skip
        layers = {p: c for p, c in self._layers.items() if not _below(p, self._full)}
        biases = {p: c for p, c in self._biases.items() if not _below(p, self._full)}
        return Difference(
            layers=layers,
            transposed=frozenset(p for p in layers if _is_transposed(self._modules[p])),
            full=tuple(path for path in self._modules if path in self._full),
            head=self._head(model, base),
            biases={f"{path}.bias": change for path, change in biases.items()},
            notes=(
                *notes,
                *(f"'{path}' is {why}: stored in full" for path, why in refused.items()),
            ),
        )

    def _extend_like_peft(self) -> None:
        """Extend the modules stored in full as PEFT does: by name endings and tied weights."""
        # until nothing is added: a module added by its name may be tied to another module
        before: set[str] = set()
        while before != self._full:
            before = set(self._full)
            # PEFT's modules_to_save match by the end of a path, so each entry may match more
            entries = tuple(self._full)
            self._full |= {
                path
                for path, module in self._modules.items()
                if path and path.endswith(entries) and module.state_dict()
            }
            for name in self._runtime.state:
                if _below(name, self._full):
                    partners = self._runtime.shared(name)
                    self._full |= {p.rpartition(".")[0] for p in partners}
            self._full = {path for path in self._full if not _below(path, self._full - {path})}

    def _head(self, model: _Side, base: _Side) -> dict[str, Change]:
        head = {}
        for name in self._runtime.state:
            if _below(name, self._full):
                names = (name, *self._runtime.shared(name))
                stored = model.find(names)
                if stored is None:
                    raise SoraError(f"'{name}' has to be stored in full, but the model's files "
                                    "hold it split or joined")  # fmt: skip
                head[name] = Change(stored, base.find(names))
        return head


def _below(path: str, modules: set[str]) -> bool:
    """Return True if a path is one of these modules, or lies inside one of them."""
    parts = path.split(".")
    return any(".".join(parts[:end]) in modules for end in range(1, len(parts) + 1))


def _is_transposed(module: Any) -> bool:
    return not isinstance(module, nn.Linear)


def squared_norm(change: Change) -> float:
    """Return the squared Frobenius norm of a change; 0 if the base has no such tensor."""
    if change.base is None:
        return 0.0
    pairs = zip(_rows(read_tensor(change.model)), _rows(read_tensor(change.base)), strict=True)
    return math.fsum(float((a.double() - b.double()).square().sum()) for a, b in pairs)


def _rows(tensor: Tensor) -> tuple[Tensor, ...]:
    return torch.split(tensor.reshape(-1), 2**22)
