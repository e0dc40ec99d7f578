"""One metric of one model, kept row by row, so that it can be computed again on any of the rows.

A metric is a formula over the `parts` of rows: of accuracy one part, right or wrong; of Matthews'
correlation two, the class given and the class wanted; of a token's loss the sum over the row and
the number of its tokens. Weights say how often each row counts: all ones is the metric itself, a
bootstrap's resamples are counts, and a zero leaves a row out. A row is always one raw row of the
data, never a token, an entity or a window.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

import numpy as np

from sora_cli.recipe.tolerance import AGREEMENT
from sora_cli.tasks.metrics import load_metric

Formula = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Parts (rows, k) and weights (sets, rows) -> the metric with each set of weights, (sets,)."""
SAME, WITHIN = "same", "within"
"""Formulas of answers: equal, and numbers that are no further apart than a tolerance."""
_ROUNDING = 1e-12  # of a sum of squares
_LARGEST = 700.0  # nats a token: e to a larger power is no float


@dataclass(frozen=True)
class RowScores:
    """A metric of one model on rows.

    Two models are compared on the same rows in the same order: `drop_bound(full, small, ...)` of
    `search.bounds`. `take` parts rows, as into those that screen and those that test.

    Attributes:
        metric: its name.
        formula: a key of `FORMULAS`, or the name of a metric of the Hub's.
        parts: (rows, k) float64, what the formula needs of each row.
        greater_is_better: whether a larger value of the metric is better.
    """

    metric: str
    formula: str
    parts: np.ndarray
    greater_is_better: bool = True

    def __len__(self) -> int:
        return len(self.parts)

    @property
    def is_right_or_wrong(self) -> bool:
        """True if each row is 0 or 1 by the metric's definition, and the metric is their mean."""
        return self.formula == "right"

    @property
    def is_agreement(self) -> bool:
        """True if the parts are answers, which mean something only beside another model's."""
        return self.formula in {SAME, WITHIN}

    @property
    def value(self) -> float:
        """The metric on all rows."""
        return float(self.weighted(np.ones((1, len(self))))[0])

    def differs(self, other: RowScores) -> np.ndarray:
        """Return which rows another model scores, or answers, differently, (rows,) of bool."""
        if self.formula == WITHIN:
            return np.asarray(np.abs(self.parts - other.parts)[:, 0] > self.parts[:, 1])
        return np.asarray((self.parts != other.parts).any(axis=1))

    def beside(self, full: RowScores) -> float:
        """Return the metric of this model; of answers, the share on which it agrees with `full`."""
        return 1 - float(self.differs(full).mean()) if self.is_agreement else self.value

    def take(self, rows: np.ndarray) -> RowScores:
        """Return the same on some of the rows, by their numbers."""
        return replace(self, parts=self.parts[rows])

    def weighted(self, weights: np.ndarray) -> np.ndarray:
        """Return the metric for each set of weights, whole numbers (sets, rows) -> (sets,)."""
        if not np.isfinite(self.parts).all():
            return np.full(len(weights), np.nan)
        formula = FORMULAS.get(self.formula) or _from_the_hub(self.formula)
        return formula(self.parts, weights)


def answer_scores(answers: Sequence[Any], tolerance: float | None = None) -> RowScores:
    """Return one model's answers as scores, to be compared with another model's.

    Args:
        answers: one per raw row, of plain values.
        tolerance: answers are numbers, and two that are at most this far apart are the same.
    """
    if tolerance is not None:
        column = np.asarray(answers, dtype=np.float64)
        return row_scores(AGREEMENT, WITHIN, column, np.full(len(column), tolerance))
    # 52 bits of a digest are exact in float64; two answers of one row collide once in 4e15
    codes = [int.from_bytes(blake2b(repr(one).encode(), digest_size=8).digest()) >> 12
             for one in answers]  # fmt: skip
    return row_scores(AGREEMENT, SAME, np.array(codes, dtype=np.float64))


def row_scores(
    metric: str, formula: str, *parts: np.ndarray, greater_is_better: bool = True
) -> RowScores:
    """Return the scores whose parts are these columns, each (rows,)."""
    columns = [np.asarray(part, dtype=np.float64) for part in parts]
    return RowScores(metric, formula, np.stack(columns, axis=1), greater_is_better)


def _all(parts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return 1 for each set of weights: a model agrees with itself."""
    del parts
    return np.ones(len(weights))


def _mean(parts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return np.asarray(weights @ parts[:, 0] / weights.sum(axis=1))


def _ratio(parts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return one sum over another, such as losses over tokens; NaN where the other is zero."""
    sums = weights @ parts  # (sets, 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(sums[:, 1] > 0, sums[:, 0] / sums[:, 1], np.nan))


def _perplexity(parts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return np.asarray(np.exp(np.minimum(_ratio(parts, weights), _LARGEST)))


def _f1_of_counts(right: np.ndarray, given: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    return _share(2 * right, given + wanted)


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Return part / whole, and 0 where the whole is 0."""
    return np.asarray(np.divide(part, whole, out=np.zeros_like(part), where=whole > 0))


def _entity_f1(parts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return F1 of things found: parts are those right, those given and those wanted."""
    return _f1_of_counts(*(weights @ parts).T)


def _precision(parts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    right, given, _ = (weights @ parts).T
    return _share(right, given)


def _recall(parts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    right, _, wanted = (weights @ parts).T
    return _share(right, wanted)


def _class_counts(
    parts: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (sets, classes) each: how often a class is given rightly, is given, is wanted."""
    given, wanted = parts.astype(np.int64).T
    classes = np.arange(max(given.max(), wanted.max()) + 1)
    is_given, is_wanted = given[:, None] == classes, wanted[:, None] == classes
    columns = (is_given & is_wanted, is_given, is_wanted)
    right, given, wanted = (weights @ column.astype(np.float64) for column in columns)
    return right, given, wanted


def _class_f1(parts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return F1 of class 1 for two classes, macro F1 over the classes that occur for more."""
    right, given, wanted = _class_counts(parts, weights)
    found = _f1_of_counts(right, given, wanted)
    if found.shape[1] <= 2:
        return np.asarray(found[:, 1] if found.shape[1] == 2 else np.zeros(len(found)))
    return np.asarray(found.sum(axis=1) / ((given + wanted) > 0).sum(axis=1))


def _matthews(parts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return Matthews' correlation, of several classes as Gorodkin 2004 has it; 0: undefined."""
    right, given, wanted = _class_counts(parts, weights)
    rows = weights.sum(axis=1)
    joint = right.sum(axis=1) * rows - (given * wanted).sum(axis=1)
    spreads = (rows**2 - (given**2).sum(axis=1)) * (rows**2 - (wanted**2).sum(axis=1))
    return _share(joint, np.sqrt(spreads))


def _pearson(parts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return Pearson's correlation, and 0 where one side is constant."""
    x, y = (parts - parts.mean(axis=0)).T
    return _correlation([weights @ part for part in (x, y, x * x, y * y, x * y)], weights)


def _correlation(sums: Sequence[np.ndarray], weights: np.ndarray) -> np.ndarray:
    """Return correlations from sums of x, y, x^2, y^2 and x y, (sets,) each."""
    x, y, xx, yy, xy = sums
    n = weights.sum(axis=1)
    vx, vy = xx - x * x / n, yy - y * y / n
    varied = (vx > _ROUNDING * xx) & (vy > _ROUNDING * yy)
    return _share(xy - x * y / n, np.where(varied, np.sqrt(np.abs(vx * vy)), 0.0))


def _spearman(parts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return Spearman's correlation: Pearson's of ranks, which each set of weights gives anew."""
    times = np.ascontiguousarray(weights.T)  # sets lie side by side, which is faster
    x, y = (_weighted_ranks(column, times) for column in parts.T)  # (rows, sets) each
    squares = [np.einsum("rs,rs,rs->s", times, a, b) for a, b in ((x, x), (y, y), (x, y))]
    middle = np.zeros(len(weights))
    return _correlation([middle, middle, *squares], weights)


def _weighted_ranks(values: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Return each row's mean rank, from the middle, where rows are there so many times.

    Args:
        values: of the rows, (rows,).
        times: how often each is there, (rows, sets).
    """
    place = np.unique(values, return_inverse=True)[1]  # (rows,)
    order = np.argsort(place, kind="stable")
    starts = np.searchsorted(place[order], np.arange(place.max() + 1))
    alike = np.add.reduceat(times[order], starts, axis=0, dtype=np.float64)
    ranks = np.cumsum(alike, axis=0) - alike / 2 - times.sum(axis=0) / 2
    return np.asarray(ranks[place])


def _pearson_spearman(parts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return np.asarray((_pearson(parts, weights) + _spearman(parts, weights)) / 2)


FORMULAS: dict[str, Formula] = {
    "right": _mean,
    SAME: _all,
    WITHIN: _all,
    "mean": _mean,
    "ratio": _ratio,
    "perplexity": _perplexity,
    "entity_f1": _entity_f1,
    "precision": _precision,
    "recall": _recall,
    "f1": _class_f1,
    "matthews_correlation": _matthews,
    "pearson": _pearson,
    "spearman": _spearman,
    "pearson_spearman": _pearson_spearman,
}
"""Metrics by the formula that makes them of rows' parts; a name that is not here is the Hub's."""


def _from_the_hub(name: str) -> Formula:
    """Return a metric of the Hub's: it is computed on rows written out as often as they count."""
    compute = load_metric(name)

    def formula(parts: np.ndarray, weights: np.ndarray) -> np.ndarray:
        given, wanted = parts.T
        if (parts == parts.astype(np.int64)).all():  # classes
            given, wanted = parts.astype(np.int64).T
        sets = (np.repeat(np.arange(len(parts)), row.astype(np.int64)) for row in weights)
        return np.array([compute(given[rows], wanted[rows])[name] for rows in sets])

    return formula
