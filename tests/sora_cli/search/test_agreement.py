"""The bound of the share of rows that differ, and the rows that a promise takes."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from sora_cli.search.binomial import (
    allowed_rows,
    certifiable_share,
    rows_for_none,
    share_bound,
)
from tests.present import present


@pytest.mark.parametrize("rows", [1, 20, 277, 4000])
@pytest.mark.parametrize("confidence", [0.6, 0.95, 0.99])
def test_the_bound_is_scipys_exact_interval(rows: int, confidence: float) -> None:
    for differing in {0, 1, rows // 7, rows - 1, rows}:
        test = binomtest(differing, rows, alternative="less")
        theirs = test.proportion_ci(confidence, method="exact").high
        assert share_bound(differing, rows, confidence) == pytest.approx(theirs, rel=1e-9)


@pytest.mark.parametrize(("rows", "share"), [(60, 0.05), (300, 0.01), (1000, 0.004), (40, 0.5)])
def test_the_bound_is_below_the_truth_no_more_often_than_it_may(rows: int, share: float) -> None:
    draws = np.random.default_rng(0).binomial(rows, share, size=20_000)
    bounds = {n: share_bound(n, rows, 0.95) for n in set(draws.tolist())}
    missed = np.mean([bounds[n] < share for n in draws.tolist()])
    assert missed <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / len(draws))


@pytest.mark.parametrize(("promised", "rows"), [(0.01, 1000), (0.02, 400), (0.3, 20)])
def test_as_many_rows_may_differ_as_the_bound_allows(promised: float, rows: int) -> None:
    most = present(allowed_rows(promised, rows, 0.95))
    assert share_bound(most, rows, 0.95) <= promised < share_bound(most + 1, rows, 0.95)


def test_some_promises_take_more_rows() -> None:
    need = rows_for_none(0.01, 0.95)
    assert need == 299
    assert allowed_rows(0.01, need, 0.95) == 0
    assert allowed_rows(0.01, need - 1, 0.95) is None
    assert rows_for_none(0.0, 0.95) is None
    assert allowed_rows(0.0, 10**6, 0.95) is None


def test_that_is_certified_with_the_given_power() -> None:
    share = certifiable_share(2000, 0.004, 0.95, 0.8)
    assert share > share_bound(8, 2000, 0.95)
    draws = np.random.default_rng(1).binomial(2000, 0.004, size=5000)
    passed = np.mean([share_bound(int(n), 2000, 0.95) <= share for n in draws])
    assert 0.8 <= passed < 0.95
    assert certifiable_share(300, 0.0, 0.95, 0.8) == share_bound(0, 300, 0.95)
