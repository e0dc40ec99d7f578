"""The bootstrap: equal to scipy's, and refused where it says nothing."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import bootstrap, norm, t

from sora_cli.search.bca import (
    BootstrapRefusedError,
    bca_bound,
    differing_rows,
    drops,
    influences,
)
from sora_cli.search.statistics import drop_bound, statistic_of
from sora_cli.tasks.row_scores import RowScores, row_scores

ROWS = 150


def widened(rows: int) -> float:
    """The confidence at which scipy's bound is ours of 0.95: Student's t, of so many rows."""
    return float(norm.cdf(t.ppf(0.95, rows - 1) * np.sqrt(rows / (rows - 1))))


def _pair(formula: str, *, better: bool = True) -> tuple[RowScores, RowScores]:
    rng = np.random.default_rng(5)
    if formula in ("mean", "right"):
        skewed = rng.exponential(size=(2, ROWS))
        parts = [(row,) for row in skewed]
    elif formula == "matthews_correlation":
        label = rng.integers(2, size=ROWS)
        noise = rng.random((2, ROWS)) < np.array([[0.15], [0.25]])
        parts = [(np.where(flip, 1 - label, label), label) for flip in noise]
    else:
        label = rng.normal(size=ROWS)
        parts = [(label + s * rng.normal(size=ROWS), label) for s in (0.5, 0.8)]
    made = (row_scores("m", formula, *part, greater_is_better=better) for part in parts)
    full, small = made
    return full, small


@pytest.mark.parametrize("formula", ["mean", "matthews_correlation", "pearson"])
@pytest.mark.parametrize("better", [True, False])
def test_it_is_scipys(formula: str, better: bool) -> None:
    full, small = _pair(formula, better=better)

    def drop(rows: np.ndarray) -> float:
        sign = 1 if better else -1
        return sign * (full.take(rows).value - small.take(rows).value)

    draws = 4000 if formula == "matthews_correlation" else 500
    found = bca_bound(full, small, 0.95, seed=2, resamples=draws)
    numbers = (np.arange(ROWS),)
    options = {"method": "BCa", "alternative": "less", "vectorized": False}
    level = widened(differing_rows(full, small))
    theirs = bootstrap(numbers, drop, confidence_level=level, n_resamples=draws, rng=2, **options)
    spread = theirs.bootstrap_distribution.std()
    # the same draws; rows of which many are alike are drawn by kind, in other draws
    close = {"abs": 0.1 * spread} if formula == "matthews_correlation" else {"rel": 1e-9}
    assert found == pytest.approx(theirs.confidence_interval.high, **close)
    ones = np.ones((1, ROWS))
    assert drops(full, small, ones)[0] == pytest.approx(drop(np.arange(ROWS)))
    assert influences(full, small).std() / np.sqrt(ROWS) == pytest.approx(spread, rel=0.1)


def test_bias_and_acceleration_are_scipys() -> None:
    """Of scores that are very skewed, where both matter."""
    values = np.random.default_rng(0).exponential(size=60) ** 2
    full, zero = (row_scores("m", "mean", column) for column in (values, np.zeros(60)))
    options = {"method": "BCa", "alternative": "less", "confidence_level": widened(60), "rng": 1}
    theirs = bootstrap((values,), np.mean, n_resamples=2000, vectorized=True, **options)
    found = bca_bound(full, zero, 0.95, seed=1, resamples=2000)  # the same draws
    assert found == pytest.approx(theirs.confidence_interval.high, rel=1e-9)


def test_bias_and_skew_move_the_bound() -> None:
    """Of skewed scores it is above the normal bound; the mirrored ones have it below."""
    rng = np.random.default_rng(3)
    values = rng.exponential(size=80) ** 2
    zero = row_scores("m", "mean", np.zeros(80))
    for sign in (1, -1):
        full = row_scores("m", "mean", sign * values)
        normal = full.value + 1.645 * values.std() / np.sqrt(80)
        bound = bca_bound(full, zero, 0.95)
        assert sign * (bound - normal) > 0.02


def test_rows_by_kind_are_the_same_rows() -> None:
    """Leaving out a row of a kind is leaving out that row."""
    full, small = _pair("matthews_correlation")
    apart = influences(full, small)
    one_by_one = []
    for row in range(ROWS):
        rest = np.delete(np.arange(ROWS), row)
        one_by_one.append(full.take(rest).value - small.take(rest).value)
    left = np.array(one_by_one)
    np.testing.assert_allclose(apart, (ROWS - 1) * (left.mean() - left), atol=1e-9)


def test_a_seed_gives_the_same_bound_again() -> None:
    full, small = _pair("mean")
    first = bca_bound(full, small, 0.95, seed=3, resamples=500)
    assert first == bca_bound(full, small, 0.95, seed=3, resamples=500)
    assert first != bca_bound(full, small, 0.95, seed=4, resamples=500)
    assert first < bca_bound(full, small, 0.99, seed=3, resamples=500)


def test_rows_that_say_nothing_are_refused() -> None:
    full, small = _pair("mean")
    few = np.arange(49)
    almost = full.parts.copy()
    almost[:19] += 1
    odd = full.parts.copy()
    odd[3] = np.nan
    for other, whole, reason in (
        (small.take(few), full.take(few), "few rows"),
        (row_scores("m", "mean", almost[:, 0]), full, "few rows differ"),
        (row_scores("m", "mean", full.parts[:, 0] + 0.25), full, "constant"),
        (row_scores("m", "mean", odd[:, 0]), full, "not finite"),
    ):
        with pytest.raises(BootstrapRefusedError) as caught:
            bca_bound(whole, other, 0.95, resamples=200)
        assert caught.value.reason == reason
        bound = drop_bound(whole, other)
        assert math.isnan(bound.upper)
        assert bound.refused == str(caught.value)
        assert not bound.keeps(100)
    assert differing_rows(full, row_scores("m", "mean", almost[:, 0])) == 19


def test_right_or_wrong_is_bounded_exactly_and_other_scores_approximately() -> None:
    first = np.ones(100)
    second = first.copy()
    second[:2] = 0
    full, small = (row_scores("accuracy", "right", parts) for parts in (first, second))
    bound = drop_bound(full, small)
    assert statistic_of(full).method_on(100, 0.95).exact
    assert bound.differing == 2
    assert bound.drop == pytest.approx(0.02)
    assert bound.upper == pytest.approx(0.0616, abs=2e-3)
    back = drop_bound(small, full)
    assert back.drop == pytest.approx(-0.02)
    assert back.upper < bound.upper
    assert bound.keeps(bound.upper)
    assert not bound.keeps(bound.upper - 1e-6)
    together = [replace(scores, rows_alone=False) for scores in (full, small)]
    assert drop_bound(*together) == bound
    assert not statistic_of(full).method_on(100, 0.95, rows_alone=False).exact
    a, _ = _pair("mean")
    assert not statistic_of(a).method_on(100, 0.95).exact
    with pytest.raises(ValueError, match="different metrics or rows"):
        drop_bound(full, a)


@pytest.mark.long
@pytest.mark.parametrize(("rows", "differing", "most"), [(277, 0.3, 0.08), (1000, 0.02, 0.08)])
def test_at_a_drop_equal_to_the_promise_about_one_in_twenty_is_certified(
    rows: int, differing: float, most: float
) -> None:
    """An approximation: with few differing rows, or without the refusals, it is up to 17 %."""
    rng = np.random.default_rng(rows)
    zero, passed = row_scores("m", "mean", np.zeros(rows)), 0
    for draw in range(400):
        sign = np.where(rng.random(rows) < 0.3, -1, 1)
        lost = sign * rng.random(rows) * (rng.random(rows) < differing)
        bound = drop_bound(row_scores("m", "mean", lost), zero, seed=draw)
        passed += bound.keeps(differing * (1 - 2 * 0.3) / 2)
    assert passed / 400 <= most
