"""An upper bound of the drop where two models differ on few rows: the worst that could be.

Where few rows differ, resamples say too little of the rows that could. But how many rows differ is
a binomial number, whatever the metric: its Clopper-Pearson bound says how large a share of all rows
differs at most. The bound is the drop if that share of the rows were lost, those that the metric
suffers from most, each with the worst answer it could get; what really became of the rows that
differ is not looked at. That is much more than the truth as a rule. It is approximate in one thing:
which rows are the worst is known from these rows only.

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

_CELLS = 2**20  # weights made at a time: 8 MiB


def few_rows_bound(
    full: RowScores, differing: int, confidence: float, *, rows: int | None = None
) -> float | None:
    """Return the upper bound of the drop of a model that differs on so few rows, one-sided.

    Args:
        full: scores of the other model.
        differing: rows on which the two differ.
        rows: of how many, drawn like those of the scores; None: of these.

    Returns:
        The bound, in the metric's unit; None: a row's worst is not known, as of losses.
    """
    lost = list(_lost(full))
    if not lost or not np.isfinite(full.parts).all():
        return None
    rows = rows or len(full)
    most = 1.0 if differing >= rows else beta.ppf(confidence, differing + 1, rows - differing)
    return _worst_drop(full, lost, float(most))


def has_worst(full: RowScores) -> bool:
    """Tell whether it is known what a metric loses at most with a row."""
    return next(_lost(full), None) is not None


def _worst_drop(full: RowScores, lost: list[np.ndarray], share: float) -> float:
    """Return the drop if a share of the rows is lost, the most harmful ones first."""
    _, first, times = np.unique(full.parts, axis=0, return_index=True, return_counts=True)
    kinds = len(first)
    stacked = np.concatenate([full.parts[first], *(parts[first] for parts in lost)])
    scores = replace(full, parts=stacked)
    whole = np.zeros(len(stacked))
    whole[:kinds] = times
    (here,) = scores.weighted(whole[None])
    harm = _harm(scores, whole, kinds)  # (ways, kinds)
    way, left = harm.argmax(axis=0), share * len(full)
    for kind in np.argsort(-harm.max(axis=0), kind="stable"):
        if left <= 0 or harm[way[kind], kind] <= 0:
            break
        moved = min(float(times[kind]), left)
        whole[kind] -= moved
        whole[(way[kind] + 1) * kinds + kind] += moved
        left -= moved
    return float(here - scores.weighted(whole[None])[0])


def _harm(scores: RowScores, whole: np.ndarray, kinds: int) -> np.ndarray:
    """Return what the metric loses with one row of a kind, lost in one of the ways."""
    (here,) = scores.weighted(whole[None])
    places = np.arange(kinds, len(scores))  # of lost rows; the row it was stands `kinds` before
    found, most = [], max(_CELLS // len(scores), 1)
    for start in range(0, len(places), most):
        some = places[start : start + most]
        weights = np.tile(whole, (len(some), 1))
        weights[np.arange(len(some)), some % kinds] -= 1
        weights[np.arange(len(some)), some] += 1
        found.append(here - scores.weighted(weights))
    return np.concatenate(found).reshape(-1, kinds)


def _lost(full: RowScores) -> Iterator[np.ndarray]:
    """Yield the parts that all rows would have if they were lost, for each way to lose them."""
    ways = _WAYS.get(full.formula)
    has_end = full.formula != "mean" or is_share(full.metric)  # a mean may be of anything
    if ways is not None and has_end and full.greater_is_better:
        yield from ways(full.parts)


def _no_share(parts: np.ndarray) -> Iterator[np.ndarray]:
    """Yield zeros, of rows that have shares of a whole."""
    yield np.zeros_like(parts)


def _nothing_found(parts: np.ndarray) -> Iterator[np.ndarray]:
    """Yield rows in which all that is given is wrong: (right, given, wanted)."""
    _, given, wanted = parts.T
    worst = np.maximum(np.maximum(given, wanted), 1)
    yield np.stack([np.zeros_like(given), worst, wanted], axis=1)


def _another_class(parts: np.ndarray) -> Iterator[np.ndarray]:
    """Yield rows that are all given one class: (given, wanted)."""
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
"""Formulas whose rows have a worst, and what it is."""
