"""The exact bound: its level, by enumeration and by simulation, and that it is no larger than due.

Where a test names p_lost and p_won, those are the shares of rows that only the first model, or only
the second one, gets right; the true drop is their difference.
"""

from __future__ import annotations

import random

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import beta, multinomial

from sora_cli.search import paired
from sora_cli.search.paired import exact_bound, score, score_limit


def _misses(n: int, p_lost: float, p_won: float, confidence: float) -> float:
    """Return how often the bound is below the true drop, over all outcomes of n rows.

    The bound grows with the rows lost, so for each number of rows won the misses come first.
    """
    missed, shares = 0.0, [p_lost, p_won, 1 - p_lost - p_won]
    for won in range(min(int(n * p_won + 6 * np.sqrt(n * p_won) + 1), n) + 1):
        low, high = 0, n - won + 1  # misses below low, covers from high on
        while low < high:
            lost = (low + high) // 2 if high - low < 20 else low + 5
            if lost <= n - won and exact_bound(lost, won, n, confidence) < p_lost - p_won:
                low = lost + 1
            else:
                high = lost
        outcomes = [[lost, won, n - lost - won] for lost in range(low)]
        missed += float(np.sum(multinomial.pmf(outcomes, n, shares))) if outcomes else 0.0
    return missed


@pytest.mark.parametrize(
    ("n", "p_lost", "p_won"),
    [
        (120, 0.005, 0.0),
        (277, 0.005, 0.0),
        (277, 0.01, 0.0),  # Tango's own limit misses here with 6.2 %
        (277, 0.01, 0.005),
        (1000, 0.005, 0.0),
        (10, 0.4, 0.2),
        (6, 0.1, 0.6),
    ],
)
def test_the_level_is_held_for_every_outcome_that_can_be(
    n: int, p_lost: float, p_won: float
) -> None:
    assert _misses(n, p_lost, p_won, 0.95) <= 0.05


@pytest.mark.parametrize(("lost", "won", "n"), [(1, 4, 16), (8, 0, 16), (3, 2, 16), (2, 4, 24)])
def test_shares_that_leave_no_row_the_same_are_thought_of(lost: int, won: int, n: int) -> None:
    """With them outcomes that speak for as small a drop are likeliest, and still not too likely."""
    pairs = np.array([(a, b) for a in range(n + 1) for b in range(n + 1 - a)])
    limits = score_limit(pairs[:, 0], pairs[:, 1], n, 0.95)
    seen = limits[(pairs == (lost, won)).all(axis=1)]
    small = pairs[limits <= seen + 1e-9]
    drop = exact_bound(lost, won, n, 0.95) + 1e-6
    p_won = (1 - drop) / 2
    outcomes = np.c_[small, n - small.sum(axis=1)]
    assert multinomial.pmf(outcomes, n, [1 - p_won, p_won, 0]).sum() <= 0.05


def test_the_score_limit_alone_does_not_hold_it() -> None:
    n, p = 277, 0.01
    lost = np.arange(12)
    chance = multinomial.pmf(np.stack([lost, n - lost], axis=1), n, [p, 1 - p])
    limits = score_limit(lost, np.zeros(12), n, 0.95)
    assert chance[limits < p].sum() > 0.06


@pytest.mark.parametrize("n", [20, 120, 277, 4000])
def test_with_no_differing_row_it_is_about_three_over_n(n: int) -> None:
    bound = exact_bound(0, 0, n, 0.95)
    level = 0.05 * (1 - 1e-3)  # a thousandth of it is spent on the share of gains
    assert bound == pytest.approx(1 - level ** (1 / n), abs=2e-8)  # (1 - bound)^n = level
    assert bound * n == pytest.approx(3, rel=0.1)


@pytest.mark.parametrize(("lost", "n"), [(1, 120), (5, 100), (3, 40)])
def test_with_losses_only_it_is_at_least_clopper_and_pearsons(lost: int, n: int) -> None:
    """And nearly equal to it: no gain was seen that could speak for the smaller model."""
    pearson = beta.ppf(0.95, lost + 1, n - lost)
    assert pearson - 1e-3 <= exact_bound(lost, 0, n, 0.95) <= pearson + 0.01


def test_for_many_rows_it_is_the_normal_one() -> None:
    bound = exact_bound(310, 310, 12_400, 0.95)
    assert bound == pytest.approx(1.6449 * np.sqrt(620) / 12_400, rel=0.01)
    apart = exact_bound(400, 300, 12_400, 0.95)
    assert apart == pytest.approx((100 + 1.6449 * np.sqrt(700)) / 12_400, rel=0.02)


def test_more_losses_are_worse_and_more_gains_better() -> None:
    bounds = np.array([[exact_bound(a, b, 60, 0.95) for b in range(4)] for a in range(4)])
    assert (np.diff(bounds, axis=0) > 0).all()
    assert (np.diff(bounds, axis=1) < 1e-9).all()
    assert exact_bound(3, 1, 60, 0.99) > exact_bound(3, 1, 60, 0.95)


def test_extremes() -> None:
    assert exact_bound(10, 0, 10, 0.95) == 1
    assert exact_bound(0, 10, 10, 0.95) == pytest.approx(1 - 2 * 0.05**0.1, abs=2e-3)
    assert -1 <= exact_bound(0, 120, 120, 0.95) < -0.9
    for bad in ((-1, 0, 5, 0.95), (3, 3, 5, 0.95), (0, 0, 0, 0.95), (0, 0, 5, 0.2), (0, 0, 5, 1)):
        with pytest.raises(ValueError):  # noqa: PT011
            exact_bound(*bad)


def test_without_unknown_rows_it_is_what_it_was() -> None:
    """The bounds are those of the version before there were rows without a label."""
    known = {
        (7, 7, 50, 0.95): 0.13086115777708687,
        (
            7,
            8,
            50,
            0.95,
        ): 0.1315025306786947,  # more than with 7 won: the interval of p_won has moved
        (21, 20, 1640, 0.95): 0.007243444875423729,
        (3, 0, 12, 0.9): 0.475348185527838,
        (14, 14, 5000, 0.99): 0.0026559432523287894,
    }
    for outcome, bound in known.items():
        assert exact_bound(*outcome) == pytest.approx(bound, abs=1e-6)


@pytest.mark.parametrize("rows", [12, 60, 277, 4000])
def test_finer_steps_find_no_other_bound(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = [(5, 5, 0), (8, 0, 0), (1, 9, 1), (6, 2, 4)]
    bounds = [exact_bound(a, b, rows, 0.95, unknown) for a, b, unknown in outcomes]
    monkeypatch.setattr(paired, "_ROUNDS", 10)
    finer = [exact_bound.__wrapped__(a, b, rows, 0.95, unknown) for a, b, unknown in outcomes]
    assert bounds == pytest.approx(finer, abs=1e-9)


def _short_of_completions(
    lost: int, won: int, rows: int, confidence: float, unknown: int, drawn: int | None = None
) -> float:
    """Return by how much the bound with unknown rows is below that of some way to label them.

    Args:
        drawn: try so many ways, and those that label all rows alike; None: try all ways.
    """
    bound = exact_bound(lost, won, rows, confidence, unknown)
    ways = [(found, gained) for found in range(unknown + 1) for gained in range(found + 1)]
    if drawn is not None:
        ways = [(0, 0), (unknown, 0), (unknown, unknown), *random.Random(0).choices(ways, k=drawn)]
    filled = (exact_bound(lost - f, won + g, rows, confidence) for f, g in ways)
    return max(filled) - bound


@pytest.mark.parametrize(
    "rows", [5, *(pytest.param(n, marks=pytest.mark.long) for n in (8, 20, 30))]
)
def test_no_way_to_label_the_unknown_rows_has_a_larger_bound(rows: int) -> None:
    """Of 30 rows every ninth count: all of them hold, too, and take two minutes."""
    counts = [
        (lost, won, unknown)
        for lost in range(1, rows + 1)
        for won in range(rows - lost + 1)
        for unknown in range(1, lost + 1)
    ]
    for lost, won, unknown in counts[:: 9 if rows > 20 else 1]:
        assert _short_of_completions(lost, won, rows, 0.95, unknown) <= 1e-7


@pytest.mark.long
def test_nor_has_one_of_many_rows() -> None:
    rng = np.random.default_rng(7)
    for _ in range(60):
        rows = int(rng.integers(41, 5001))
        differing = int(rng.integers(1, min(rows, 41)))
        lost = int(rng.integers(1, differing + 1))
        unknown = int(rng.integers(1, min(lost, 12) + 1))
        confidence = float(rng.choice([0.9, 0.95, 0.99]))
        outcome = (lost, differing - lost, rows, confidence, unknown)
        assert _short_of_completions(*outcome, drawn=9) <= 1e-7, outcome


def test_a_label_makes_the_bound_smaller_and_no_label_can_be_worth_more_than_a_loss() -> None:
    """41 of 1,640 rows differ, as in the documentation: 21 lost, and so on."""
    none, half = (exact_bound(41 - won, won, 1640, 0.95, 41 - won) for won in (0, 10))
    full = exact_bound(21, 20, 1640, 0.95)
    assert none == pytest.approx(0.0323, abs=1e-4)
    assert full == pytest.approx(0.0072, abs=1e-4)
    assert full < half < none
    # p_won is searched in the intervals of 3 to 10 rows won, and not in that of 3 alone
    assert exact_bound(7, 3, 50, 0.95) == pytest.approx(0.1978, abs=1e-4)
    assert exact_bound(7, 3, 50, 0.95, 7) == pytest.approx(0.2092, abs=1e-4)
    for lost, unknown in ((3, 4), (3, -1)):
        with pytest.raises(ValueError, match="without a label"):
            exact_bound(lost, 0, 50, 0.95, unknown)


@pytest.mark.parametrize("drop", [0.3, 0.02, -0.1])
def test_the_statistic_takes_the_likeliest_share_of_gains(drop: float) -> None:
    lost, won, n = 7, 4, 50

    def unlikely(p: float) -> float:
        shares = np.array([p + drop, p, 1 - 2 * p - drop])
        return -float(np.array([lost, won, n - lost - won]) @ np.log(shares))

    bounds = (max(0, -drop) + 1e-9, (1 - drop) / 2 - 1e-9)
    p = minimize_scalar(unlikely, bounds=bounds, method="bounded", options={"xatol": 1e-10}).x
    expected = (lost - won - n * drop) / np.sqrt(n * (2 * p + drop - drop**2))
    found = score(np.array([lost]), np.array([won]), n, drop)
    assert found[0] == pytest.approx(expected, rel=1e-5)
    assert score(np.array([5]), np.array([0]), 50, 0.1)[0] == 0
    limit = score_limit(np.array([lost]), np.array([won]), n, 0.95)
    assert score(np.array([lost]), np.array([won]), n, limit)[0] == pytest.approx(
        -1.64485, abs=1e-4
    )


@pytest.mark.long
@pytest.mark.parametrize("n", [120, 277, 1000, 4000])
@pytest.mark.parametrize("gains", [0.0, 0.2, 0.4])
def test_at_a_drop_equal_to_the_promise_few_are_certified(n: int, gains: float) -> None:
    """Half a row in a hundred differs; the promise is the true drop; 20,000 draws of rows."""
    differing = 0.005
    p_won = differing * gains
    promise = differing - 2 * p_won
    rng = np.random.default_rng(n)
    draws = rng.multinomial(n, [differing - p_won, p_won, 1 - differing], size=20_000)
    outcomes, times = np.unique(draws[:, :2], axis=0, return_counts=True)
    passed = [exact_bound(int(a), int(b), n, 0.95) <= promise for a, b in outcomes]
    share = times[np.array(passed)].sum() / times.sum()
    assert share <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 20_000)
