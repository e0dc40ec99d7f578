"""Testing in a fixed order: what ends it, what is chosen, and how often it is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import pytest

from sora_cli.search.evidence import Candidate
from sora_cli.search.promise import Promise
from sora_cli.search.search import Scored, in_fixed_order, sizes_tested
from sora_cli.search.size import Size
from sora_cli.search.sizes import last_passed
from sora_cli.search.statistic import AFTERWARDS, Bound
from sora_cli.search.statistics import drop_bound, statistic_of
from sora_cli.tasks.row_scores import RowScores, row_scores

ROWS = 300


def _with_wrong(wrong: int) -> RowScores:
    return row_scores("accuracy", "right", np.arange(ROWS) >= wrong)


class _Outcome:
    """The tests of sizes in a fixed order, and the smallest that passed; None: none did."""

    def __init__(
        self,
        full: RowScores,
        sizes: Iterable[int],
        scores: Callable[[int], RowScores],
        promise: float,
        confidence: float = 0.95,
    ) -> None:
        def test(small: RowScores) -> Bound:
            return drop_bound(full, small, confidence)

        asked: list[int] = []

        def make(size: int) -> RowScores:
            asked.append(size)
            return scores(size)

        made = in_fixed_order(sizes, make, test, promise)
        self.bounds = [bound for _, bound in made if bound is not None]
        self.passed = [bound.kept for bound in self.bounds]
        self.failed = [bound.failed for bound in self.bounds]
        place = last_passed(self.passed)
        self.chosen = None if place is None else asked[place]


def test_the_first_failure_ends_it_and_the_smallest_that_passed_is_chosen() -> None:
    asked: list[int] = []

    def scores(wrong: int) -> RowScores:
        asked.append(wrong)
        return _with_wrong(wrong)

    outcome = _Outcome(_with_wrong(0), [0, 1, 8, 0], scores, 0.025)
    assert asked == [0, 1, 8]
    assert outcome.passed == [True, True, False]
    assert outcome.chosen == 1
    assert outcome.failed == [False, False, True]
    bound = drop_bound(_with_wrong(0), _with_wrong(1), 0.95)
    assert outcome.bounds[1] == bound.judged(0.025)


def test_nothing_may_be_certified_and_everything() -> None:
    none = _Outcome(_with_wrong(0), [0, 0], _with_wrong, 0.005)
    assert (none.chosen, len(none.bounds)) == (None, 1)  # 300 rows certify 3 / 300 at best
    every = _Outcome(_with_wrong(0), [0, 1], _with_wrong, 0.02)
    assert every.failed == [False, False]
    assert every.chosen == 1
    stricter = _Outcome(_with_wrong(0), [0], _with_wrong, 0.0125, 0.99)
    assert stricter.chosen is None


def _sized(size: Size, scores: RowScores) -> Scored:
    return Candidate(**size.model_dump(), test=None), scores


def _promise(metric: str, drop: float) -> Promise:
    return Promise(
        metric=metric, max_drop=drop, given=f"{drop}", confidence=0.95, greater_is_better=True,
        serve=None,
    )  # fmt: skip


def _sizes(number: int) -> list[Size]:
    counts = range(number, 0, -1)
    return [Size(parameters=n, components=n, largest_rank=n, served=n) for n in counts]


@pytest.mark.parametrize(("there", "made"), [(9, 4), (3, 3)])
def test_if_none_passes_smaller_ones_are_scored_to_the_first_that_breaks_the_promise(
    there: int, made: int
) -> None:
    """Or to the first that is not there. 300 rows certify no drop below 0.01."""
    wrong = iter([0, 0, 1, 9, 9])
    full, promise = _with_wrong(0), _promise("accuracy", 0.005)
    asked: list[int] = []

    def make(size: Size) -> Scored | None:
        if len(asked) == there:
            return None
        asked.append(size.parameters)
        return _sized(size, _with_wrong(next(wrong)))

    bound = statistic_of(full).method_on(ROWS, promise.confidence)
    found, _ = sizes_tested(full, _sizes(5), make, promise, bound)
    assert [size.parameters for size in found] == asked == [5, 4, 3, 2][:made]
    tests = [size.test for size in found if size.test is not None]
    assert [test.failed for test in tests] == [True, *(False for _ in tests[1:])]
    assert [test.refused for test in tests[1:]] == [AFTERWARDS] * (made - 1)


def test_a_size_that_hardly_differs_passes_or_is_passed_over() -> None:
    wanted = np.arange(ROWS) % 2

    def scores(turned: int) -> RowScores:
        """Turn rows either way, so that nothing is lost on balance."""
        given = np.where(np.arange(ROWS) % 5 == 0, 1 - wanted, wanted)
        given[: turned * 5] = wanted[: turned * 5]
        given[1 : 1 + turned * 5 : 5] = 1 - wanted[1 : 1 + turned * 5 : 5]
        return row_scores("mcc", "matthews_correlation", given, wanted)

    outcome = _Outcome(scores(0), [4, 15, 60], scores, 0.2)
    assert [bound.differing for bound in outcome.bounds] == [8, 30, 120]
    assert outcome.passed == [True, True, True]
    outcome = _Outcome(scores(0), [4, 15, 60], scores, 0.01)
    assert [bound.passed_over for bound in outcome.bounds] == [True, False]
    assert outcome.failed == [False, True]  # it ends there, as ever
    assert outcome.chosen is None
    # the first size on which enough rows differ says what these rows can be expected to certify
    full, promise, turned = scores(0), _promise("matthews_correlation", 0.2), iter([4, 15, 60])
    bound = statistic_of(full).method_on(ROWS, promise.confidence)
    assert bound.smallest_drop is None
    found, method = sizes_tested(
        full, _sizes(3), lambda size: _sized(size, scores(next(turned))), promise, bound
    )
    assert [size.test.is_of_many for size in found if size.test] == [False, True, True]
    assert method.smallest_drop == statistic_of(full).beside(full, scores(15), ROWS, 0.95)


def test_the_error_of_the_whole_sequence_is_that_of_one_test() -> None:
    """The largest size keeps the promise, the two smaller ones break it just so."""
    rng, promise, broken, draws = np.random.default_rng(2), 0.03, 0, 400
    full = row_scores("accuracy", "right", np.ones(200))
    for _ in range(draws):
        sizes = [row_scores("accuracy", "right", rng.random(200) >= p) for p in (0.0, 0.03, 0.03)]
        outcome = _Outcome(full, [0, 1, 2], sizes.__getitem__, promise)
        broken += outcome.chosen is not None and outcome.chosen > 0
    assert 0 < broken / draws <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / draws)
