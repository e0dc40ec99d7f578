"""The bound that test rows give: what they can carry, and the test of a size on them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sora_cli.search.bounds import drop_bound
from sora_cli.search.certifiable import certifiable_drop
from sora_cli.search.certificate import Bound, Promise, Screened, SizeTest
from sora_cli.tasks.row_scores import RowScores

_EXACT = (
    "exact for right-or-wrong rows: Buehler's bound of the paired difference, in the order of "
    "Tango's score (Lloyd and Moldovan 2007)"
)
_APPROXIMATE = "approximate: BCa bootstrap over whole rows (Efron 1987)"


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

    def screened(self, sizes: Sequence[Screened]) -> Bound:
        """Return the bound once sizes are screened: of an approximate one that says how small."""
        named = [size for size in sizes if size.named]
        if self.bound.smallest_drop is not None or not named:
            return self.bound
        return self.bound.model_copy(update={"smallest_drop": named[0].certifiable})


def carried(rows: int, confidence: float, *, right_or_wrong: bool) -> Carrying:
    """Return the bound of so many test rows, and what they can carry."""
    if not right_or_wrong:
        return Carrying(Bound(method=_APPROXIMATE, exact=False, smallest_drop=None), None)
    smallest = certifiable_drop(rows, confidence=confidence)
    best = certifiable_drop(rows, differing=0, confidence=confidence)
    return Carrying(Bound(method=_EXACT, exact=True, smallest_drop=smallest), best)


def judged(full: RowScores, small: RowScores, promise: Promise, seed: int) -> SizeTest:
    """Return a size's test on the test rows.

    Args:
        full, small: the scores at full rank and of the size, on the same rows.
        seed: of the resamples, where the bound is approximate.
    """
    found = drop_bound(full, small, promise.confidence, seed=seed)
    return SizeTest(
        score=small.value,
        drop=found.drop,
        upper=math.nan if found.upper is None else found.upper,
        kept=found.keeps(promise.max_drop),
        differing=found.differing,
        refused=found.reason,
        passed_over=found.passes_over(promise.max_drop),
    )
