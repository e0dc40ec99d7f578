"""A smaller copy of a finished adapter: cut by a rule or by a promise, and perhaps rounded."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial, reduce
from pathlib import Path
from typing import Any

from methods.keep import Keep
from sora_cli.adapter.adapter import Adapter
from sora_cli.adapter.card import write_card
from sora_cli.adapter.companions import copy_companions
from sora_cli.adapter.directory import write_adapter
from sora_cli.adapter.pruning import Layers, Loss, check_left, check_one_rank, prune_layers
from sora_cli.adapter.rounding import Rounding
from sora_cli.adapter.survival import Survival
from sora_cli.search.evidence import Evidence

Search = Callable[[Adapter, Rounding | None], tuple[Layers, dict[str, Loss], Evidence]]
"""Finds the cut of an adapter that keeps a promise, each tested as it will be stored."""


@dataclass(frozen=True)
class Shrunk:
    """A cut adapter, ready to be written.

    Attributes:
        whole: the adapter that was cut.
        layers: what is left.
        losses: by module.
        keep: the rule of the cut.
        evidence: of the promise that chose the size; None: a rule did.
        rounding: to few bits; None: none.
        errors: of the rounding, by module.
        survival: what of the update is left after rounding.
    """

    whole: Adapter
    layers: Layers
    losses: dict[str, Loss]
    keep: Keep
    evidence: Evidence | None = None
    rounding: Rounding | None = None
    errors: dict[str, float] = field(default_factory=dict)
    survival: Survival | None = None

    @cached_property
    def total(self) -> Loss:
        """The loss of all layers together."""
        return reduce(lambda a, b: a + b, self.losses.values())

    @cached_property
    def parameters(self) -> int:
        """Numbers that are left in the factors."""
        shapes = self.whole.shapes
        return sum(loss.after * sum(shapes[path]) for path, loss in self.losses.items())

    @property
    def rule(self) -> Mapping[str, float]:
        """The option that decided, with its number."""
        return self.keep.given() if self.evidence is None else self.evidence.promise.rule

    @property
    def notes(self) -> list[str]:
        """Remarks for the user."""
        bits = self.whole.meta.bits
        if bits is None or self.total.dropped == 0:
            return [*self.whole.source.notes]
        left = f"the cut leaves the grid of {bits} bits: the output is not rounded"
        return [*self.whole.source.notes, left]

    @property
    def warnings(self) -> Sequence[str]:
        """Warnings about a rounded update; none after a search, which has tested it."""
        if self.rounding is None or self.survival is None or self.evidence is not None:
            return ()
        return [*self.rounding.check(self.survival)]

    def write(self, output: Path, *, force: bool) -> None:
        """Write the copy, with its certificate if a promise chose its size."""
        evidence, rounding, whole = self.evidence, self.rounding, self.whole
        small = whole.with_layers(self.layers).with_meta(self._meta())
        if rounding is not None:
            small = small.with_full(rounding.head.tensors)
        write_adapter(
            output,
            small,
            dtype="float32" if rounding is not None else self._dtype(),
            force=force,
            beside=partial(copy_companions, whole.source.directory),
            describe=partial(write_card, certify=None if evidence is None else evidence.certify),
        )

    def _meta(self) -> Any:
        """Return the metadata of the copy, with this step in its lineage."""
        meta = self.whole.meta
        entry = {
            "command": "prune",
            **self.rule,
            "components": [self.total.before, self.total.after],
            "parameters": [self.whole.parameters, self.parameters],
            "relative_error": self.total.relative_error,
            **({} if self.rounding is None else self.rounding.facts()),
            **({} if self.evidence is None else self.evidence.lineage()),
        }
        update = {
            "lineage": (*meta.lineage, entry),
            "ranks_start": {**self.whole.components(), **meta.ranks_start},
            "rounding_errors": self.errors or meta.rounding_errors,  # dropped if it leaves the grid
        }
        return meta.model_copy(update=update)

    def _dtype(self) -> str:
        """Return the copy's dtype: as stored, but float32 if a lossless copy would be rounded."""
        whole, source = self.whole, self.whole.source
        if source.dtype in {"float32", "float64"}:
            return "float32"
        # the scaling is folded into the factors; multiplying by a power of two changes no digit
        exact = source.config.is_plain and all(
            math.frexp(source.config.scaling(path))[0] == 0.5 for path in whole.paths
        )
        return source.dtype if self.total.dropped > 0 or exact else "float32"


def shrink(
    adapter: Adapter, keep: Keep, bits: int | None, *, head: bool, search: Search | None
) -> Shrunk:
    """Cut an adapter by a rule, or to the size that a search finds, and round its factors.

    Args:
        bits: of each number; None: nothing is rounded.
        head: round the head, too.
    """
    adapter.check_writable()
    check_one_rank(adapter, keep, promise=search is not None)
    rounding = None if bits is None else Rounding.of(adapter, bits, head=head)
    if search is not None:
        layers, losses, evidence = search(adapter, rounding)
        small = Shrunk(adapter, layers, losses, keep, evidence)
    else:
        small = Shrunk(adapter, *_by_rule(adapter, keep), keep)
    if rounding is None:
        return small
    layers, losses, errors, survival = rounding.applied(adapter.layers, small.layers, small.losses)
    return dataclasses.replace(
        small, layers=layers, losses=losses, rounding=rounding, errors=errors, survival=survival
    )


def _by_rule(adapter: Adapter, keep: Keep) -> tuple[Layers, dict[str, Loss]]:
    modules = len({*adapter.meta.ranks, *adapter.paths})
    layers, losses = prune_layers(adapter.layers, keep, modules=modules)
    left = ((loss.after, loss.squared) for loss in losses.values())
    check_left(keep, left, map(sum, adapter.shapes.values()))
    return layers, losses
