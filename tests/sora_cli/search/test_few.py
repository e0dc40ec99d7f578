"""The bound where few rows differ: what it is made of, what it refuses, and that it holds."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import beta

from sora_cli.search.few import few_rows_bound
from sora_cli.search.statistics import drop_bound
from sora_cli.search.worst import has_worst
from sora_cli.tasks.row_scores import RowScores, row_scores
from tests.present import present

ROWS = 200


def _share(differing: int, rows: int = ROWS) -> float:
    return float(beta.ppf(0.95, differing + 1, rows - differing))


def _classes(given: np.ndarray, wanted: np.ndarray) -> RowScores:
    return row_scores("mcc", "matthews_correlation", given, wanted)


def test_of_shares_it_is_the_clopper_pearson_bound_of_the_rows_that_differ() -> None:
    full = row_scores("f1", "mean", np.ones(ROWS))
    for differing in (0, 1, 7, 19):
        assert few_rows_bound(full, differing, 0.95) == pytest.approx(_share(differing))
    assert few_rows_bound(full, 0, 0.95) == pytest.approx(1 - 0.05 ** (1 / ROWS))
    assert few_rows_bound(full, 0, 0.95, rows=800) == pytest.approx(_share(0, 800))
    assert few_rows_bound(full, ROWS, 0.95) == 1


def test_the_rows_that_matter_most_are_lost_first() -> None:
    parts = np.ones((ROWS, 3))
    parts[:3] = 5  # entities: right, given, wanted
    full = row_scores("f1", "entity_f1", *parts.T)
    lost = 5 * min(_share(0) * ROWS, 3)
    assert 2 < _share(0) * ROWS < 3
    assert few_rows_bound(full, 0, 0.95) == pytest.approx(lost / (ROWS - 3 + 15))
    rare = np.arange(ROWS) < 10  # of two classes, losing the rare one costs more
    full = _classes(rare, rare)
    few = present(few_rows_bound(full, 0, 0.95))
    gone = np.where(np.arange(ROWS) < 2, 0, rare)
    assert (
        1 - _classes(gone, rare).value
        < few
        < 1 - _classes(rare & (np.arange(ROWS) > 2), rare).value
    )


@pytest.mark.parametrize(
    ("formula", "parts"),
    [("ratio", [3.0, 2.0]), ("pearson", [0.4, 0.2]), ("mean", [0.5])],
)
def test_where_no_worst_is_known_there_is_no_bound(formula: str, parts: list[float]) -> None:
    full = row_scores("m", formula, *(np.full(ROWS, part) for part in parts))
    assert not has_worst(full)
    assert few_rows_bound(full, 0, 0.95) is None


def test_a_bound_is_passed_over_only_where_no_model_could_pass() -> None:
    wanted = np.arange(ROWS) % 2
    full = _classes(wanted, wanted)
    small = _classes(np.where(np.arange(ROWS) < 4, 1 - wanted, wanted), wanted)
    found = drop_bound(full, small)
    assert (found.differing, found.refused) == (4, None)
    assert found.least == few_rows_bound(full, 0, 0.95)
    assert found.upper == few_rows_bound(full, 4, 0.95)
    assert found.least is not None
    assert 0.02 < found.least < 0.04 < found.drop + 0.02 < found.upper
    assert found.judged(found.least - 1e-9).passed_over
    assert not found.judged(found.least + 1e-9).passed_over
    assert found.keeps(found.upper)


@pytest.mark.parametrize("worst", [False, True])
def test_it_holds_where_the_drop_equals_the_promise(worst: bool) -> None:
    """With one class in ten positive, at random or among the positives, whose loss hurts most."""
    rng, pool, draws = np.random.default_rng(3), 20_000, 300
    wanted = (rng.random(pool) < 0.1).astype(int)
    given = np.where(rng.random(pool) < 0.1, 1 - wanted, wanted)
    right = rng.permutation(np.flatnonzero((given == wanted) & (wanted == 1 if worst else True)))
    other = given.copy()
    other[right[: pool // 75]] ^= 1
    full, small = _classes(given, wanted), _classes(other, wanted)
    promise, broken = full.value - small.value, 0
    for _ in range(draws):
        rows = rng.integers(pool, size=500)
        broken += drop_bound(full.take(rows), small.take(rows), resamples=500).keeps(promise)
    assert broken / draws <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / draws)
