"""The smallest drop that so many rows can certify.

Nothing here looks at a drop: it is computed before a test, from the number of rows and from how
often the two models may differ, for a small model that is truly as good as the large one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import ndtri
from scipy.stats import binom

from sora_cli.recipe.tolerance import CONFIDENCE
from sora_cli.search.bca import influences
from sora_cli.search.certificate import BoundMethod, Screened
from sora_cli.search.paired import exact_bound, score_limit

if TYPE_CHECKING:
    from sora_cli.tasks.row_scores import RowScores

POWER = 0.8
DIFFERING = 0.025
"""Share of rows on which two sizes of one adapter are taken to differ, where nothing is known."""
_MANY = (
    2000  # differing rows: their outcomes are too many to list, and the drop is as good as normal
)
_TAIL = 6.0  # standard deviations of outcomes that are counted
_EXACT = (
    "exact for right-or-wrong rows: Buehler's bound of the paired difference, in the order of "
    "Tango's score (Lloyd and Moldovan 2007)"
)
_APPROXIMATE = "approximate: BCa bootstrap over whole rows (Efron 1987)"


@dataclass(frozen=True)
class Certifiable:
    """The loss that test rows can certify, known before a size is tested on them.

    Attributes:
        bound: how they bound a drop, with the smallest that they can be expected to certify.
        best_case: the smallest that they certify if no row differs at all; None: not known for
            this metric.
    """

    bound: BoundMethod
    best_case: float | None

    @classmethod
    def on(cls, rows: int, confidence: float, *, right_or_wrong: bool) -> Certifiable:
        """Return what so many test rows can certify."""
        if not right_or_wrong:
            return cls(BoundMethod(method=_APPROXIMATE, exact=False, smallest_drop=None), None)
        smallest = certifiable_drop(rows, confidence=confidence)
        best = certifiable_drop(rows, differing=0, confidence=confidence)
        return cls(BoundMethod(method=_EXACT, exact=True, smallest_drop=smallest), best)

    def may_pass(self, max_drop: float) -> bool:
        """Tell whether a test of a tolerated loss could pass at all."""
        return self.best_case is None or self.best_case <= max_drop

    def screened(self, sizes: Sequence[Screened]) -> BoundMethod:
        """Return the bound once sizes are screened: of an approximate one that says how small."""
        named = [size for size in sizes if size.named]
        if self.bound.smallest_drop is not None or not named:
            return self.bound
        return self.bound.model_copy(update={"smallest_drop": named[0].certifiable})


@lru_cache(maxsize=2**12)
def certifiable_drop(
    rows: int,
    *,
    differing: float = DIFFERING,
    confidence: float = CONFIDENCE,
    power: float = POWER,
) -> float:
    """Return the smallest drop that rows of right or wrong can certify, if the true drop is 0.

    Args:
        rows: that test.
        differing: share of the rows on which the models differ, half of them either way; 0: none,
            which is the best that can be.
        power: how often the test is to succeed.
    """
    if differing <= 0:
        return exact_bound(0, 0, rows, confidence)
    if rows * differing > _MANY:
        return float(ndtri(confidence) + ndtri(power)) * math.sqrt(differing / rows)
    lost, won, chance = _outcomes(rows, min(differing, 1.0))
    order = np.argsort(score_limit(lost, won, rows, confidence), kind="stable")
    place = order[np.searchsorted(np.cumsum(chance[order]), power * chance.sum())]
    return exact_bound(int(lost[place]), int(won[place]), rows, confidence)


def certifiable_from(
    full: RowScores,
    small: RowScores,
    rows: int,
    *,
    confidence: float = CONFIDENCE,
    power: float = POWER,
) -> float:
    """Return the same from the scores of two models on other rows, such as those that screened.

    Args:
        full, small: their scores there, of which only the differing rows, or the spread, are used.
        rows: that test.
    """
    if full.is_right_or_wrong:
        differing = float((full.parts != small.parts).any(axis=1).mean())
        return certifiable_drop(rows, differing=differing, confidence=confidence, power=power)
    spread = float(influences(full, small).std(ddof=1))
    return float(ndtri(confidence) + ndtri(power)) * spread / math.sqrt(rows)


def rows_needed(
    drop: float,
    *,
    differing: float = DIFFERING,
    confidence: float = CONFIDENCE,
    power: float = POWER,
) -> int:
    """Return about how many rows of right or wrong certify a drop, if the true drop is 0.

    The score test's own power, by the normal distribution; never fewer than with no row differing.
    """
    z = float(ndtri(confidence) + ndtri(power))
    least = math.log1p(-confidence) / math.log1p(-drop)
    return math.ceil(max(z * z * differing / drop**2, least))


def _outcomes(rows: int, differing: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the rows lost and won of each outcome that occurs, and its probability."""
    mean, spread = rows * differing, math.sqrt(rows * differing * (1 - differing))
    low = max(int(mean - _TAIL * spread - _TAIL), 0)
    high = min(int(mean + _TAIL * spread + _TAIL) + 1, rows)
    total = np.arange(low, high + 1)
    lost = np.concatenate([np.arange(n + 1) for n in total])
    total = np.repeat(total, total + 1)
    chance = binom.pmf(total, rows, differing) * binom.pmf(lost, total, 0.5)
    kept = chance > 1e-9
    return lost[kept], (total - lost)[kept], chance[kept]
