"""A model's metric in parts per row, so that it can be recomputed on any subset of the rows.

A metric is a formula over the `parts` of rows. Accuracy has one part, right or wrong. Matthews'
correlation has two, the predicted and the true class. A token loss has two, the sum over the row
and its number of tokens. Weights count each row: ones give the metric itself, a bootstrap's counts
a resample, and a zero leaves the row out. A row is always one raw row of the data, never a token,
an entity or a window.
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
"""Parts (rows, k) and weights (sets, rows) -> the metric for each set of weights, (sets,)."""
SAME, WITHIN = "same", "within"
"""Formulas of answers: equal, and numbers that are no further apart than a tolerance."""
ASKED = "asked"
"""Formula of answers beside the labels of a person: parts are the answer and two labels."""
UNLABELLED = -1.0
"""The place of a label that is not given, in the parts of `ASKED`."""
GROUPS = "group_mean"
"""Formula of rows that share the score of their group, such as the documents of one query."""
_ROUNDING = 1e-12  # relative to a sum of squares; a smaller variance is rounding, and counts as 0
_LARGEST = 700.0  # nats per token; e to a larger power overflows a float


@dataclass(frozen=True)
class RowScores:
    """A metric of one model on rows.

    Two models are compared on the same rows in the same order: `drop_bound(full, small, ...)` of
    `search.bounds`. `take` selects rows, such as the screening rows or the test rows.

    Attributes:
        metric: its name.
        formula: a key of `FORMULAS`, or the name of a Hub metric.
        parts: (rows, k) float64, the formula's inputs of each row.
        rows_alone: False: each row chooses among all rows, so its parts depend on the others.
        every: of rows without repeats: the scores on all rows as they come; None: these are all.
    """

    metric: str
    formula: str
    parts: np.ndarray
    greater_is_better: bool = True
    rows_alone: bool = True
    every: RowScores | None = None

    def __len__(self) -> int:
        return len(self.parts)

    @property
    def is_right_or_wrong(self) -> bool:
        """True if each row scores 0 or 1 by definition, and the metric is their mean."""
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
        """Return the scores of these rows only.

        Args:
            rows: their numbers.
        """
        return replace(self, parts=self.parts[rows], every=None)

    def of_these(self, rows: np.ndarray) -> RowScores:
        """Return the scores of these rows, with those of all rows as `every`."""
        return replace(self, parts=self.parts[rows], every=self)

    def weighted(self, weights: np.ndarray) -> np.ndarray:
        """Return the metric for each set of weights, integers (sets, rows) -> (sets,)."""
        if not np.isfinite(self.parts).all():
            return np.full(len(weights), np.nan)
        formula = FORMULAS.get(self.formula) or _from_the_hub(self.formula)
        return formula(self.parts, weights)


def answer_scores(
    answers: Sequence[Any], tolerance: float | None = None, *, rows_alone: bool = True
) -> RowScores:
    """Return one model's answers as scores, to be compared with another model's.

    Args:
        answers: one per raw row, of plain values.
        tolerance: answers are numbers, and two that are at most this far apart are the same.
        rows_alone: see `RowScores`.
    """
    if tolerance is not None:
        column = np.asarray(answers, dtype=np.float64)
        within = np.full(len(column), tolerance)
        return row_scores(AGREEMENT, WITHIN, column, within, rows_alone=rows_alone)
    return row_scores(AGREEMENT, SAME, answer_codes(answers), rows_alone=rows_alone)


def asked_scores(answers: Sequence[Any]) -> RowScores:
    """Return one model's answers as scores, on rows that a person may label.

    Args:
        answers: one per raw row, of plain values.
    """
    none = np.full(len(answers), UNLABELLED)
    return row_scores(AGREEMENT, ASKED, answer_codes(answers), none, none)


def answer_codes(answers: Sequence[Any]) -> np.ndarray:
    """Return a number for each answer, (rows,); equal answers have equal numbers."""
    # 52 bits of a digest are exact in float64; two answers of one row collide once in 4e15
    codes = [int.from_bytes(blake2b(repr(one).encode(), digest_size=8).digest()) >> 12
             for one in answers]  # fmt: skip
    return np.array(codes, dtype=np.float64)


def row_scores(
    metric: str,
    formula: str,
    *parts: np.ndarray,
    greater_is_better: bool = True,
    rows_alone: bool = True,
) -> RowScores:
    """Return the scores with these parts, each (rows,)."""
    columns = [np.asarray(part, dtype=np.float64) for part in parts]
    return RowScores(metric, formula, np.stack(columns, axis=1), greater_is_better, rows_alone)


def _all(parts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return 1 for each set of weights: a model agrees with itself."""
    del parts
    return np.ones(len(weights))


def _mean(parts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return np.asarray(weights @ parts[:, 0] / weights.sum(axis=1))


def _group_mean(parts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the mean over groups of rows: parts are a row's score, its group, and its number.

    A row has an equal share of its group among these rows: all of it where each group has one row,
    as among rows that test. The number keeps rows apart where equal ones are counted together.
    """
    _, group, rows = np.unique(parts[:, 1], return_inverse=True, return_counts=True)
    shares = weights / rows[group]
    return np.asarray(shares @ parts[:, 0] / shares.sum(axis=1))


def _ratio(parts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the ratio of two sums (losses over tokens); NaN if the second sum is 0."""
    sums = weights @ parts  # (sets, 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(sums[:, 1] > 0, sums[:, 0] / sums[:, 1], np.nan))


def _perplexity(parts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return np.asarray(np.exp(np.minimum(_ratio(parts, weights), _LARGEST)))


def _f1_of_counts(right: np.ndarray, given: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    return _share(2 * right, given + wanted)


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Return part / whole; 0 if the whole is 0."""
    return np.asarray(np.divide(part, whole, out=np.zeros_like(part), where=whole > 0))


def _entity_f1(parts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return F1 of entities, from the parts right, predicted and true (counts)."""
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
    """Return (sets, classes) each: counts of right predictions, of predictions and of labels."""
    given, wanted = parts.astype(np.int64).T
    classes = np.arange(max(given.max(), wanted.max()) + 1)
    is_given, is_wanted = given[:, None] == classes, wanted[:, None] == classes
    columns = (is_given & is_wanted, is_given, is_wanted)
    right, given, wanted = (weights @ column.astype(np.float64) for column in columns)
    return right, given, wanted


def _class_f1(parts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return F1 of class 1 for two classes; for more, macro F1 over the classes that occur."""
    right, given, wanted = _class_counts(parts, weights)
    f1 = _f1_of_counts(right, given, wanted)
    if f1.shape[1] <= 2:
        return np.asarray(f1[:, 1] if f1.shape[1] == 2 else np.zeros(len(f1)))
    return np.asarray(f1.sum(axis=1) / ((given + wanted) > 0).sum(axis=1))


def _matthews(parts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return Matthews' correlation, for several classes by Gorodkin 2004; 0 if it is undefined."""
    right, given, wanted = _class_counts(parts, weights)
    rows = weights.sum(axis=1)
    # with c right of s rows, p_k predictions and t_k labels of class k:
    # (c s - sum p_k t_k) / sqrt((s^2 - sum p_k^2) (s^2 - sum t_k^2))
    joint = right.sum(axis=1) * rows - (given * wanted).sum(axis=1)
    spreads = (rows**2 - (given**2).sum(axis=1)) * (rows**2 - (wanted**2).sum(axis=1))
    return _share(joint, np.sqrt(spreads))


def _pearson(parts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return Pearson's correlation; 0 if one side is constant."""
    # centred first: the sums of squares of large values would cancel to rounding errors
    x, y = (parts - parts.mean(axis=0)).T
    return _correlation([weights @ part for part in (x, y, x * x, y * y, x * y)], weights)


def _correlation(sums: Sequence[np.ndarray], weights: np.ndarray) -> np.ndarray:
    """Return correlations from the sums of x, y, x^2, y^2 and x y, (sets,) each."""
    x, y, xx, yy, xy = sums
    n = weights.sum(axis=1)
    vx, vy = xx - x * x / n, yy - y * y / n
    varied = (vx > _ROUNDING * xx) & (vy > _ROUNDING * yy)
    return _share(xy - x * y / n, np.where(varied, np.sqrt(np.abs(vx * vy)), 0.0))


def _spearman(parts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return Spearman's correlation: Pearson's of the ranks, which each set of weights changes."""
    times = np.ascontiguousarray(weights.T)  # sets next to each other in memory, which is faster
    x, y = (_weighted_ranks(column, times) for column in parts.T)  # (rows, sets) each
    squares = [np.einsum("rs,rs,rs->s", times, a, b) for a, b in ((x, x), (y, y), (x, y))]
    middle = np.zeros(len(weights))  # the sums of centred ranks
    return _correlation([middle, middle, *squares], weights)


def _weighted_ranks(values: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Return the mean rank of each row, centred on 0, with each row repeated `times` times.

    Args:
        values: (rows,).
        times: (rows, sets), the number of repetitions.
    """
    place = np.unique(values, return_inverse=True)[1]  # (rows,)
    order = np.argsort(place, kind="stable")
    starts = np.searchsorted(place[order], np.arange(place.max() + 1))
    alike = np.add.reduceat(times[order], starts, axis=0, dtype=np.float64)
    # equal values share their mean rank; centred for the same reason as in `_pearson`
    ranks = np.cumsum(alike, axis=0) - alike / 2 - times.sum(axis=0) / 2
    return np.asarray(ranks[place])


def _pearson_spearman(parts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return np.asarray((_pearson(parts, weights) + _spearman(parts, weights)) / 2)


FORMULAS: dict[str, Formula] = {
    "right": _mean,
    SAME: _all,
    WITHIN: _all,
    ASKED: _all,
    "mean": _mean,
    GROUPS: _group_mean,
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
"""Formulas by name; any other name is a metric of the Hub."""


def _from_the_hub(name: str) -> Formula:
    """Return the formula of a Hub metric, which repeats each row by its weight."""
    compute = load_metric(name)

    def formula(parts: np.ndarray, weights: np.ndarray) -> np.ndarray:
        given, wanted = parts.T
        if (parts == parts.astype(np.int64)).all():  # classes: the Hub's metrics want integers
            given, wanted = parts.astype(np.int64).T
        sets = (np.repeat(np.arange(len(parts)), row.astype(np.int64)) for row in weights)
        return np.array([compute(given[rows], wanted[rows])[name] for rows in sets])

    return formula
