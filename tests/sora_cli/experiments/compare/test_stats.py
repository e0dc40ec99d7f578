"""Means, spreads and the bootstrap, against numbers worked out otherwise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import bootstrap

from sora_cli.experiments.compare.stats import RESAMPLES, Summary, difference, pairs, summary
from tests.present import present


def test_summary() -> None:
    assert summary([0.5]) == Summary(1, 0.5, None, 0.5, 0.5)
    found = summary([1.0, 2.0, 6.0])
    assert (found.n, found.mean, found.best, found.median) == (3, 3.0, 6.0, 2.0)
    assert found.std == pytest.approx(np.std([1, 2, 6], ddof=1))
    assert summary([1.0, 2.0], greater_is_better=False).best == 1.0


def test_what_is_no_number_shows() -> None:
    found = summary([0.5, math.nan])
    assert found.n == 2
    assert all(math.isnan(x or 0) for x in (found.mean, found.std, found.best, found.median))
    alone = present(difference([[math.nan, 1.0]]))
    assert math.isnan(alone.mean)
    assert alone.low is None


def test_pairs_are_of_one_seed() -> None:
    assert pairs({0: 1.0, 1: 2.0, 5: 9.0}, {1: 0.5, 0: 0.25, 7: 3.0}) == [0.75, 1.5]


def test_the_interval_is_that_of_scipy() -> None:
    values = np.random.default_rng(3).normal(0.02, 0.05, 12)
    found = difference([values.tolist()])
    other = bootstrap((values,), np.mean, method="percentile", n_resamples=RESAMPLES,
                      random_state=np.random.default_rng(1)).confidence_interval  # fmt: skip
    assert found is not None
    assert found.n == 12
    assert found.mean == pytest.approx(values.mean())
    assert found.low == pytest.approx(other.low, abs=0.002)
    assert found.high == pytest.approx(other.high, abs=0.002)


def test_over_tasks_pairs_are_drawn_within_their_task() -> None:
    rng = np.random.default_rng(4)
    tasks = [rng.normal(1, 0.1, 5), rng.normal(-3, 0.3, 9)]
    found = difference([values.tolist() for values in tasks])
    other = bootstrap(
        tasks, lambda a, b, axis: (a.mean(axis) + b.mean(axis)) / 2, method="percentile",
        n_resamples=RESAMPLES, vectorized=True, random_state=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    assert found is not None
    assert found.n == 14
    assert found.mean == pytest.approx((tasks[0].mean() + tasks[1].mean()) / 2)
    assert found.low == pytest.approx(other.low, abs=0.01)
    assert found.high == pytest.approx(other.high, abs=0.01)
    # the tasks' distance of 4 is no uncertainty
    assert found.high - found.low < 0.4


def test_it_is_the_same_each_time() -> None:
    assert difference([[0.1, 0.5, 0.2]]) == difference([[0.1, 0.5, 0.2]])


def test_without_two_pairs_there_is_no_interval() -> None:
    found = present(difference([[0.5]]))
    assert (found.n, found.mean, found.low, found.high) == (1, 0.5, None, None)
    found = present(difference([[0.5], [0.25, 0.75]]))
    assert (found.n, found.low) == (3, None)


def test_without_pairs_there_is_no_difference() -> None:
    assert difference([]) is None
    assert difference([[]]) is None
    assert difference([[0.5], []]) is None
