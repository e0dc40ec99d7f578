"""The smallest value that a metric can fall to if some rows are lost.

A lost row gets the worst possible answer: another class, no right entity, a score of 0. Any rows
can be lost, and also parts of rows, since the number of lost rows is a share of all rows. Rows with
equal parts are interchangeable, so the unknowns are the numbers of lost rows of each kind, and the
classes that they are given.

- Shares, precision, recall, F1 of entities and F1 of class 1 are ratios of two sums: the result is
  the exact minimum (Dinkelbach's iteration). An entity answer has at most as many entities as the
  row's own answer or its labels.
- Matthews' correlation of two classes: the exact minimum, in closed form.
- Matthews' correlation of several classes, and macro F1: a lower bound of the minimum, so the drop
  is never too small. A correlation that stays positive is nearly exact (`_CLOSE`). Beside all
  combinations of up to 5 of 30 to 100 rows, macro F1 was too low by 0.002 in the middle and 0.04
  at most (tests/sora_cli/search/test_worst.py has such tables).

The classes are those up to the largest number that occurs.

Sources: Dinkelbach 1967, Management Science 13, 492-498, for ratios; Jaggi 2013, ICML, for
Frank-Wolfe steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sora_cli.recipe.metric_facts import facts_of

if TYPE_CHECKING:
    from sora_cli.tasks.row_scores import RowScores

_CLOSE = 1e-4  # of the metric; a promise is seldom finer than 0.001
_STEPS = 100  # of Frank-Wolfe; the error falls as 1 / steps
_PRICES = 8  # tried at once for a wrong prediction, three times
_UNITS = 256  # more lost rows are counted in units of several, rounded down


def worst_value(full: RowScores, lost: float) -> float | None:
    """Return the metric's smallest value, or a lower bound of it, if this many rows are lost.

    Args:
        full: scores before rows are lost.
        lost: number of lost rows; need not be whole.

    Returns:
        None: a row has no worst answer, as with losses.
    """
    return _WORST[full.formula](full.parts, lost) if has_worst(full) else None


def has_worst(full: RowScores) -> bool:
    """Return True if the worst answer of a row is known for this metric."""
    # a mean of losses has no worst value; a mean of shares ends at 0
    has_end = full.formula != "mean" or facts_of(full.metric).ends_at_1
    return full.formula in _WORST and has_end and full.greater_is_better


@dataclass(frozen=True)
class _Moves:
    """The ways in which rows can be lost: how many rows of each kind, in how many ways.

    Attributes:
        times: (kinds,), number of rows of each kind.
        lost: number of rows that can be lost.
    """

    times: np.ndarray
    lost: float

    def smallest_sum(self, change: np.ndarray) -> np.ndarray:
        """Return the numbers of moved rows that make a linear function smallest.

        Args:
            change: (ways, kinds), the change of the function by one moved row.

        Returns:
            (ways, kinds), zero where a move would not make the function smaller.
        """
        way = change.argmin(axis=0)
        least = change[way, np.arange(len(way))]
        order = np.argsort(least, kind="stable")
        order = order[least[order] < 0]
        times = self.times[order]
        moved = np.zeros_like(change)
        moved[way[order], order] = np.clip(self.lost - (np.cumsum(times) - times), 0, times)
        return moved

    def smallest_ratio(
        self, top: float, bottom: float, top_change: np.ndarray, bottom_change: np.ndarray
    ) -> tuple[float, np.ndarray]:
        """Return the smallest ratio of two linear functions, and the numbers of moved rows.

        Args:
            top, bottom: both functions before any row is moved; `bottom` is positive, but for
                single places without a ratio.
            top_change, bottom_change: (ways, kinds), the changes by one moved row.
        """

        def ratio_at(moved: np.ndarray) -> float:
            below = bottom + (moved * bottom_change).sum()
            return float((top + (moved * top_change).sum()) / below) if below > 0 else np.inf

        moved = self.smallest_sum(top_change)
        ratio = ratio_at(moved)
        while True:
            # Dinkelbach: a smaller ratio exists where top - ratio * bottom can fall below 0
            tried = self.smallest_sum(top_change - ratio * bottom_change)
            smaller = ratio_at(tried)
            if not smaller < ratio:
                return ratio, moved
            ratio, moved = smaller, tried


def _of_ratio(
    parts: np.ndarray, worst: np.ndarray, top: np.ndarray, bottom: np.ndarray, lost: float
) -> float:
    """Return the smallest ratio of two sums over rows.

    Args:
        parts: (rows, k).
        worst: (rows, k), the parts of each row if it is lost; equal for equal rows.
        top, bottom: (k,), weights of the parts in the two sums.
    """
    _, first, times = np.unique(parts, axis=0, return_index=True, return_counts=True)
    before, after = parts[first], worst[first]
    sums = times @ before
    if not sums @ bottom > 0:
        return 0.0
    changes = ((after - before) @ weights for weights in (top, bottom))
    top_change, bottom_change = (change[None] for change in changes)
    moves = _Moves(times.astype(np.float64), lost)
    return moves.smallest_ratio(sums @ top, sums @ bottom, top_change, bottom_change)[0]


def _worst_share(parts: np.ndarray, lost: float) -> float:
    parts = np.stack([parts[:, 0], np.ones(len(parts))], axis=1)
    return _of_ratio(parts, parts * [0, 1], np.array([1, 0]), np.array([0, 1]), lost)


def _of_entities(top: list[int], bottom: list[int]) -> Callable[[np.ndarray, float], float]:
    """Return the worst value of a ratio of (right, predicted, true) counts of entities."""

    def worst(parts: np.ndarray, lost: float) -> float:
        _, given, wanted = parts.T
        most = np.maximum(np.maximum(given, wanted), 1)
        lost_parts = np.stack([np.zeros_like(given), most, wanted], axis=1)
        return _of_ratio(parts, lost_parts, np.array(top), np.array(bottom), lost)

    return worst


def _table(parts: np.ndarray) -> np.ndarray:
    """Return the numbers of rows by predicted and true class, (classes, classes)."""
    given, wanted = parts.astype(np.int64).T
    classes = int(parts.max(initial=0)) + 1
    counts = np.bincount(given * classes + wanted, minlength=classes**2)
    return counts.reshape(classes, classes).astype(np.float64)


def _worst_f1(parts: np.ndarray, lost: float) -> float:
    table = _table(parts)
    if len(table) > 2:
        return _worst_macro_f1(table, lost)
    if len(table) < 2:
        return 0.0
    given, wanted = parts.T
    # of class 1: right, predicted, true; a lost row gets the wrong class
    ones = np.stack([given * wanted, given, wanted], axis=1)
    worst = np.stack([np.zeros_like(given), 1 - wanted, wanted], axis=1)
    return _of_ratio(ones, worst, np.array([2, 0, 0]), np.array([0, 1, 1]), lost)


def _worst_macro_f1(table: np.ndarray, lost: float) -> float:
    """Return a lower bound of macro F1 over the classes that occur.

    Relaxed: a wrong prediction may fall on any class, and a row that was wrong before costs its
    class nothing. F1 of a class is then 2 (r - a) / (D - a + b), with r right rows, D predictions
    and labels, a of its right rows lost, and b new wrong predictions. Both a and b sum to `lost` at
    most. The second limit gets a price (a Lagrange multiplier): each price gives a lower bound, and
    the largest is taken. With a price, a class's term is concave in a, so all classes but one lose
    either every right row or none: a knapsack.
    """
    right, given, wanted = np.diag(table), table.sum(axis=1), table.sum(axis=0)
    unused = int(((given + wanted) == 0).sum())
    # a class that nobody predicted counts with an F1 of 0 as soon as one row is given it
    occur = len(table) - unused + min(unused, int(np.ceil(lost)))
    real = right > 0
    right, both = right[real], (given + wanted)[real]
    if not len(right):
        return 0.0
    low, high = (2 * right / (both + lost) ** 2).min() / 4, (2 * right / (both - right) ** 2).max()
    best = 0.0
    for _ in range(3):
        prices = np.geomspace(low, high, _PRICES)
        bounds = _priced(right, both, lost, prices) - prices * lost
        place = int(bounds.argmax())
        best = max(best, float(bounds[place]))
        low, high = prices[max(place - 1, 0)], prices[min(place + 1, _PRICES - 1)]
    return best / occur


def _priced(right: np.ndarray, both: np.ndarray, lost: float, prices: np.ndarray) -> np.ndarray:
    """Return the smallest sum of F1 and of the prices paid for wrong predictions, (prices,).

    Args:
        right: (classes,), right rows.
        both: (classes,), predictions and labels together.
    """

    def term(gone: np.ndarray) -> np.ndarray:  # (classes, n) right rows lost -> (prices, ...)
        left, below = right[:, None] - gone, both[:, None] - gone
        price = prices[:, None, None]
        wrong = np.clip(np.sqrt(2 * left / price) - below, 0, lost)
        return np.asarray(2 * left / (below + wrong) + price * wrong)

    unit = max(1.0, lost / _UNITS)
    whole = int(lost / unit)
    none = np.zeros((len(right), 1))
    saved = (term(none) - term(right[:, None]))[:, :, 0]  # (prices, classes)
    # best[:, k, n]: saved by classes other than k that lose all their right rows, n units at most
    best = np.zeros((len(prices), len(right), whole + 1))
    for k, cost in enumerate((right / unit).astype(np.int64)):
        if cost > whole:
            continue
        with_k = best[:, :, : whole + 1 - cost] + saved[:, k, None, None]
        with_k[:, k] = 0
        best[:, :, cost:] = np.maximum(best[:, :, cost:], with_k)
    rest = np.minimum(lost - unit * np.arange(whole + 1), right[:, None])  # lost by class k itself
    best += term(none) - term(rest)
    return np.asarray(term(none).sum(axis=(1, 2)) - best.max(axis=(1, 2)))


def _worst_matthews(parts: np.ndarray, lost: float) -> float:
    table = _table(parts)
    if np.count_nonzero(table.sum(axis=0)) < 2:  # one true class: 0 by definition
        return 0.0
    if len(table) == 2:
        return _worst_of_two(table, lost)
    return _worst_of_many(table, lost)


def _worst_of_two(table: np.ndarray, lost: float) -> float:
    """Return the smallest Matthews' correlation of two classes.

    Each right row that is lost makes it smaller, so all that can be are lost, a of them of class 1.
    The correlation is then (n0 + n1 a) / sqrt(q0 + q1 a + q2 a^2), with one stationary point.
    """
    (tn, fn), (fp, tp) = table
    rows, lost = table.sum(), min(lost, tn + tp)
    given = fp + tp + lost  # predictions of class 1, less 2 a
    n0 = tp * (tn - lost) - (fp + lost) * fn
    n1 = (tp - tn + lost) - (fp + lost - fn)
    q0, q1, q2 = given * (rows - given), 2 * (2 * given - rows), -4.0
    ends = max(0.0, lost - tn), min(tp, lost)
    slope = n1 * q1 / 2 - n0 * q2
    still = (n0 * q1 / 2 - n1 * q0) / slope if slope else ends[0]
    a = np.array([*ends, np.clip(still, *ends)])
    squared = (q0 + q1 * a + q2 * a * a) * (fn + tp) * (tn + fp)
    top = n0 + n1 * a
    # one predicted class: 0 by definition
    return min(float(n / np.sqrt(q)) if q > 0 else 0.0 for n, q in zip(top, squared, strict=True))


def _worst_of_many(table: np.ndarray, lost: float) -> float:
    """Return a lower bound of the smallest Matthews' correlation of many classes.

    With p_k predictions of class k and s rows, this is a linear function of the moved rows (`top`,
    the joint sum of `row_scores`) over the root of s^2 - p p, which is concave. A correlation that
    cannot fall below 0 has the tangent at any p as an upper bound of the root. Frank-Wolfe steps
    take p to where the bound is best, and convergence is to the exact minimum.
    """
    given, wanted, rows = table.sum(axis=1), table.sum(axis=0), table.sum()
    of, true = np.nonzero(table)  # (kinds,)
    to = np.arange(len(table))[:, None]  # (ways, 1)
    moves = _Moves(table[of, true], lost)
    change = rows * ((to == true) * 1.0 - (of == true)) - (wanted[to] - wanted[of])
    top = rows * np.trace(table) - given @ wanted
    spread = float(np.sqrt(rows**2 - wanted @ wanted))
    if top + (moves.smallest_sum(change) * change).sum() < 0:
        return max(_below_zero(moves, top, change, given, of) / spread, -1.0)
    best, at, joint = 0.0, given, top
    for step in range(_STEPS):
        root = float(np.sqrt(rows**2 - at @ at))
        if root <= 0:  # one predicted class
            break
        # the tangent: (s^2 - at p) / root
        ratio, moved = moves.smallest_ratio(top, rows**2 - at @ given, change, at[of] - at[to])
        best = max(best, ratio * root)
        if joint / root - best < _CLOSE * spread:  # a correlation that is reached
            break
        share = 2 / (step + 2)
        reached = given + moved.sum(axis=1) - np.bincount(of, moved.sum(axis=0), len(given))
        at = at + share * (reached - at)
        joint += share * (top + (moved * change).sum() - joint)
    return best / spread


def _below_zero(
    moves: _Moves, top: float, change: np.ndarray, given: np.ndarray, of: np.ndarray
) -> float:
    """Return a lower bound of the ratio of `_worst_of_many` if it can be negative.

    If y rows move the predictions by d, then d d is at most 2 y^2, so s^2 - p p is at least a
    linear function of the moved rows. Its root is at least the chord over its range.
    """
    to = np.arange(len(given))[:, None]
    least = given.sum() ** 2 - given @ given
    slope = np.where(to == of, 0.0, 2 * (given[of] - given[to] - moves.lost))
    low, high = (
        least + sign * (moves.smallest_sum(sign * slope) * sign * slope).sum() for sign in (1, -1)
    )
    if low < 0 or high <= 0:
        return -np.inf
    roots = np.sqrt(low) + np.sqrt(high)
    chord = np.sqrt(low) + (least - low) / roots
    return moves.smallest_ratio(top, chord, change, slope / roots)[0]


_WORST: dict[str, Callable[[np.ndarray, float], float]] = {
    "mean": _worst_share,
    "entity_f1": _of_entities([2, 0, 0], [0, 1, 1]),
    "precision": _of_entities([1, 0, 0], [0, 1, 0]),
    "recall": _of_entities([1, 0, 0], [0, 0, 1]),
    "f1": _worst_f1,
    "matthews_correlation": _worst_matthews,
}
"""Formulas whose rows have a worst answer, with the function that returns the smallest value."""
