"""An approximate upper bound of the drop between two models, for any metric: the BCa bootstrap.

Rows are resampled with replacement, the same rows for both models, and the drop is computed on each
resample. BCa (bias-corrected and accelerated) picks the quantile of these drops that is correct to
second order. The approximation needs many rows: if the models differ on few of them, the bound is
much too small, and `bca_bound` refuses.

scipy.stats.bootstrap computes the same bound without Student's t, and a test compares the two. It
is not used here because it gathers every row of every resample and of every jackknife sample. These
metrics are sums over rows, so a product of counts and per-row parts is enough.

Source: Efron 1987, JASA 82, 171-185; Efron and Tibshirani 1993, chapter 14 (equations 14.9, 14.10,
14.14 and 14.15); Hesterberg 2015, The American Statistician 69, 371-386, for few rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy.special import ndtr, ndtri, stdtrit

from sora_cli.search.statistic import FEWEST_DIFFERING, FEWEST_ROWS, RESAMPLES

if TYPE_CHECKING:
    from sora_cli.tasks.row_scores import RowScores

Refusal = Literal["not finite", "few rows", "few rows differ", "constant", "extreme"]
"""Reasons for refusing an approximate bound; `REASONS` has a sentence for each."""

REASONS: dict[Refusal, str] = {
    "not finite": "a score is not a finite number",
    "few rows": "fewer than {FEWEST_ROWS} rows",
    "few rows differ": "the models differ on fewer than {FEWEST_DIFFERING} rows",
    "constant": "the drop is the same in all resamples",
    "extreme": "the drop lies at the edge of its resamples",
}
_CELLS = 2**17  # weights made at a time: 1 MiB of float64, small enough for a processor's cache


class BootstrapRefusedError(ValueError):
    """These rows give no approximate bound; `reason` says why."""

    def __init__(self, reason: Refusal) -> None:
        words = {"FEWEST_ROWS": FEWEST_ROWS, "FEWEST_DIFFERING": FEWEST_DIFFERING}
        super().__init__(REASONS[reason].format(**words))
        self.reason: Refusal = reason


def bca_bound(
    full: RowScores,
    small: RowScores,
    confidence: float,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> float:
    """Return the approximate one-sided upper bound of the drop, in the metric's unit.

    Args:
        full, small: scores of two models by the same metric on the same rows.
        seed: seed of the resamples.

    Raises:
        BootstrapRefusedError: too few rows, or too few that differ, for the approximation.
    """
    rows, observed = len(full), drop_on(full, small)
    if not np.isfinite(observed):
        raise BootstrapRefusedError("not finite")
    if rows < FEWEST_ROWS:
        raise BootstrapRefusedError("few rows")
    differing = differing_rows(full, small)
    if differing < FEWEST_DIFFERING:
        raise BootstrapRefusedError("few rows differ")
    kinds = _Kinds.of(full, small)
    resampled = np.concatenate([kinds.drops(w) for w in kinds.draws(resamples, seed)])
    if not np.isfinite(resampled).all():
        raise BootstrapRefusedError("not finite")
    influence = kinds.influences()
    # rounding makes equal drops differ by about 1e-16: such a spread is none
    if np.ptp(resampled) <= 1e-12 * max(1.0, np.abs(resampled).max()) or not influence.any():
        raise BootstrapRefusedError("constant")
    # z0 (14.14), with half of the ties counted as below: coarse metrics have many
    below, up_to = np.count_nonzero(resampled < observed), np.count_nonzero(resampled <= observed)
    bias = float(ndtri((below + up_to) / (2 * resamples)))
    # the acceleration a (14.15), from the jackknife
    acceleration = float((influence**3).sum() / (6 * (influence**2).sum() ** 1.5))
    shift = bias + _expanded(confidence, differing)
    scale = 1 - acceleration * shift
    if not np.isfinite(bias) or scale <= 0:
        raise BootstrapRefusedError("extreme")
    return float(np.quantile(resampled, ndtr(bias + shift / scale)))  # (14.9) and (14.10)


def _expanded(confidence: float, differing: int) -> float:
    """Return the normal quantile, widened for few differing rows.

    With m rows, resamples spread too little by a factor of sqrt((m - 1) / m), and the spread itself
    is estimated. So sqrt(m / (m - 1)) times Student's t replaces the normal quantile (Hesterberg
    2015, section 4.3). m counts only differing rows: the others carry no information on the spread.
    """
    degrees = differing - 1
    return float(np.sqrt(differing / degrees) * stdtrit(degrees, confidence))


def drops(full: RowScores, small: RowScores, weights: np.ndarray) -> np.ndarray:
    """Return the drop from `full` to `small` for each set of row weights, (sets,)."""
    difference = full.weighted(weights) - small.weighted(weights)
    return np.asarray(difference if full.greater_is_better else -difference)


def drop_on(full: RowScores, small: RowScores) -> float:
    """Return the drop of the metric from `full` to `small` on all rows."""
    return float(drops(full, small, np.ones((1, len(full))))[0])


def differing_rows(full: RowScores, small: RowScores) -> int:
    """Return the number of rows on which two models' scores differ."""
    return int(full.differs(small).sum())


def influences(full: RowScores, small: RowScores) -> np.ndarray:
    """Return each row's influence on the drop, (rows,), by leaving the row out (the jackknife).

    The drop's standard error is about their standard deviation / sqrt(rows).
    """
    return _Kinds.of(full, small).influences()


@dataclass(frozen=True)
class _Kinds:
    """Rows grouped by equal scores, so that resampling and the jackknife work on groups.

    With classes there are only a few kinds (predicted and true class of both models), however many
    rows there are. With real numbers nearly every row is its own kind.

    Attributes:
        full, small: scores of one row of each kind.
        times: number of rows of each kind, (kinds,).
        kind: index of each row's kind, (rows,).
    """

    full: RowScores
    small: RowScores
    times: np.ndarray
    kind: np.ndarray

    @classmethod
    def of(cls, full: RowScores, small: RowScores) -> _Kinds:
        """Group rows by equal scores; if few rows are equal, every row is its own kind."""
        rows = len(full)
        both = np.concatenate([full.parts, small.parts], axis=1)
        _, first, kind, times = np.unique(
            both, axis=0, return_index=True, return_inverse=True, return_counts=True
        )
        if len(first) > rows / 2:
            return cls(full, small, np.ones(rows), np.arange(rows))
        # not `take`: the rows of a kind keep their shares of a query
        one, other = (replace(scores, parts=scores.parts[first]) for scores in (full, small))
        return cls(one, other, times.astype(np.float64), kind.ravel())

    def drops(self, weights: np.ndarray) -> np.ndarray:
        """Return the drop for each set of weights over kinds, (sets,)."""
        return drops(self.full, self.small, weights)

    def draws(self, resamples: int, seed: int) -> Iterator[np.ndarray]:
        """Yield the counts of each kind in the resamples, (sets, kinds), a few sets at a time."""
        kinds, rows = len(self.times), len(self.kind)
        generator, most = np.random.default_rng(seed), max(_CELLS // kinds, 1)
        for first in range(0, resamples, most):
            sets = min(most, resamples - first)
            if kinds < rows:
                # counts of draws with replacement, grouped by kind, are multinomial
                counts = generator.multinomial(rows, self.times / rows, size=sets)
            else:
                # one bincount for all sets: each set's draws get a range of numbers of their own
                drawn = (
                    generator.integers(rows, size=(sets, rows)) + rows * np.arange(sets)[:, None]
                )
                counts = np.bincount(drawn.ravel(), minlength=sets * rows).reshape(sets, rows)
            yield counts.astype(np.float64)

    def influences(self) -> np.ndarray:
        """Return each row's influence on the drop, (rows,)."""
        kinds, rows = len(self.times), len(self.kind)
        most = max(_CELLS // kinds, 1)
        left = []
        for first in range(0, kinds, most):
            sets = min(most, kinds - first)
            weights = np.tile(self.times, (sets, 1))
            weights[np.arange(sets), first + np.arange(sets)] -= 1
            left.append(self.drops(weights))
        without = np.concatenate(left)[self.kind]
        return np.asarray((rows - 1) * (without.mean() - without))
