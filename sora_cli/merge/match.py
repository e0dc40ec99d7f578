"""Matches each part of an adapter to a tensor of the base checkpoint, or refuses it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from sora_cli.adapter.adapter import Adapter
from sora_cli.adapter.parts.part import Content, Target
from sora_cli.core.errors import SoraError
from sora_cli.merge.incoming import same_content
from sora_cli.merge.names import Arrival, Runtime, head_names, layer_paths
from sora_cli.model.fingerprint import StoredTensor, read_header


@dataclass(frozen=True)
class Match:
    """A checkpoint, its model, and the adapter's parts by the model's parameter names.

    Attributes:
        stored: the checkpoint's tensors by name, in the order of files and bytes.
        arrivals: each tensor's parameters in the model.
        places: parameter -> name in the checkpoint, for tensors that become a parameter unchanged.
        targets: parameter -> the adapter's change of it.
        heads: parameter -> the adapter's name of a tensor stored in full.
    """

    runtime: Runtime
    stored: Mapping[str, StoredTensor]
    arrivals: Mapping[str, Arrival]
    places: Mapping[str, str]
    targets: Mapping[str, Target]
    heads: Mapping[str, str]

    @property
    def supplied(self) -> set[str]:
        """Names of the parameters that the checkpoint supplies."""
        return {name for arrival in self.arrivals.values() for name in arrival.names}

    def grows(self, target: str) -> bool:
        """Return True if the adapter's rows of new tokens follow the rows of a stored weight."""
        change = self.targets.get(target)
        if change is None or not change.rows or target not in self.places:
            return False
        stored, shape = self.stored[self.places[target]].shape, self.runtime.state[target].shape
        return stored[1:] == tuple(shape[1:]) and stored[0] < shape[0]


def read_stored(weights: Iterable[Path]) -> dict[str, StoredTensor]:
    """Read the headers of a checkpoint: its tensors by name, in the order of files and bytes.

    A name that is in two files is an error.
    """
    stored: dict[str, StoredTensor] = {}
    for file in weights:
        for tensor in sorted(read_header(file), key=lambda t: (t.start, t.length)):
            if tensor.name in stored:
                raise SoraError(f"'{tensor.name}' is in two files of the base model",
                                where=f"{stored[tensor.name].file.name}, {file.name}")  # fmt: skip
            stored[tensor.name] = tensor
    return stored


def match(adapter: Adapter, stored: Mapping[str, StoredTensor], runtime: Runtime) -> Match:
    """Find the model's parameter and the checkpoint's tensor for each part of an adapter.

    A part with no place, or with more than one place, is an error.
    """
    arrivals = runtime.arrivals(stored)
    targets = _targets(adapter, runtime)
    heads = _heads(adapter, runtime)
    places: dict[str, str] = {}
    for name in stored:
        arrival = arrivals[name]
        if not (arrival.plain and arrival.known):
            continue
        target = arrival.names[0]
        if target in places and (target in targets or target in heads):
            raise SoraError(f"the base model holds '{target}' twice, as '{places[target]}' and "
                            f"'{name}': which one is meant?")  # fmt: skip
        places[target] = name
    targets = _with_tied_rows(runtime, targets, places)
    both = {target for target in targets.keys() & heads.keys()
            if not adapter.full[heads[target]].everywhere}  # fmt: skip
    if both:
        raise SoraError(f"the adapter holds '{min(both)}' in full, and an update of it as well")
    matched = Match(runtime, stored, arrivals, places, targets, heads)
    matched = replace(matched, heads=_everywhere(matched, adapter))
    _check_whole(matched)
    return matched


def tied_part(matched: Match, head: Callable[[str], Content]) -> SoraError | None:
    """Return the error of changing only one of several tied weights; None: no such change.

    Weights that the checkpoint stores separately, with different numbers, are not tied:
    transformers does not tie them either. Tied weights that the adapter stores in full, all with
    the same numbers, are no error.

    Args:
        head: returns a tensor that the adapter stores in full.
    """
    hint = "--untie writes separate weights; or use the adapter without a merge"
    for name, target in matched.targets.items():
        partners = _partners(matched, name)
        if partners and not target.rows:
            return SoraError(f"'{target.change}' shares its weight with '{partners[0]}': merging "
                             "would change both", hint=hint)  # fmt: skip
    for parameter, name in matched.heads.items():
        for partner in _partners(matched, parameter):
            other = matched.heads.get(partner)
            if other != name and (other is None or not same_content(head(name), head(other))):
                return SoraError(f"'{name}' is trained in full but shares its weight with "
                                 f"'{partner}'", hint=hint)  # fmt: skip
    return None


def _partners(matched: Match, target: str) -> list[str]:
    """Return the names tied to a parameter, without those stored with different numbers."""
    own = matched.places.get(target)

    def same(other: str | None) -> bool:
        place = matched.places.get(other or "")
        if own is None or place is None or place == own:
            return True
        return same_content(matched.stored[own], matched.stored[place])

    runtime = matched.runtime
    return [
        other
        for other in runtime.shared(target)
        if same(other if other in matched.places else runtime.tied_to(other))
    ]


def _targets(adapter: Adapter, runtime: Runtime) -> dict[str, Target]:
    """Return {parameter: the change of it}; two changes of one parameter are an error."""
    paths = layer_paths(runtime, adapter)
    targets: dict[str, Target] = {}
    for part in adapter.parts:
        for target in part.targets(runtime.model, paths.get(part.path)):
            other = targets.setdefault(target.parameter, target)
            if other.change != target.change:
                raise SoraError(f"'{part.path}' and '{other.change}' of the adapter are the same "
                                f"module of the base model, '{paths[part.path]}'")  # fmt: skip
    return targets


def _with_tied_rows(
    runtime: Runtime, targets: Mapping[str, Target], places: Mapping[str, str]
) -> dict[str, Target]:
    """Return the targets with all stored weights that share trained rows: PEFT changes them, too.

    Rows of a weight that is only tied to a stored one are left out: they are the same rows. A tied
    weight that also has factors is an error.
    """
    all_of_them = dict(targets)
    for name, target in targets.items():
        for other in runtime.shared(name) if target.rows else ():
            if not targets.get(other, target).rows:
                raise SoraError(
                    f"'{targets[other].change}' of the adapter has factors, and is tied to "
                    f"'{target.change}' with its trained rows: they cannot be merged together",
                    hint="use the adapter without a merge",
                )
            if other in places:
                all_of_them.setdefault(other, replace(target, parameter=other))
                if name not in places:
                    all_of_them.pop(name, None)
    return all_of_them


def _heads(adapter: Adapter, runtime: Runtime) -> dict[str, str]:
    names = head_names(runtime, adapter)
    heads: dict[str, str] = {}
    for name, part in adapter.full.items():
        target = names[name]
        there = None if target is None else runtime.state[target]
        if target is None or there is None or there.shape != part.shape:
            what = "no such parameter" if there is None else f"{tuple(there.shape)}"
            raise SoraError(
                f"the adapter's '{name}' {part.shape} does not fit the base: {what}",
                hint="is it the right base, and the right kind of model for the adapter's task?",
            )
        if target in heads:
            raise SoraError(f"'{name}' and '{heads[target]}' of the adapter are the same parameter "
                            f"of the base model, '{target}'")  # fmt: skip
        heads[target] = name
    return heads


def _everywhere(matched: Match, adapter: Adapter) -> dict[str, str]:
    """Return the heads, extended by the parameters tied to base weights that are replaced."""
    weights = [t for t, name in matched.heads.items() if adapter.full[name].everywhere]
    tied = {p: matched.heads[t] for t in weights for p in _partners(matched, t)}
    return tied | dict(matched.heads)


def _is_expert(matched: Match, name: str, places: Mapping[str, int]) -> bool:
    """Return True if a stored tensor is rows of one expert in a parameter that is stored whole.

    Args:
        places: parameter -> number of stored tensors that it is made of.
    """
    arrival, shape = matched.arrivals[name], matched.stored[name].shape
    target = matched.runtime.state.get(arrival.names[0])
    whole = matched.targets.get(arrival.names[0])
    if arrival.expert is None or whole is None or not whole.several or target is None:
        return False
    number, _, parts = arrival.expert
    experts, rows, columns = target.shape if target.ndim == 3 else (0, 0, 0)
    fits = number < experts and shape == (rows // parts, columns)
    return fits and places[arrival.names[0]] == experts * parts


def _check_whole(matched: Match) -> None:
    """Refuse changes of parameters that transformers joins or splits when it loads a model.

    Fused experts whose weights are stored one by one are no such change, if all of them are there.
    """
    places = Counter(a.names[0] for a in matched.arrivals.values() if a.expert is not None)
    for name, arrival in matched.arrivals.items():
        if arrival.plain or _is_expert(matched, name, places):
            continue
        for target in arrival.names:
            if target in matched.targets or target in matched.heads:
                raise SoraError(
                    f"'{target}' is stored in another form, in '{name}', which transformers "
                    "converts when it loads the model",
                    hint="let PEFT do it: merge_and_unload() and save_pretrained()",
                )
