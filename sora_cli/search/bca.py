"""An approximate upper bound of how much worse a second model is, for metrics of any kind.

Whole rows are drawn again with replacement, the same for both models, and the drop of the metric is
computed on each draw; BCa (bias-corrected and accelerated) takes the quantile of those drops that
is right to second order. It is an approximation for many rows: where few of them differ it is much
too small, so such rows are refused.

scipy.stats.bootstrap computes the same but for Student's t, and a test compares the two; but it
gathers every row of every draw, and of every jackknife sample, where these metrics are sums over
rows, for which a product of counts and parts is enough.

Source: Efron 1987, JASA 82, 171-185; Efron and Tibshirani 1993, chapter 14 (equations 14.9, 14.10,
14.14 and 14.15); Hesterberg 2015, The American Statistician 69, 371-386, for few rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy.special import ndtr, ndtri, stdtrit

if TYPE_CHECKING:
    from sora_cli.tasks.row_scores import RowScores

Refusal = Literal["not finite", "few rows", "few rows differ", "constant", "extreme"]
"""The reasons for which there is no approximate bound; `REASONS` says each in words."""

REASONS: dict[Refusal, str] = {
    "not finite": "a score is not a finite number",
    "few rows": "fewer than {FEWEST_ROWS} rows",
    "few rows differ": "the models differ on fewer than {FEWEST_DIFFERING} rows",
    "constant": "the drop is the same in all resamples",
    "extreme": "the drop lies at the edge of its resamples",
}
RESAMPLES = 5000
FEWEST_ROWS = 50
FEWEST_DIFFERING = 20
"""With fewer, a simulation gave up to 17 % false certificates at a level of 5 %."""
_CELLS = 2**17  # weights made at a time: 1 MiB, which stays in a processor's cache


class BootstrapRefusedError(ValueError):
    """There is no approximate bound on these rows.

    Attributes:
        reason: one of `Refusal`.
    """

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
    """Return the approximate upper bound of the drop, in the metric's unit, one-sided.

    Args:
        full, small: the same metric of two models on the same rows.
        seed: of the resamples.

    Raises:
        BootstrapRefusedError: the rows are too few or too much alike for the approximation.
    """
    rows, here = len(full), drop_on(full, small)
    if not np.isfinite(here):
        raise BootstrapRefusedError("not finite")
    if rows < FEWEST_ROWS:
        raise BootstrapRefusedError("few rows")
    differing = differing_rows(full, small)
    if differing < FEWEST_DIFFERING:
        raise BootstrapRefusedError("few rows differ")
    kinds = _Kinds.of(full, small)
    drawn = np.concatenate([kinds.drops(w) for w in kinds.draws(resamples, seed)])
    if not np.isfinite(drawn).all():
        raise BootstrapRefusedError("not finite")
    influence = kinds.influences()
    # drops that are equal but for rounding are equal
    if np.ptp(drawn) <= 1e-12 * max(1.0, np.abs(drawn).max()) or not influence.any():
        raise BootstrapRefusedError("constant")
    below = (np.count_nonzero(drawn < here) + np.count_nonzero(drawn <= here)) / (2 * resamples)
    bias = float(ndtri(below))
    acceleration = float((influence**3).sum() / (6 * (influence**2).sum() ** 1.5))
    apart = bias + _expanded(confidence, differing)
    scale = 1 - acceleration * apart
    if not np.isfinite(bias) or scale <= 0:
        raise BootstrapRefusedError("extreme")
    return float(np.quantile(drawn, ndtr(bias + apart / scale)))


def _expanded(confidence: float, differing: int) -> float:
    """Return the normal quantile, widened for few differing rows.

    Resamples spread less than the truth does, by sqrt((m - 1) / m) of m rows, and know their own
    spread only from these: Student's t instead of the normal quantile (Hesterberg 2015, The
    American Statistician 69, 371-386, section 4.3). Rows that do not differ tell nothing of it.
    """
    degrees = differing - 1
    return float(np.sqrt(differing / degrees) * stdtrit(degrees, confidence))


def drops(full: RowScores, small: RowScores, weights: np.ndarray) -> np.ndarray:
    """Return how much worse `small` is than `full` with each set of weights, (sets,)."""
    apart = full.weighted(weights) - small.weighted(weights)
    return np.asarray(apart if full.greater_is_better else -apart)


def drop_on(full: RowScores, small: RowScores) -> float:
    """Return how much worse `small` is than `full` on all their rows."""
    return float(drops(full, small, np.ones((1, len(full))))[0])


def differing_rows(full: RowScores, small: RowScores) -> int:
    """Return on how many rows two models have other parts of the metric."""
    return int((full.parts != small.parts).any(axis=1).sum())


def influences(full: RowScores, small: RowScores) -> np.ndarray:
    """Return by how much each row moves the drop, (rows,), by leaving it out (the jackknife).

    The drop's standard error is about their standard deviation over the root of the rows' number.
    """
    return _Kinds.of(full, small).influences()


@dataclass(frozen=True)
class _Kinds:
    """Rows of which many may be alike, so that they are drawn and left out by kind.

    Classes given and wanted make a handful of kinds however many rows there are; rows with numbers
    of their own are a kind each.

    Attributes:
        full, small: the scores of a row of each kind.
        times: how many rows are of that kind, (kinds,).
        kind: the kind of each row, (rows,).
    """

    full: RowScores
    small: RowScores
    times: np.ndarray
    kind: np.ndarray

    @classmethod
    def of(cls, full: RowScores, small: RowScores) -> _Kinds:
        """Return the kinds of rows; each row is one where hardly any are alike."""
        rows = len(full)
        both = np.concatenate([full.parts, small.parts], axis=1)
        _, first, kind, times = np.unique(
            both, axis=0, return_index=True, return_inverse=True, return_counts=True
        )
        if len(first) > rows / 2:
            return cls(full, small, np.ones(rows), np.arange(rows))
        return cls(full.take(first), small.take(first), times.astype(np.float64), kind.ravel())

    def drops(self, weights: np.ndarray) -> np.ndarray:
        """Return the drop for each set of weights of kinds, (sets,)."""
        return drops(self.full, self.small, weights)

    def draws(self, resamples: int, seed: int) -> Iterator[np.ndarray]:
        """Yield how often each kind is drawn, (sets, kinds), a part of all resamples at a time."""
        kinds, rows = len(self.times), len(self.kind)
        generator, most = np.random.default_rng(seed), max(_CELLS // kinds, 1)
        for first in range(0, resamples, most):
            sets = min(most, resamples - first)
            if kinds < rows:
                counts = generator.multinomial(rows, self.times / rows, size=sets)
            else:
                drawn = (
                    generator.integers(rows, size=(sets, rows)) + rows * np.arange(sets)[:, None]
                )
                counts = np.bincount(drawn.ravel(), minlength=sets * rows).reshape(sets, rows)
            yield counts.astype(np.float64)

    def influences(self) -> np.ndarray:
        """Return by how much each row moves the drop, (rows,)."""
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
