"""An upper bound of the drop if two models differ on few rows: the worst case.

With few differing rows, resamples say too little about the rows that might differ. But the number
of differing rows is binomial for every metric, so Clopper and Pearson bound the share of all rows
that differ. The upper bound is the drop that results if this share of the rows is lost: the rows
that hurt the metric most, each with the worst possible answer. The actual answers on the differing
rows are not used. The bound is usually much larger than the true drop. It is approximate in two
respects: the most harmful rows are known from the given rows only, and they are ranked once, by the
harm of a single lost row, which for Matthews' correlation can miss the worst combination.

Source: Clopper and Pearson 1934, Biometrika 26, 404-413.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import beta

from sora_cli.recipe.families import is_share

if TYPE_CHECKING:
    from sora_cli.tasks.row_scores import RowScores

_CELLS = 2**20  # weights made at a time: 8 MiB of float64


def few_rows_bound(
    full: RowScores, differing: int, confidence: float, *, rows: int | None = None
) -> float | None:
    """Return the one-sided upper bound of the drop of a model that differs on few rows.

    Args:
        full: scores of the reference model.
        differing: number of rows on which the two models differ.
        rows: number of rows that `differing` was counted on; None: the rows of `full`.

    Returns:
        The bound, in the metric's unit; None: a row has no worst answer, as with losses.
    """
    lost = list(_lost(full))
    if not lost or not np.isfinite(full.parts).all():
        return None
    rows = rows or len(full)
    most = 1.0 if differing >= rows else beta.ppf(confidence, differing + 1, rows - differing)
    return _worst_drop(full, lost, float(most))


def has_worst(full: RowScores) -> bool:
    """Return True if the worst answer of a row is known for this metric."""
    return next(_lost(full), None) is not None


def _worst_drop(full: RowScores, lost: list[np.ndarray], share: float) -> float:
    """Return the drop if a share of the rows is lost, the most harmful rows first."""
    _, first, times = np.unique(full.parts, axis=0, return_index=True, return_counts=True)
    kinds = len(first)
    stacked = np.concatenate([full.parts[first], *(parts[first] for parts in lost)])
    scores = replace(full, parts=stacked)
    whole = np.zeros(len(stacked))
    whole[:kinds] = times
    (before,) = scores.weighted(whole[None])
    harm = _harm(scores, whole, kinds)  # (ways, kinds)
    way, left = harm.argmax(axis=0), share * len(full)
    # greedy: harm is computed once, with one lost row, and not again as more rows are lost
    for kind in np.argsort(-harm.max(axis=0), kind="stable"):
        if left <= 0 or harm[way[kind], kind] <= 0:
            break
        moved = min(float(times[kind]), left)
        whole[kind] -= moved
        whole[(way[kind] + 1) * kinds + kind] += moved
        left -= moved
    return float(before - scores.weighted(whole[None])[0])


def _harm(scores: RowScores, whole: np.ndarray, kinds: int) -> np.ndarray:
    """Return the metric's drop from one lost row, for each way of losing and kind of row."""
    (before,) = scores.weighted(whole[None])
    places = np.arange(kinds, len(scores))  # of lost rows; the row it was stands `kinds` before
    losses, most = [], max(_CELLS // len(scores), 1)
    for start in range(0, len(places), most):
        chunk = places[start : start + most]
        weights = np.tile(whole, (len(chunk), 1))
        weights[np.arange(len(chunk)), chunk % kinds] -= 1
        weights[np.arange(len(chunk)), chunk] += 1
        losses.append(before - scores.weighted(weights))
    return np.concatenate(losses).reshape(-1, kinds)


def _lost(full: RowScores) -> Iterator[np.ndarray]:
    """Yield the metric's parts of all rows as if lost, once for each way to lose a row."""
    ways = _WAYS.get(full.formula)
    # a mean of losses has no worst value; a mean of shares ends at 0
    has_end = full.formula != "mean" or is_share(full.metric)
    if ways is not None and has_end and full.greater_is_better:
        yield from ways(full.parts)


def _no_share(parts: np.ndarray) -> Iterator[np.ndarray]:
    """Yield zeros: the worst share that a row can have."""
    yield np.zeros_like(parts)


def _nothing_found(parts: np.ndarray) -> Iterator[np.ndarray]:
    """Yield rows whose entities are all wrong: (right, given, wanted) counts."""
    _, given, wanted = parts.T
    worst = np.maximum(np.maximum(given, wanted), 1)
    yield np.stack([np.zeros_like(given), worst, wanted], axis=1)


def _another_class(parts: np.ndarray) -> Iterator[np.ndarray]:
    """Yield rows that all get the same predicted class, for each class: (given, wanted)."""
    for number in range(int(parts.max(initial=0)) + 1):
        yield np.stack([np.full(len(parts), float(number)), parts[:, 1]], axis=1)


_WAYS: dict[str, Callable[[np.ndarray], Iterator[np.ndarray]]] = {
    "mean": _no_share,
    "entity_f1": _nothing_found,
    "precision": _nothing_found,
    "recall": _nothing_found,
    "f1": _another_class,
    "matthews_correlation": _another_class,
}
"""Formulas whose rows have a worst answer, with the function that yields it."""
