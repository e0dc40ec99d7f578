"""The plan of the merged checkpoint: its files, and the source of each tensor."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from sora_cli.adapter.adapter import Adapter
from sora_cli.adapter.peft.parameters import expert_path
from sora_cli.core.errors import SoraError
from sora_cli.merge.match import Match
from sora_cli.model.fingerprint import StoredTensor, read_metadata
from sora_cli.model.tensors import stored_dtype, torch_dtype

FLOATS = ("F64", "F32", "F16", "BF16")
NARROW = FLOATS[2:]


@dataclass(frozen=True)
class Item:
    """One tensor of the merged checkpoint.

    Attributes:
        dtype: safetensors' name of the dtype.
        length: size in bytes.
        source: the base's tensor; None for tensors that only the adapter has.
        update: the adapter's module whose update is added; None: no update.
        transposed: True if the weight is stored (in, out), as in GPT-2's Conv1D and embeddings.
        head: the adapter's parameter that replaces the base's tensor, before an update is added.
        part: the rows of the update that are added; None: all.
        experts: True if the tensor holds the weights of several experts, one below the other.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    length: int
    source: StoredTensor | None = None
    update: str | None = None
    transposed: bool = False
    head: str | None = None
    part: tuple[int, int] | None = None
    experts: bool = False

    @property
    def rows(self) -> int:
        """Number of rows of the tensor as a matrix."""
        return math.prod(self.shape[: 2 if self.experts else 1])

    @property
    def columns(self) -> int:
        """Numbers in a row; a convolution's channels and kernel form one dimension."""
        return math.prod(self.shape[2 if self.experts else 1 :])

    @property
    def copied(self) -> bool:
        """True if the tensor is the base's, byte for byte."""
        same = self.source is not None and self.source.dtype == self.dtype
        return same and self.update is None and self.head is None

    @property
    def converted(self) -> bool:
        """True if the tensor is the base's in another dtype."""
        return self.update is None and self.head is None and not self.copied

    @property
    def measured(self) -> bool:
        """True if the tensor changes one of the base, and rounding may lose some of the change."""
        if self.update is not None or self.head is None or self.source is None:
            return self.update is not None
        alike = self.source.shape == self.shape and self.source.dtype in FLOATS
        return alike and self.dtype in NARROW


@dataclass(frozen=True)
class PlannedFile:
    """One safetensors file, with its tensors in the order of their bytes."""

    name: str
    metadata: dict[str, str]
    items: tuple[Item, ...]


@dataclass(frozen=True)
class Plan:
    """All weight files of the merged checkpoint.

    Attributes:
        left_out: tensors of the base that the merged model's class does not use.
        absent: parameters of this class that no file supplies (only with `force`).
        renamed: number of tensors with another name than in the base.
    """

    files: tuple[PlannedFile, ...]
    left_out: tuple[str, ...]
    absent: tuple[str, ...]
    renamed: int

    @property
    def items(self) -> list[Item]:
        """All tensors."""
        return [item for file in self.files for item in file.items]

    @property
    def bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(item.length for item in self.items)


def plan_weights(
    adapter: Adapter,
    matched: Match,
    weights: Iterable[Path],
    source: str,
    *,
    tied: Match | None,
    other_class: bool,
    force: bool,
    dtype: str = "base",
) -> Plan:
    """Lay out the merged checkpoint: the base's files, with their tensors in the same order.

    Args:
        adapter: the adapter; only its shapes and dtypes are read.
        matched: the match of checkpoint, model and adapter.
        tied: the match before untying; None if nothing was untied.
        other_class: True if the merged model's class differs from the base's: tensors of the base's
            class alone, such as its head, are left out.
        force: leave out parameters that neither base nor adapter supplies.
        dtype: torch's name of the dtype of all floating-point tensors; "base": each as in the base.
    """
    misshapen = _misshapen(matched)
    # transformers would initialise these parameters at random
    random = sorted([*_absent(matched, tied), *(matched.arrivals[n].names[0] for n in misshapen)])
    if random and not force:
        raise SoraError(
            f"neither the adapter nor {source} holds {len(random)} parameters, such as "
            f"'{random[0]}'",
            hint="is it the right base? --force leaves them out",
        )
    left_out = set(misshapen)
    if other_class:
        left_out |= {name for name, arrival in matched.arrivals.items() if not arrival.known}
    stays = (tensor for name, tensor in matched.stored.items() if name not in left_out)
    kept = [_planned(tensor, matched, adapter) for tensor in stays]
    new = list(_new(matched, tied, adapter))
    names = _output_names(matched, kept, new)
    kept = [_stored_as(dtype, replace(item, name=names[item.name])) for item in kept]
    new = [_stored_as(dtype, item) for item in new]
    return Plan(
        files=tuple(_files(matched, list(weights), kept, new)),
        left_out=tuple(name for name in matched.stored if name in left_out),
        absent=tuple(random),
        renamed=sum(old != name for old, name in names.items()),
    )


def _files(
    matched: Match, weights: list[Path], kept: list[Item], new: list[Item]
) -> Iterator[PlannedFile]:
    """Yield the base's files without the tensors left out; new tensors go into the last file."""
    for file in weights:
        items = [item for item in kept if item.source and item.source.file == file]
        less = len(items) < sum(tensor.file == file for tensor in matched.stored.values())
        more = new if file == weights[-1] else []
        items += more
        if less or more or any(item.converted for item in items):
            # wide dtypes first, so that each tensor is aligned to its dtype
            items.sort(key=_width, reverse=True)
        if items:
            yield PlannedFile(file.name, read_metadata(file), tuple(items))


def _absent(matched: Match, tied: Match | None) -> list[str]:
    """Return parameters that no file supplies, without the optional ones."""
    runtime = matched.runtime
    there = matched.supplied | matched.heads.keys()
    known = tied.runtime if tied else runtime
    return [
        name
        for name in runtime.state
        if name not in there
        and not any(other in there for other in known.shared(name))
        and not runtime.may_be_missing(name)
    ]


def _misshapen(matched: Match) -> list[str]:
    """Return tensors of the checkpoint with a wrong shape that the adapter does not replace."""
    return [
        name
        for target, name in matched.places.items()
        if target not in matched.heads
        and not matched.grows(target)
        and matched.stored[name].shape != tuple(matched.runtime.state[target].shape)
    ]


def _planned(tensor: StoredTensor, matched: Match, adapter: Adapter) -> Item:
    """Return the planned tensor for a tensor of the base, still under its old name."""
    arrival = matched.arrivals[tensor.name]
    target = arrival.names[0] if arrival.known else ""
    change = matched.targets.get(target)
    if not (arrival.plain or (change is not None and change.several)):
        target = ""
    if target in matched.heads:
        item = _head(tensor.name, matched.heads[target], adapter, tensor.dtype, tensor)
    else:
        item = Item(tensor.name, tensor.dtype, tensor.shape, tensor.length, tensor)
    if matched.grows(target):
        shape = tuple(matched.runtime.state[target].shape)
        item = replace(item, shape=shape, length=item.length // item.rows * shape[0])
    return _updated(item, target, matched) if target in matched.targets else item


def _new(matched: Match, tied: Match | None, adapter: Adapter) -> Iterator[Item]:
    """Yield tensors that the base lacks: the adapter's own, and untied copies."""
    dtype = _usual_dtype(matched)
    runtime, written = matched.runtime, set(matched.places)
    for target in runtime.state:
        if target in written:
            continue
        if target in matched.heads:
            if not written.isdisjoint(runtime.shared(target)):
                continue  # a tied parameter with these numbers is written already
            item = _head(target, matched.heads[target], adapter, dtype, None)
        elif tied is not None and target not in matched.supplied:
            partner = next((p for p in tied.runtime.shared(target) if p in matched.places), None)
            if partner is None:
                continue
            tensor = matched.stored[matched.places[partner]]
            item = Item(target, tensor.dtype, tensor.shape, tensor.length, tensor)
        else:
            continue
        yield _updated(item, target, matched) if target in matched.targets else item
        written.add(target)
    for name, change in matched.targets.items():
        if name not in written and name not in matched.supplied:
            raise SoraError(f"the base model has no weight for '{change.change}' of the adapter")


def _updated(item: Item, name: str, matched: Match) -> Item:
    """Return an item with the adapter's change of the parameter `name`."""
    target = matched.targets[name]
    dtype = torch_dtype(item.dtype)
    if item.dtype not in FLOATS or dtype is None:
        raise SoraError(
            f"'{target.change}' of the base model is quantised: it is stored as {item.dtype}",
            hint="merge into the unquantised model with --base",
        )
    if dtype.itemsize * torch.Size(item.shape).numel() != item.length:
        raise SoraError(f"'{item.name}' of the base model is truncated or corrupt")
    place = None if item.source is None else matched.arrivals[item.source.name].expert
    if place is not None:
        rows = item.shape[0]
        part = place.part * rows, (place.part + 1) * rows
        update = expert_path(target.change, place.expert)
        return replace(item, update=update, part=part, transposed=target.transposed)
    stacked = target.several and len(item.shape) == 3
    return replace(item, update=target.change, transposed=target.transposed, experts=stacked)


def _head(
    name: str, head: str, adapter: Adapter, dtype: str, replaced: StoredTensor | None
) -> Item:
    """Return a parameter of the adapter; floating-point numbers take the base's dtype."""
    part = adapter.full[head]
    kind = part.dtype
    assert kind is not None  # `incoming` has checked it
    if kind.is_floating_point and dtype in FLOATS:
        kind = torch_dtype(dtype) or kind
    length = kind.itemsize * part.parameters
    return Item(name, stored_dtype(kind), part.shape, length, replaced, head=head)


def _stored_as(dtype: str, item: Item) -> Item:
    """Return a planned tensor in another dtype; integers stay unchanged."""
    if dtype == "base" or item.dtype not in FLOATS:
        return item
    kind = getattr(torch, dtype)
    length = kind.itemsize * torch.Size(item.shape).numel()
    return replace(item, dtype=stored_dtype(kind), length=length)


def _usual_dtype(matched: Match) -> str:
    """Return the floating-point dtype with the most bytes in the checkpoint."""
    sizes: Counter[str] = Counter()
    for tensor in matched.stored.values():
        if tensor.dtype in FLOATS:
            sizes[tensor.dtype] += tensor.length
    return sizes.most_common(1)[0][0] if sizes else "F32"


def _output_names(matched: Match, kept: list[Item], new: list[Item]) -> dict[str, str]:
    """Return {name in the base: name in the merged checkpoint}, such that transformers finds all.

    The base's own names are tried first. If a new head stands beside a backbone without prefix, the
    prefix is added first, because many programs cannot load such a mixture. The model's own names
    are tried last.
    """
    arrivals = {item.name: matched.arrivals[item.name] for item in kept}
    prefix = matched.runtime.prefix
    own = {name: name for name in arrivals}
    prefixed = {n: f"{prefix}.{n}" if a.lacks_prefix else n for n, a in arrivals.items()}
    today = {n: a.names[0] if a.plain and a.known else n for n, a in arrivals.items()}
    first = prefixed if new and prefixed != own else own
    for names in (first, prefixed, today):
        if _are_found(matched, names, [item.name for item in new]):
            return names
    raise SoraError("there are no names for the merged weights under which transformers would "
                    "load all of them")  # fmt: skip


def _are_found(matched: Match, names: Mapping[str, str], new: list[str]) -> bool:
    """Return True if transformers maps the names to the same parameters as before the renaming."""
    final = [*names.values(), *new]
    if len(set(final)) < len(final):
        return False
    arrivals = matched.runtime.arrivals(final)

    def same(old: str, name: str) -> bool:
        before, after = matched.arrivals[old], arrivals[name]
        if not before.known:
            return not after.known
        return before.names == after.names and before.plain == after.plain

    return all(same(old, name) for old, name in names.items()) and all(
        arrivals[name].plain and arrivals[name].names == (name,) for name in new
    )


def _width(item: Item) -> float:
    """Return the number of bytes per number."""
    dtype = torch_dtype(item.dtype)
    return dtype.itemsize if dtype else item.length / max(torch.Size(item.shape).numel(), 1)
