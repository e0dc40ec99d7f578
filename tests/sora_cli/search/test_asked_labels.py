"""The test by asked labels: its counts and bounds, the rows that are planned, the sizes that go in.

Answers and labels are numbers here: 0 is the reference's answer, 1 the size's, 2 another one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from sora_cli.search.asked import Asked, digest_of
from sora_cli.search.asked_labels import AskedLabels, best_of, bound_of, more_labels
from sora_cli.search.asked_search import planned_rows, rows_for_shares
from sora_cli.search.paired import exact_bound
from sora_cli.search.promise import Promise
from sora_cli.search.statistic import Bound, Labelled
from sora_cli.search.statistics import drop_bound, statistic_in, statistic_of
from sora_cli.tasks.row_scores import ASKED, UNLABELLED, RowScores, asked_scores
from sora_cli.verify.tolerances import close
from tests.present import present
from tests.sora_cli.experiments.auto.support import screened

ROWS = 60
NO = UNLABELLED


def promise(max_drop: float = 0.01, labels: int = 60) -> Promise:
    return Promise(
        basis="asked", labels=labels, max_drop=max_drop, given="x", confidence=0.95,
        metric="accuracy", greater_is_better=True, serve=None,
    )  # fmt: skip


def scores(answers: np.ndarray, first: np.ndarray, second: np.ndarray) -> RowScores:
    return RowScores("agreement", ASKED, np.stack([answers, first, second], axis=1))


def bound_by(labels: Sequence[float], second: Sequence[float] = (), rows: int = ROWS) -> Bound:
    """The test of a size that differs on as many rows as there are labels."""
    first, again, small = np.full(rows, NO), np.full(rows, NO), np.zeros(rows)
    first[: len(labels)], again[: len(second)], small[: len(labels)] = labels, second, 1
    return drop_bound(scores(np.zeros(rows), first, again), scores(small, first, again))


def test_labels_tell_which_rows_are_lost_and_won() -> None:
    found = bound_by([0, 0, 0, 1, 1, NO, NO])
    counts = present(found.labelled)
    assert (counts.lost, counts.won, counts.missing, counts.neither) == (3, 2, 2, 0)
    assert found.drop == pytest.approx((3 + 2 - 2) / ROWS)  # rows without a label count as lost
    assert found.score == pytest.approx(1 - 7 / ROWS)
    assert found.upper == exact_bound(5, 2, ROWS, 0.95, 2)
    assert found.differing == 7
    assert counts.strict == found.upper


def test_a_label_on_rows_that_do_not_differ_changes_nothing() -> None:
    labels = np.full(ROWS, 0.0)
    small = np.where(np.arange(ROWS) < 3, 1.0, 0.0)
    none = np.full(ROWS, NO)
    found = drop_bound(scores(np.zeros(ROWS), labels, none), scores(small, labels, none))
    assert found.labelled is not None
    assert found.labelled.differing == found.labelled.lost == 3


def test_labels_of_neither_model_have_a_second_bound() -> None:
    """One of 11 labels is neither model's: fewer than a tenth."""
    found = bound_by([*[0.0] * 5, *[1.0] * 5, 2])
    counts = present(found.labelled)
    assert (counts.neither, counts.alone, counts.missing) == (1, 0, 0)
    assert found.upper == exact_bound(5, 5, ROWS, 0.95)
    assert counts.strict == exact_bound(6, 5, ROWS, 0.95, 1) > found.upper
    middle = (found.upper + counts.strict) / 2
    statistic, kept = statistic_of(RowScores("a", ASKED, np.zeros((1, 3)))), promise(middle)
    said = statistic.remark(found.judged(middle), kept)
    assert said.startswith("; 11 rows differ: 5 lost, 5 won, 1 neither; with the labels of neither")
    assert said.endswith("the promise RESTS ON THESE LABELS")
    wide = promise(0.5)
    assert "RESTS" not in statistic.remark(found.judged(0.5), wide)


def test_many_labels_of_neither_model_need_a_second_person() -> None:
    """41 rows labelled so would be the bound of two equal models."""
    alone = bound_by([2.0] * 41, rows=1640)
    assert alone.labelled is not None
    assert (alone.labelled.neither, alone.labelled.alone, alone.labelled.missing) == (0, 41, 41)
    assert alone.upper == exact_bound(41, 0, 1640, 0.95, 41)
    both = bound_by([2.0] * 41, [2.0] * 41, rows=1640)
    assert both.labelled is not None
    assert both.labelled.neither == 41
    assert both.upper == exact_bound(0, 0, 1640, 0.95)
    assert both.labelled.strict == alone.upper


def test_two_labels_that_disagree_count_as_lost_whatever_they_are() -> None:
    found = bound_by([0, 1, 1, NO], [0, 1, 0, 1])
    counts = present(found.labelled)
    # the last row has its label from the second person alone
    assert (counts.lost, counts.won, counts.disagree, counts.missing) == (1, 2, 1, 0)
    assert found.upper == exact_bound(2, 2, ROWS, 0.95, 1)
    given = {"a": ("x", "x"), "b": ("x", "y"), "c": ("", "y"), "d": ("", "")}
    asked = Asked(planned=60, rows=10).with_answers(given)
    assert (asked.wanted, asked.answered, asked.twice, asked.agreed) == (4, 3, 2, 1)
    assert asked.answers == digest_of(dict(reversed(given.items())))
    assert asked.answers != digest_of({**given, "d": ("x", "")})


@pytest.mark.parametrize(
    ("share", "rows", "labels"), [(0.01, 796, 8), (0.025, 1640, 41), (0.03, 1933, 58)]
)
def test_as_many_rows_test_as_the_promise_needs(share: float, rows: int, labels: int) -> None:
    assert planned(share, max_drop=0.01) == rows
    assert round(rows * share) == labels


def planned(*shares: float, labels: int = 60, max_drop: float = 0.03, there: int = 10**6) -> int:
    """Plan the rows of sizes that differ on these shares of very many screening rows."""
    sizes = screened(list(shares))
    for size in sizes:
        size.named = True
    return planned_rows(sizes, 10**9, promise(max_drop, labels), there)


def test_the_labels_and_the_rows_there_are_limit_the_plan() -> None:
    assert planned(0.05, labels=10) == 10 / 0.05  # a promise of three points takes 17 labels
    assert planned(0.025, there=100) == 100
    # of two sizes that one counts which needs more rows, if its labels are few enough
    assert planned(0.01, 0.025) == planned(0.025)
    assert planned(0.01, 0.2, labels=10) == planned(0.01)
    assert planned(0.0) == planned(0.001)  # a few hundred rows do not show that none differs
    assert planned(0.02, max_drop=0.0) == 60 / 0.02


def test_more_rows_test_if_every_row_that_differs_may_be_lost() -> None:
    """Of one point: half of 0.5 % lost takes 586 rows."""

    def more(*shares: float, labels: int = 60, there: int = 10**6, largest: float = 0.0) -> int:
        return rows_for_shares(shares, promise(0.01, labels), there, largest=largest)

    assert more(0.005) == 1941
    assert more(0.005, there=1000) == 1000  # none of these numbers is enough: all come nearest
    assert more(0.005, largest=0.03) == 1941  # 58 labels
    assert more(0.005, largest=0.031) == planned(0.005, max_drop=0.01)
    assert more(0.005, labels=5) == planned(0.005, max_drop=0.01, labels=5)
    assert more(0.02) == planned(0.02, max_drop=0.01)  # more than a point would be lost
    assert more(0.005, 0.02) == more(0.005)


def test_the_bound_of_a_number_of_labels_beforehand() -> None:
    """60 labels reach 2,400 rows, if 2.5 % of them differ."""
    limited = AskedLabels(labels=60)
    assert limited.smallest(10_000, 0.95) == limited.smallest(2400, 0.95)
    assert limited.smallest(1640, 0.95) == pytest.approx(0.01, abs=1e-4)
    more = statistic_in(limited.method_on(2000, 0.95), promise(labels=120))
    assert isinstance(more, AskedLabels)
    assert more.labels == 120


def test_how_many_more_labels_certify() -> None:
    rows, counts = 1640, Labelled(lost=6, won=5, neither=0, missing=30)
    more = present(more_labels(counts, rows, promise()))

    def bound(more: int) -> float:
        won = more * 5 // 11
        filled = counts.model_copy(
            update={"lost": 6 + more - won, "won": 5 + won, "missing": 30 - more}
        )
        return bound_of(filled, rows, 0.95)

    assert bound(more) <= 0.01 < bound(more - 1)
    assert more_labels(Labelled(lost=11, won=0, neither=0, missing=30), rows, promise()) is None
    assert more_labels(Labelled(lost=0, won=0, neither=0, missing=41), rows, promise()) is None
    assert best_of(counts, rows, 0.95) < 0


def test_figures_of_another_machine_follow_from_the_counts() -> None:
    found, statistic = bound_by([0, 0, 1, NO, 2]), AskedLabels()
    wrong: dict[str, Any] = {"drop": 0.5, "upper": 0.6, "differing": 9}
    again = statistic.followed(found.model_copy(update=wrong), 1.0, ROWS, promise())
    assert (again.drop, again.differing) == (found.drop, 5)
    assert close(again.upper, found.upper)
    assert found.labelled is not None
    assert again.labelled is not None
    assert close(again.labelled.strict, found.labelled.strict)
    full = scores(np.zeros(ROWS), np.full(ROWS, NO), np.full(ROWS, NO))
    assert 0 < statistic.apart(full, found, 0.95, 1) < statistic.apart(full, found, 0.95, 2)


def test_the_first_size_is_planned_as_if_every_row_that_differs_were_lost() -> None:
    """Eight of 500 rows differ: two points hold if half of such rows are lost, not if all are."""
    whole = asked_scores(["full"] * 500)

    def planned(differ: int) -> float:
        small = asked_scores(["size"] * differ + ["full"] * (500 - differ))
        expected = AskedLabels().expected(0.3, whole, small, 1500, 0.95)
        return expected.drop + (expected.certifiable or 0)

    assert planned(0) < 0.02
    assert planned(8) > 0.02
