"""The loss that the test rows can certify, computed before anything is trained."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from sora_cli.recipe.recipe import Recipe
from sora_cli.run.certificate import Bound
from sora_cli.run.certify.carry import certifiable_drop
from sora_cli.run.encode import encode
from sora_cli.run.prepare import Prepared
from sora_cli.train.trainer import build_scorer

_EXACT = (
    "exact for right-or-wrong rows: Buehler's bound of the paired difference, in the order of "
    "Tango's score (Lloyd and Moldovan 2007)"
)
_APPROXIMATE = "approximate: BCa bootstrap over whole rows (Efron 1987)"
_FEW = 8  # rows that are scored to see what a row's score is


@dataclass(frozen=True)
class Carrying:
    """The bound that rows will give.

    Attributes:
        bound: with the smallest loss that they can be expected to certify.
        best_case: the smallest that they certify if no row differs at all; None: not known for
            this metric.
    """

    bound: Bound
    best_case: float | None

    def can_carry(self, max_drop: float) -> bool:
        """Tell whether a test could pass at all."""
        return self.best_case is None or self.best_case <= max_drop


def carrying(recipe: Recipe, ready: Prepared, rows: int, confidence: float) -> Carrying:
    """Return what so many test rows can carry.

    A few rows are scored by the untrained model, since only its scores say whether a row is right
    or wrong. That leaves no trace in a run: its trainer seeds all generators when it is made.

    Args:
        recipe: of the full run.
    """
    few = ready.rows.select.select(range(min(_FEW, len(ready.rows.select))))
    encoded = encode(ready.task, ready.base, few, ready.rows.origin(ready.rows.select))
    with tempfile.TemporaryDirectory() as scratch:  # a trainer makes its directory
        scores = build_scorer(recipe, ready.task, ready.base, Path(scratch)).row_scores(encoded)
    return carried(rows, confidence, right_or_wrong=scores.is_right_or_wrong)


def carried(rows: int, confidence: float, *, right_or_wrong: bool) -> Carrying:
    """Return the same where it is known whether a row is right or wrong."""
    if not right_or_wrong:
        return Carrying(Bound(method=_APPROXIMATE, exact=False, smallest_drop=None), None)
    smallest = certifiable_drop(rows, confidence=confidence)
    best = certifiable_drop(rows, differing=0, confidence=confidence)
    return Carrying(Bound(method=_EXACT, exact=True, smallest_drop=smallest), best)
