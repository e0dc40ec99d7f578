"""The difference of two models' outputs for the same inputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sora_cli.core.errors import SoraError
from sora_cli.verify.outputs import HIDDEN, SPANS, Values, positions
from sora_cli.verify.probes import Probe


@dataclass(frozen=True)
class Difference:
    """The difference of one output of both models; padding does not count.

    Attributes:
        numbers: number of values compared.
        largest, mean: of the absolute differences.
        scale: the largest absolute value on either side.
        agree, decisions: rows (or tokens) with the same largest class on both sides, and all rows;
            None if there are no classes.
    """

    name: str
    numbers: int
    largest: float
    mean: float
    scale: float
    agree: int | None
    decisions: int | None

    @property
    def relative(self) -> float:
        """The largest difference divided by the largest value."""
        if self.largest == 0:
            return 0.0
        return self.largest / self.scale


def compare(a: Values, b: Values, probe: Probe, *, decides: bool) -> tuple[Difference, ...]:
    """Measure the difference of two models' outputs.

    Args:
        decides: the largest output of a row or token is a decision.
    """
    for name in (a.keys() | b.keys()) - {HIDDEN}:
        shapes = [list(v[name].shape[1:]) if name in v else "none" for v in (a, b)]
        if shapes[0] != shapes[1]:
            raise SoraError(
                f"these are different kinds of models: their {name} have the shapes "
                f"{shapes[0]} and {shapes[1]} a row",
                hint="is one of them for other classes, or of another base model?",
            )
    return tuple(
        _difference(name, a[name], b[name], probe, decides) for name in a if name != HIDDEN
    )


def _difference(name: str, a: Tensor, b: Tensor, probe: Probe, decides: bool) -> Difference:
    """Compare (rows, classes), (rows, positions, classes), or spans (rows, positions)."""
    mask = probe.mask
    # a span begins and ends at one position of the row: padding must not win that choice
    if mask is not None and name in SPANS:
        choices = (a.masked_fill(~mask, -math.inf), b.masked_fill(~mask, -math.inf))
        a, b = positions(name, a, probe), positions(name, b, probe)
    else:
        choices = a, b = positions(name, a, probe), positions(name, b, probe)
    apart = (a - b).abs()
    same = choices[0].argmax(-1) == choices[1].argmax(-1) if decides else None
    return Difference(
        name=name,
        numbers=apart.numel(),
        largest=float(apart.max()),
        mean=float(apart.mean(dtype=torch.float64)),
        scale=float(max(a.abs().max(), b.abs().max())),
        agree=None if same is None else int(same.sum()),
        decisions=None if same is None else same.numel(),
    )


def largest_relative(differences: Sequence[Difference]) -> float:
    """Return the largest difference of all outputs, each relative to its largest value."""
    return max(difference.relative for difference in differences)
