"""The worst case of lost rows, against all combinations of lost rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from scipy.stats import beta

from sora_cli.search.few import few_rows_bound
from sora_cli.search.worst import worst_value
from sora_cli.tasks.row_scores import RowScores, row_scores
from tests.present import present

Draw = Callable[[np.random.Generator], RowScores]
EXACT = 2e-4
"""The rows are whole in these combinations, and parts of rows in the bound."""


def _classes(formula: str, classes: int, rows: int, wrong: float) -> Draw:
    def draw(rng: np.random.Generator) -> RowScores:
        wanted = rng.choice(classes, size=rows, p=rng.dirichlet(np.full(classes, 2.0)))
        wanted[:classes] = range(classes)
        other = rng.random(rows) < rng.random() * wrong
        given = np.where(other, rng.integers(classes, size=rows), wanted)
        return row_scores("m", formula, given, wanted)

    return draw


def _entities(formula: str) -> Draw:
    def draw(rng: np.random.Generator) -> RowScores:
        counts = np.sort(rng.integers(0, 5, size=(4, 3)))  # right, predicted, true
        return row_scores("m", formula, *counts[rng.integers(4, size=60)].T)

    return draw


def _shares(rng: np.random.Generator) -> RowScores:
    return row_scores("f1", "mean", rng.choice([0, 0.25, 0.6, 1], size=60))


def _answers(full: RowScores) -> Iterator[np.ndarray]:
    """The parts of all rows, each with another answer."""
    parts = full.parts
    if full.formula == "mean":
        yield 0 * parts
    elif parts.shape[1] == 3:
        most = np.maximum(parts[:, 1:].max(axis=1), 1)
        yield np.stack([0 * most, most, parts[:, 2]], axis=1)
    else:
        for number in range(int(parts.max()) + 1):
            yield np.stack([np.full(len(parts), number), parts[:, 1]], axis=1)


def _numbers(most: list[int], lost: int) -> Iterator[tuple[int, ...]]:
    """All numbers of moved rows that are each at most these, and together at most `lost`."""
    if not most:
        yield ()
        return
    for first in range(min(most[0], lost) + 1):
        yield from ((first, *rest) for rest in _numbers(most[1:], lost - first))


def smallest(full: RowScores, lost: int) -> float:
    """Return the metric's smallest value, of all combinations of whole lost rows."""
    kinds, times = np.unique(full.parts, axis=0, return_counts=True)
    of_kinds = replace(full, parts=kinds)
    moves = [
        (kind, answers[kind])
        for answers in _answers(of_kinds)
        for kind in range(len(kinds))
        if not np.array_equal(answers[kind], kinds[kind])
    ]
    scores = replace(full, parts=np.array([*kinds, *(parts for _, parts in moves)]))
    moved = np.array(list(_numbers([int(times[kind]) for kind, _ in moves], lost)), dtype=float)
    stay = np.tile(times.astype(float), (len(moved), 1))
    for place, (kind, _) in enumerate(moves):
        stay[:, kind] -= moved[:, place]
    weights = np.hstack([stay, moved])[(stay >= 0).all(axis=1)]
    return float(scores.weighted(weights).min())


@pytest.mark.parametrize(
    ("draw", "lost", "over"),
    [
        (_shares, [3, 14], 1e-9),
        (_entities("entity_f1"), [3, 14], 1e-9),
        (_entities("precision"), [3, 14], 1e-9),
        (_entities("recall"), [3, 14], 1e-9),
        (_classes("f1", 2, 200, 1.0), [8, 15], 1e-9),
        (_classes("matthews_correlation", 2, 200, 0.5), [8, 15], EXACT),
        (_classes("matthews_correlation", 2, 60, 1.5), [8, 15], 2e-3),  # falls below 0
        (_classes("matthews_correlation", 3, 100, 0.5), [2, 4], 1e-3),
        (_classes("matthews_correlation", 3, 40, 1.5), [2, 4], 0.01),
        (_classes("f1", 3, 100, 0.5), [2, 4], 0.03),
        (_classes("f1", 4, 40, 1.0), [1, 3], 0.05),
    ],
)
def test_no_combination_of_rows_is_worse_and_few_are_much_better(
    draw: Draw, lost: list[int], over: float
) -> None:
    rng = np.random.default_rng(0)
    for _ in range(8):
        full, rows = draw(rng), int(rng.choice(lost))
        exact, found = smallest(full, rows), worst_value(full, rows)
        assert found is not None
        assert exact - over <= found <= exact + 1e-9


def _rows_for(whole: int, rows: int) -> int:
    """Return a number of rows of which 3 differ, so that just over `whole` of `rows` are lost."""
    tried = np.arange(40, 4000)
    over = beta.ppf(0.95, 4, tried - 3) * rows - whole
    return int(tried[over >= 0][-1])


@pytest.mark.parametrize(
    ("draw", "lost", "seeds"),
    [
        (_classes("matthews_correlation", 2, 200, 0.5), 14, 40),
        (_classes("matthews_correlation", 3, 60, 0.5), 4, 30),
        (_classes("f1", 3, 60, 0.5), 4, 10),
        (_entities("precision"), 10, 60),
    ],
)
def test_the_bound_is_at_least_the_drop_of_the_worst_rows(
    draw: Draw, lost: int, seeds: int
) -> None:
    """The rows that hurt most one by one need not be the worst together."""
    rng = np.random.default_rng(1)
    for _ in range(seeds):
        full = draw(rng)
        bound = present(few_rows_bound(full, 3, 0.95, rows=_rows_for(lost, len(full))))
        assert bound >= full.value - smallest(full, lost) - 1e-9


@pytest.mark.parametrize("formula", ["f1", "matthews_correlation"])
@pytest.mark.parametrize("classes", [2, 5, 20])
def test_more_lost_rows_never_raise_the_worst_value(formula: str, classes: int) -> None:
    full = _classes(formula, classes, 300, 0.3)(np.random.default_rng(2))
    values = [worst_value(full, lost) for lost in (0, 0.5, 1, 2.7, 8, 20, 90, 300)]
    found = [value for value in values if value is not None]
    assert found[0] == pytest.approx(full.value, abs=1e-3)
    assert len(found) == len(values)
    assert all(after <= before + 1e-4 for before, after in pairwise(found))
    assert found[-1] <= 0


@pytest.mark.parametrize("formula", ["f1", "matthews_correlation"])
@pytest.mark.parametrize("given", [[0] * 9, [0, 0, 1, 1, 2, 2, 0, 1, 2], [2] * 9])
@pytest.mark.parametrize("wanted", [[0] * 9, [0, 0, 0, 1, 1, 1, 2, 2, 2], [0, 1] * 4 + [0]])
def test_tables_with_a_single_class_have_a_worst_value(
    formula: str, given: list[int], wanted: list[int]
) -> None:
    full = row_scores("m", formula, np.array(given), np.array(wanted))
    for lost in (1, 2, 3):
        found = present(worst_value(full, lost))
        assert found <= smallest(full, lost) + 1e-9
        assert found >= -1
