"""An exact upper bound of the share of rows on which two models answer differently.

No label is needed: a row differs or it does not, so the number of differing rows is binomial, and
the bound is that of Clopper and Pearson (1934, Biometrika 26, 404-413). It holds its confidence for
every number of rows. Where a row is right or wrong it also bounds the drop: a model can lose no
more rows than it answers differently.
"""

from __future__ import annotations

import math

from scipy.stats import beta, binom


def share_bound(differing: int, rows: int, confidence: float) -> float:
    """Return the one-sided upper bound of the share of rows that differ.

    Args:
        differing: number of differing rows among `rows`.
    """
    if differing >= rows:
        return 1.0
    return float(beta.ppf(confidence, differing + 1, rows - differing))


def certifiable_share(rows: int, share: float, confidence: float, power: float) -> float:
    """Return the smallest share that rows can certify with this power.

    Args:
        rows: number of test rows.
        share: true share of rows that differ; 0: the best case.
        power: probability that the test passes.
    """
    return share_bound(int(binom.ppf(power, rows, share)), rows, confidence)


def allowed_rows(promised: float, rows: int, confidence: float) -> int | None:
    """Return how many rows may differ for a share to be certified; None: not even none may."""
    low, high = -1, rows  # share_bound rises with the number of differing rows
    while high - low > 1:
        middle = (low + high) // 2
        if share_bound(middle, rows, confidence) <= promised:
            low = middle
        else:
            high = middle
    return None if low < 0 else low


def chance_by_answers(promised: float, rows: int, share: float, confidence: float) -> float:
    """Return the probability that rows certify a share.

    Args:
        rows: number of test rows.
        share: true share of rows that differ.
    """
    allowed = allowed_rows(promised, rows, confidence)
    return 0.0 if allowed is None else float(binom.cdf(allowed, rows, share))


def rows_for_none(promised: float, confidence: float) -> int | None:
    """Return how many rows certify a share if none of them differs; None: no number does."""
    if promised <= 0:
        return None
    return math.ceil(math.log1p(-confidence) / math.log1p(-promised))
