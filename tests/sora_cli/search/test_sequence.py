"""Testing in a fixed order, the parting of rows, and what rows can carry."""

from __future__ import annotations

import numpy as np
import pytest

from sora_cli.search.bounds import drop_bound
from sora_cli.search.certifiable import certifiable_drop, certifiable_from, rows_needed
from sora_cli.search.paired import exact_bound
from sora_cli.search.sequence import in_fixed_order, part_rows
from sora_cli.tasks.row_scores import RowScores, row_scores

ROWS = 300


def _with_wrong(wrong: int) -> RowScores:
    return row_scores("accuracy", "right", np.arange(ROWS) >= wrong)


def test_the_first_failure_ends_it_and_the_smallest_that_passed_is_chosen() -> None:
    asked: list[int] = []

    def scores(wrong: int) -> RowScores:
        asked.append(wrong)
        return _with_wrong(wrong)

    outcome = in_fixed_order(_with_wrong(0), [0, 1, 8, 0], scores, 0.025)
    assert asked == [0, 1, 8]
    assert [trial.passed for trial in outcome.tested] == [True, True, False]
    assert outcome.chosen is not None
    assert (outcome.chosen.size, outcome.confidence) == (1, 0.95)
    assert outcome.failed is outcome.tested[2]
    assert outcome.tested[1].bound == drop_bound(_with_wrong(0), _with_wrong(1))


def test_nothing_may_be_certified_and_everything() -> None:
    none = in_fixed_order(_with_wrong(0), [0, 0], _with_wrong, 0.005)
    assert (none.chosen, len(none.tested)) == (None, 1)  # 300 rows carry 3 / 300 at best
    every = in_fixed_order(_with_wrong(0), [0, 0], _with_wrong, 0.02)
    assert every.failed is None
    assert every.chosen is every.tested[-1]
    stricter = in_fixed_order(_with_wrong(0), [0], _with_wrong, 0.0125, 0.99)
    assert stricter.chosen is None


def test_a_size_that_hardly_differs_passes_or_is_passed_over() -> None:
    wanted = np.arange(ROWS) % 2

    def scores(turned: int) -> RowScores:
        """Turn rows either way, so that nothing is lost on balance."""
        given = np.where(np.arange(ROWS) % 5 == 0, 1 - wanted, wanted)
        given[: turned * 5] = wanted[: turned * 5]
        given[1 : 1 + turned * 5 : 5] = 1 - wanted[1 : 1 + turned * 5 : 5]
        return row_scores("mcc", "matthews_correlation", given, wanted)

    outcome = in_fixed_order(scores(0), [4, 15, 60], scores, 0.2)
    assert [trial.bound.differing for trial in outcome.tested] == [8, 30, 120]
    assert [trial.passed for trial in outcome.tested] == [True, True, True]
    outcome = in_fixed_order(scores(0), [4, 15, 60], scores, 0.01)
    assert [trial.passed_over for trial in outcome.tested] == [True, False]
    assert outcome.failed is outcome.tested[1]  # it ends there, as ever
    assert outcome.chosen is None


def test_rows_are_parted_by_the_seed_alone() -> None:
    screen, rest = part_rows(101, 7)
    assert sorted([*screen, *rest]) == list(range(101))
    assert len(screen) == 50
    assert (np.diff(screen) > 0).all()
    assert screen.tolist() == part_rows(101, 7)[0].tolist() != part_rows(101, 8)[0].tolist()
    assert [len(part) for part in part_rows(10, 0, screening=0.3)] == [3, 7]
    assert [len(part) for part in part_rows(2, 0, screening=0.01)] == [1, 1]


@pytest.mark.parametrize(("drop", "rows"), [(0.005, 12_400), (0.01, 3_100), (0.02, 770)])
def test_known_numbers_of_rows_carry_a_drop_where_one_in_twenty_differs(
    drop: float, rows: int
) -> None:
    assert rows_needed(drop, differing=0.05) == pytest.approx(rows, rel=0.01)
    assert certifiable_drop(rows, differing=0.05) == pytest.approx(drop, rel=0.04)


def test_what_277_rows_can_carry() -> None:
    assert certifiable_drop(277) == pytest.approx(0.0276, abs=5e-4)
    assert certifiable_drop(277, differing=0) == exact_bound(0, 0, 277, 0.95)
    assert certifiable_drop(277, power=0.5) < certifiable_drop(277)
    assert certifiable_drop(277, confidence=0.9) < certifiable_drop(277)
    assert rows_needed(0.005, differing=0) == 598  # 0.995^598 < 0.05


def test_the_drop_said_to_be_carried_is_certified_four_times_in_five() -> None:
    rows, differing = 277, 0.02
    drop = certifiable_drop(rows, differing=differing)
    rng = np.random.default_rng(0)
    shares = [differing / 2, differing / 2, 1 - differing]
    draws = rng.multinomial(rows, shares, size=1000)[:, :2]
    outcomes, times = np.unique(draws, axis=0, return_counts=True)
    bounds = np.array([exact_bound(int(a), int(b), rows, 0.95) for a, b in outcomes])
    assert times[bounds <= drop].sum() / 1000 == pytest.approx(0.82, abs=0.04)


def test_screening_rows_say_what_others_can_carry() -> None:
    full, small = _with_wrong(0), _with_wrong(12)
    assert certifiable_from(full, small, 277) == certifiable_drop(277, differing=12 / ROWS)
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, ROWS)) * 0.1
    means = [row_scores("rouge1", "mean", values) for values in (first, second)]
    spread = (first - second).std(ddof=1)
    expected = (1.64485 + 0.84162) * spread / np.sqrt(1000)
    assert certifiable_from(*means, 1000) == pytest.approx(expected, rel=1e-3)


def test_the_error_of_the_whole_sequence_is_that_of_one_test() -> None:
    """The largest size keeps the promise, the two smaller ones break it just so."""
    rng, promise, broken, draws = np.random.default_rng(2), 0.03, 0, 400
    full = row_scores("accuracy", "right", np.ones(200))
    for _ in range(draws):
        sizes = [row_scores("accuracy", "right", rng.random(200) >= p) for p in (0.0, 0.03, 0.03)]
        outcome = in_fixed_order(full, [0, 1, 2], sizes.__getitem__, promise)
        broken += outcome.chosen is not None and outcome.chosen.size > 0
    assert 0 < broken / draws <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / draws)
