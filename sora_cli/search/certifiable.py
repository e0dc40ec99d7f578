"""The smallest drop that a number of right-or-wrong test rows can certify.

It is computed before a test, without a look at any drop: from the number of rows and from the share
of rows on which the two models may differ, for a small model whose true drop is 0. Where labels are
few, it is computed for one that loses all of these rows, too.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from scipy.special import ndtr, ndtri
from scipy.stats import binom, nbinom

from sora_cli.recipe.tolerance import CONFIDENCE
from sora_cli.search.paired import NUISANCE, exact_bound, score_limit
from sora_cli.search.statistic import DIFFERING, POWER

# above this many differing rows their outcomes are too many to list; the drop is nearly normal
_MANY = 2000
_SOME = 50  # above it the score limit is near the exact bound, which takes seconds for many rows
_TAIL = 6.0  # outcomes are counted up to this many standard deviations from the mean


@lru_cache(maxsize=2**12)
def certifiable_drop(
    rows: int,
    *,
    differing: float = DIFFERING,
    confidence: float = CONFIDENCE,
    power: float = POWER,
) -> float:
    """Return the smallest drop that right-or-wrong rows can certify, if the true drop is 0.

    Args:
        rows: number of test rows.
        differing: share of rows on which the models differ, half lost and half won; 0: the best
            case.
        power: probability that the test passes.
    """
    if differing <= 0:
        return exact_bound(0, 0, rows, confidence)
    if rows * differing > _MANY:
        # normal: the drop's standard error is sqrt(differing / rows) if the true drop is 0
        return float(ndtri(confidence) + ndtri(power)) * math.sqrt(differing / rows)
    lost, won, chance = _outcomes(rows, min(differing, 1.0))
    # the exact bound is slow: sort by the score limit, which has the same order, and bound only the
    # outcome at the quantile `power`
    order = np.argsort(score_limit(lost, won, rows, confidence), kind="stable")
    place = order[np.searchsorted(np.cumsum(chance[order]), power * chance.sum())]
    return exact_bound(int(lost[place]), int(won[place]), rows, confidence)


@lru_cache(maxsize=2**12)
def chance_by_labels(max_drop: float, rows: int, differing: float, confidence: float) -> float:
    """Return the probability that right-or-wrong rows certify a drop, if the true drop is 0.

    Args:
        rows: number of test rows.
        differing: share of rows on which the models differ, half lost and half won.
    """
    if rows * differing > _MANY:  # normal, as in `certifiable_drop`
        return float(ndtr(max_drop / math.sqrt(differing / rows) - ndtri(confidence)))
    lost, won, chance = _outcomes(rows, differing)
    limits = score_limit(lost, won, rows, confidence)
    if rows * differing > _SOME:
        return float(chance[limits <= max_drop].sum() / chance.sum())
    order = np.argsort(limits, kind="stable")
    # the exact bound rises in this order, so few of its values tell how many outcomes pass
    low, high = -1, len(order)
    while high - low > 1:
        middle = (low + high) // 2
        place = order[middle]
        bound = exact_bound(int(lost[place]), int(won[place]), rows, confidence)
        low, high = (middle, high) if bound <= max_drop else (low, middle)
    return float(chance[order[:high]].sum() / chance.sum())


def rows_needed(
    drop: float,
    *,
    differing: float = DIFFERING,
    confidence: float = CONFIDENCE,
    power: float = POWER,
) -> int:
    """Return the least number of right-or-wrong rows that certify a drop, if the true drop is 0."""

    def too_few(rows: int) -> bool:
        known = certifiable_drop(rows, differing=differing, confidence=confidence, power=power)
        return known > drop

    # if no row differs the bound is about 1 - (1 - confidence)^(1 / rows): fewer rows certify less
    low = max(math.floor(math.log1p(-confidence) / math.log1p(-drop)) - 1, 1)
    high = 2 * low
    while too_few(high):
        low, high = high, 2 * high
    while high - low > 1:  # the drop falls with the rows
        middle = (low + high) // 2
        low, high = (middle, high) if too_few(middle) else (low, middle)
    return high


def rows_for_drop(
    drop: float, differing: float, max_drop: float, confidence: float, power: float = POWER
) -> int | None:
    """Return about how many right-or-wrong rows certify that a true drop is at most `max_drop`.

    Args:
        drop: the true drop, as far as it is known.
        differing: share of rows that are lost or won.

    Returns:
        The number, by the normal approximation; None: the drop is not below `max_drop`.
    """
    left = max_drop - drop
    if left <= 0:
        return None
    deviations = float(ndtri(confidence) + ndtri(power))
    return math.ceil(deviations**2 * (differing - drop**2) / left**2)


def drop_if_lost(
    rows: int, differing: float, confidence: float = CONFIDENCE, power: float = POWER
) -> float:
    """Return the drop that right-or-wrong rows certify if each row that differs is lost."""
    return exact_bound(int(binom.ppf(power, rows, differing)), 0, rows, confidence)


def rows_if_lost(
    drop: float, differing: float, most: int,
    confidence: float = CONFIDENCE, power: float = POWER,
) -> int | None:  # fmt: skip
    """Return the least number of rows that certify a drop if each row that differs is lost.

    Args:
        most: the largest number of rows.

    Returns:
        The number; None: it is larger than `most`.
    """
    # `exact_bound` with no won row is Clopper and Pearson's limit, but for 1e-3 of the level
    sure = confidence + NUISANCE * (1 - confidence)
    for lost in range(most):
        rows = lost + 1 + int(nbinom.ppf(sure, lost + 1, drop))
        if rows > most:
            break
        if binom.ppf(power, rows, differing) <= lost:
            return rows
    return None


def _outcomes(rows: int, differing: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return all likely outcomes: rows lost, rows won, and the probability of each."""
    mean, spread = rows * differing, math.sqrt(rows * differing * (1 - differing))
    low = max(int(mean - _TAIL * spread - _TAIL), 0)
    high = min(int(mean + _TAIL * spread + _TAIL) + 1, rows)
    total = np.arange(low, high + 1)
    lost = np.concatenate([np.arange(n + 1) for n in total])
    total = np.repeat(total, total + 1)
    chance = binom.pmf(total, rows, differing) * binom.pmf(lost, total, 0.5)
    kept = chance > 1e-9
    return lost[kept], (total - lost)[kept], chance[kept]
