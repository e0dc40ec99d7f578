"""An exact upper confidence bound of the drop in accuracy between two models, on paired rows.

Each model gets each row right or wrong. Only the rows that differ matter: the first model alone
gets `lost` rows right, the second alone `won` rows; the drop is `(lost - won) / rows`. These counts
are multinomial with two unknown probabilities, p_lost and p_won; p_won is a nuisance parameter.

The bound is Buehler's. All outcomes (lost, won) are put in an order, by the limit that inverts
Tango's score test. The bound is the largest drop for which, with some p_won, the observed outcome
or an earlier one in this order still has a probability above 1 - confidence. Nothing is
approximated, so the coverage is at least `confidence` for any number of rows and any probabilities,
and no smaller bound in this order keeps the confidence. p_won is searched only within a confidence
interval of p_won, whose error probability is subtracted from the level (Berger and Boos).

Rows that differ and have no label count as lost. The usual bound is then not shown to be safe: the
interval of p_won moves with `won`, and a bound may rise with `won`. Therefore p_won is searched in
all intervals that some labels could give, from the lower limit at `won` to the upper limit at
`won + unknown`. In the order every other outcome that labels could give comes before the
one with all of them lost, so the region contains theirs, too: the bound is at least theirs
(docs/explanation/certificate.md has the proof).

Sources: Buehler 1957, JASA 52, 482-493; Lloyd and Moldovan 2007, Statistics in Medicine 26,
3369-3384 (this order for this problem); Tango 1998, Statistics in Medicine 17, 891-908; Berger and
Boos 1994, JASA 89, 1012-1016; Sidik 2003, Statistics in Medicine 22, 265-278 (the score's regions
are convex, so the bound is on the safe side for larger drops, too).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, partial

import numpy as np
from scipy.optimize import brentq
from scipy.special import betainc, gammaln, ndtri, xlog1py, xlogy
from scipy.stats import beta

NUISANCE = 1e-3  # share of the level that is spent on the interval of p_won
_TAIL = 8.0  # outcomes beyond these standard deviations are left out: less than 1e-14 of them
_GRID = 25  # values of p_won that are tried
# of finer steps, at the end around all values that may be the best: around one of them alone the
# bound of 8 lost and 8 won rows of 50 was 0.00044 too small
_ROUNDS, _FINER = 4, 9
_NOTHING = 1e-24  # outcomes less likely are not looked at: a million of them change no digit
_CLOSE = 1e-8  # accuracy of the bound; it is added, so that the bound stays on the safe side
_HALVINGS = 40  # of an interval of width at most 2: to 2e-12


@lru_cache(maxsize=2**16)
def exact_bound(lost: int, won: int, rows: int, confidence: float, unknown: int = 0) -> float:
    """Return the one-sided upper bound of the drop, from -1 to 1.

    Args:
        lost: rows that the first model alone gets right, those without a label included.
        won: rows that the second model alone gets right.
        rows: number of rows, with those on which the models agree.
        confidence: at least 0.5 and below 1.
        unknown: of the lost rows, those on which the models differ and that have no label.
    """
    if min(lost, won) < 0 or lost + won > rows or rows < 1:
        raise ValueError(f"{lost} rows lost and {won} won of {rows}")
    if not 0 <= unknown <= lost:
        raise ValueError(f"{unknown} of {lost} lost rows without a label")
    if not 0.5 <= confidence < 1:
        raise ValueError(f"a confidence of {confidence}")
    level = 1 - confidence
    nuisance = level * NUISANCE
    shares = _interval(won, rows, nuisance)
    points = _GRID
    if unknown:
        wide = shares[0], _interval(won + unknown, rows, nuisance)[1]
        # steps as small as in one interval, of the square roots (see the region)
        points = math.ceil((_GRID - 1) * _width(wide) / _width(shares)) + 1
        shares = wide
    limit = float(score_limit(np.array([lost]), np.array([won]), rows, confidence)[0])
    region = _Region.below(limit, lost, won, rows, shares, confidence, points)

    def excess(drop: float, *, everywhere: bool = False) -> float:
        return region.largest_probability(drop, everywhere=everywhere) - (level - nuisance)

    # bracket the root, starting from the score limit: the bound is near it, and usually above it
    low = high = limit
    step = max(limit - (lost - won) / rows, 1 / rows) / 8
    while low > -1 and excess(low) <= 0:
        low, step = max(low - step, -1.0), step * 2
    if excess(low) <= 0:
        return low
    bound = _root(excess, low, high, step)
    # nearly always that is all; else another p_won, which is less likely where it is coarsely
    # searched, leaves a larger drop possible
    if bound < 1 and excess(bound, everywhere=True) > 0:
        bound = _root(partial(excess, everywhere=True), bound, bound, 1e-4)
    return bound


def _root(excess: Callable[[float], float], low: float, high: float, step: float) -> float:
    """Return the drop above which nothing is in excess; at `low` something is."""
    while excess(high) > 0:
        if high == 1:
            return 1.0
        high, step = min(high + step, 1.0), step * 2
    return min(float(brentq(excess, low, high, xtol=_CLOSE)) + _CLOSE, 1.0)


def score_limit(lost: np.ndarray, won: np.ndarray, rows: int, confidence: float) -> np.ndarray:
    """Return the largest drops that Tango's one-sided score test does not reject, (outcomes,).

    Their coverage is near `confidence`, but below it for some probabilities. So they are not used
    as bounds; they only order the outcomes.
    """
    z = float(ndtri(confidence))
    low, high = (lost - won) / rows, np.ones(len(lost))
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        kept = score(lost, won, rows, middle) > -z
        low, high = np.where(kept, middle, low), np.where(kept, high, middle)
    return high


def score(lost: np.ndarray, won: np.ndarray, rows: int, drop: np.ndarray | float) -> np.ndarray:
    """Return Tango's score statistic: observed minus assumed drop, in standard deviations."""
    # the maximum-likelihood p_won under the assumed drop solves a quadratic (Tango 1998)
    linear = (2 * rows - lost + won) * drop - lost - won
    root = linear * linear + 8 * rows * won * drop * (1 - drop)
    share = (np.sqrt(np.maximum(root, 0)) - linear) / (4 * rows)  # p_won
    variance = rows * (2 * share + drop * (1 - drop))
    difference = lost - won - rows * drop
    with np.errstate(divide="ignore", invalid="ignore"):
        statistic = difference / np.sqrt(np.maximum(variance, 0))
    return np.where(difference == 0, 0.0, statistic)


def _interval(won: int, rows: int, error: float) -> tuple[float, float]:
    """Return Clopper and Pearson's interval of p_won, with error probability at most `error`."""
    low = 0.0 if won == 0 else float(beta.ppf(error / 2, won, rows - won + 1))
    high = 1.0 if won == rows else float(beta.ppf(1 - error / 2, won + 1, rows - won))
    return low, high


def _width(shares: tuple[float, float]) -> float:
    return math.sqrt(shares[1]) - math.sqrt(shares[0])


class _Region:
    """The outcomes up to a place in the order: for each number `won`, the largest `lost`."""

    def __init__(
        self,
        won: np.ndarray,
        most: np.ndarray,
        rows: int,
        shares: tuple[float, float],
        points: int,
    ) -> None:
        self.won, self.most, self.rows, self.shares = won, most, rows, shares
        self.points = points
        self._ways = gammaln(rows + 1) - gammaln(won + 1) - gammaln(rows - won + 1)
        self._others = (rows - won).astype(float)
        self._beyond = self._others - most  # 0 where `most` is all of them

    @classmethod
    def below(
        cls,
        limit: float,
        lost: int,
        won: int,
        rows: int,
        shares: tuple[float, float],
        confidence: float,
        points: int,
    ) -> _Region:
        """Return the outcomes with a score limit of at most `limit`, and the observed outcome."""
        z = float(ndtri(confidence))
        spread = [_TAIL * np.sqrt(rows * p * (1 - p)) + 2 * _TAIL for p in shares]
        first = max(int(rows * shares[0] - spread[0]), 0)
        last = min(int(rows * shares[1] + spread[1]) + 1, rows)
        wons = np.arange(first, last + 1)
        low, high = np.full(len(wons), -1), rows - wons + 1  # in the region, and out of it
        while (high - low > 1).any():
            middle = (low + high) // 2
            inside = score(np.maximum(middle, 0), wons, rows, limit) <= -z
            inside &= high - low > 1
            outside = ~inside & (high - low > 1)
            low, high = np.where(inside, middle, low), np.where(outside, middle, high)
        # rounding must not exclude the observed outcome, nor those with the same lost and more won
        low = np.where(wons >= won, np.maximum(low, lost), low)
        some = low >= 0
        return cls(wons[some], np.minimum(low, rows - wons)[some], rows, shares, points)

    def largest_probability(self, drop: float, *, everywhere: bool) -> float:
        """Return the region's largest probability at a drop, over all p_won in the interval.

        Args:
            everywhere: take finer steps around all values that may be the best, not around one.
        """
        low = max(self.shares[0], -drop, 0.0)
        high = min(self.shares[1], (1 - drop) / 2)
        if high < low:  # no p_won in the interval is possible with this drop
            return 0.0
        # even steps in sqrt(p_won): the standard deviation of `won` grows with it
        grid = np.linspace(np.sqrt(low), np.sqrt(high), self.points)
        coarse = self._probability(grid**2, drop)
        if not everywhere:
            return self._around(grid, coarse, int(coarse.argmax()), drop)
        before, after = np.r_[-1, coarse[:-1]], np.r_[coarse[1:], -1]
        tops = np.flatnonzero((coarse >= before) & (coarse >= after) & (coarse >= coarse.max() / 2))
        return max(self._around(grid, coarse, int(top), drop) for top in tops)

    def _around(self, grid: np.ndarray, found: np.ndarray, best: int, drop: float) -> float:
        """Return the largest probability near a place of a grid, in finer steps."""
        for _ in range(_ROUNDS):
            first, last = max(best - 1, 0), min(best + 1, len(grid) - 1)
            grid = np.linspace(grid[first], grid[last], _FINER)
            inner = self._probability(grid[1:-1] ** 2, drop)
            found = np.concatenate([found[[first]], inner, found[[last]]])
            best = int(found.argmax())
        if not 0 < best < len(grid) - 1:
            return float(found[best])
        before, largest, after = found[best - 1 : best + 2]
        bend = 2 * largest - before - after  # of the parabola through the three
        return float(largest + (after - before) ** 2 / (8 * bend) if bend > 0 else largest)

    def _probability(self, shares: np.ndarray, drop: float) -> np.ndarray:
        """Return the region's probability for each p_won, (shares,)."""
        p = shares[:, None]
        rest = np.clip((p + drop) / np.maximum(1 - p, 1e-300), 0, 1)  # p_lost of rows not won
        weights = np.exp(self._ways + xlogy(self.won, p) + xlog1py(self._others, -p))
        # P(at most `most` of the rows - won others are lost), binomial, by the incomplete beta
        # function; it is 1 where `most` is all of them, which `betainc` does not return
        slow = (weights > _NOTHING) & (self._beyond > 0)
        weights *= betainc(
            self._beyond, self.most + 1.0, 1 - rest, where=slow, out=np.ones_like(weights)
        )
        return np.asarray(weights.sum(axis=1))
