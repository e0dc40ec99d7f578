"""The smallest drop that so many rows can certify."""

from __future__ import annotations

import numpy as np
import pytest

from sora_cli.search.any_metric import AnyMetric
from sora_cli.search.certifiable import (
    certifiable_drop,
    drop_if_lost,
    rows_if_lost,
    rows_needed,
)
from sora_cli.search.paired import exact_bound
from sora_cli.search.right_or_wrong import RightOrWrong
from sora_cli.tasks.row_scores import RowScores, row_scores
from tests.present import present

ROWS = 300


def _with_wrong(wrong: int) -> RowScores:
    return row_scores("accuracy", "right", np.arange(ROWS) >= wrong)


@pytest.mark.parametrize(("drop", "rows"), [(0.005, 12_400), (0.01, 3_100), (0.02, 770)])
def test_known_numbers_of_rows_certify_a_drop_where_one_in_twenty_differs(
    drop: float, rows: int
) -> None:
    """The normal approximation of many rows, 6.2 p / d^2, is a little too small for few."""
    needed = rows_needed(drop, differing=0.05)
    assert rows <= needed <= 1.08 * rows
    assert certifiable_drop(rows, differing=0.05) == pytest.approx(drop, rel=0.04)


@pytest.mark.parametrize("confidence", [0.95, 0.995])
@pytest.mark.parametrize("drop", [0.01, 0.02, 0.03, 0.05, 0.1, 0.5])
def test_the_rows_needed_are_enough_and_not_one_fewer(drop: float, confidence: float) -> None:
    rows = rows_needed(drop, confidence=confidence)
    assert certifiable_drop(rows, confidence=confidence) <= drop
    assert certifiable_drop(rows - 1, confidence=confidence) > drop


@pytest.mark.parametrize(("drop", "differing"), [(0.005, 0.002), (0.01, 0.005), (0.02, 0.013)])
def test_rows_that_certify_a_drop_though_each_row_that_differs_is_lost(
    drop: float, differing: float
) -> None:
    rows = present(rows_if_lost(drop, differing, 10_000))
    assert 0.999 * drop < drop_if_lost(rows, differing) <= drop
    # with fewer rows a test of as many lost rows fails, or more rows differ in a fifth of the draws
    assert all(drop_if_lost(n, differing) > drop for n in range(max(rows - 50, 1), rows))
    assert rows > rows_needed(drop, differing=differing)
    assert rows_if_lost(drop, differing, rows - 1) is None
    assert rows_if_lost(drop, 1.5 * drop, 3000) is None


def test_what_277_rows_can_certify() -> None:
    assert certifiable_drop(277) == pytest.approx(0.0276, abs=5e-4)
    assert certifiable_drop(277, differing=0) == exact_bound(0, 0, 277, 0.95)
    assert certifiable_drop(277, power=0.5) < certifiable_drop(277)
    assert certifiable_drop(277, confidence=0.9) < certifiable_drop(277)
    assert rows_needed(0.005, differing=0) == 598  # 0.995^598 < 0.05


def test_the_drop_said_to_be_certifiable_is_certified_four_times_in_five() -> None:
    rows, differing = 277, 0.02
    drop = certifiable_drop(rows, differing=differing)
    rng = np.random.default_rng(0)
    shares = [differing / 2, differing / 2, 1 - differing]
    draws = rng.multinomial(rows, shares, size=1000)[:, :2]
    outcomes, times = np.unique(draws, axis=0, return_counts=True)
    bounds = np.array([exact_bound(int(a), int(b), rows, 0.95) for a, b in outcomes])
    assert times[bounds <= drop].sum() / 1000 == pytest.approx(0.82, abs=0.04)


def test_screening_rows_say_what_others_can_certify() -> None:
    full, small = _with_wrong(0), _with_wrong(12)
    assert RightOrWrong().beside(full, small, 277, 0.95) == certifiable_drop(
        277, differing=12 / ROWS
    )
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, ROWS)) * 0.1
    means = [row_scores("rouge1", "mean", values) for values in (first, second)]
    spread = (first - second).std(ddof=1)
    expected = (1.64485 + 0.84162) * spread / np.sqrt(1000)
    assert AnyMetric().beside(*means, 1000, 0.95) == pytest.approx(expected, rel=1e-3)
