"""A certificate's figures compared: to rounding, or within what a few rows explain."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from sora_cli.search.evidence import Evidence
from sora_cli.search.promise import Promise
from sora_cli.search.rows import method_on
from sora_cli.search.statistic import Bound, Labelled
from sora_cli.search.statistics import drop_bound, statistic_of
from sora_cli.tasks.row_scores import ASKED, UNLABELLED, RowScores, answer_scores, row_scores
from sora_cli.verify.tolerances import TOLERANCES, Comparison, _known, _leaves, compare
from tests.sora_cli.search.test_certificate import certificate, certificate_of_answers

ROWS = 400


def scores(lost: int, won: int = 0, formula: str = "right") -> RowScores:
    """The scores of a model that differs on rows from one that is right on all but the last 50."""
    right = np.ones(ROWS)
    right[-50:] = 0
    right[:lost] = 0
    right[ROWS - won :] = 1
    return row_scores("accuracy", formula, right)


def promise(max_drop: float = 0.05) -> Promise:
    return certificate().promise.model_copy(update={"max_drop": max_drop})


def judged(full: RowScores, small: RowScores, asked: Promise) -> Bound:
    return drop_bound(full, small, asked.confidence).judged(asked.max_drop)


def evidence(whole: float, asked: Promise, full: RowScores, *tests: Bound) -> Evidence:
    """A certificate of sizes with these tests."""
    some = certificate()
    (size,) = some.candidates
    sizes = [
        size.model_copy(update={"test": test, "directory": f"sizes/{i}", "reported": {}})
        for i, test in enumerate(tests, 1)
    ]
    update = {
        "promise": asked,
        "bound": method_on(full, ROWS, asked),
        "full": some.full.model_copy(update={"test": whole, "reported": {}}),
        "candidates": sizes,
    }
    return Evidence.model_validate(some.model_copy(update=update).model_dump())


def beside(
    stored: Sequence[Bound], here: Sequence[Bound], full: RowScores, asked: Promise,
    whole: float | None = None, share: float = 0.005,
) -> Comparison:  # fmt: skip
    """The comparison of two certificates; a share of 0.005 is 2 of the 400 rows."""
    now = statistic_of(full).score(full, full)
    was = now if whole is None else whole
    elsewhere = evidence(was, asked, full, *stored)
    return compare(elsewhere, evidence(now, asked, full, *here), full, {}, share)


def the_test(done: Comparison) -> Bound:
    (size,) = done.agreed.candidates
    assert size.test is not None
    return size.test


def compared(
    stored: Bound, small: RowScores, whole: float | None = None, max_drop: float = 0.05
) -> tuple[Comparison, Bound]:
    full, asked = scores(0, formula=small.formula), promise(max_drop)
    done = beside([stored], [judged(full, small, asked)], full, asked, whole)
    return done, the_test(done)


@pytest.mark.parametrize("formula", ["right", "mean"])
def test_where_the_rows_are_the_same_nothing_is_tolerated_but_rounding(formula: str) -> None:
    small = scores(25, 5, formula)
    right = judged(scores(0, formula=formula), small, promise(0.2))
    done, agreed = compared(right, small, max_drop=0.2)
    assert all(one.agrees for one in done.compared)
    assert agreed == right
    for figure in ("upper", "drop"):
        changed = right.model_copy(update={figure: getattr(right, figure) - 1e-4})
        done, agreed = compared(changed, small, max_drop=0.2)
        assert [one.name for one in done.compared if not one.agrees] != []
        assert agreed == right


@pytest.mark.parametrize(
    ("formula", "lost"), [("right", 24), ("right", 3), ("mean", 40), ("mean", 9)]
)
@pytest.mark.parametrize("turned", [(-1, 0), (1, 0), (0, 1), (-1, 1), (2, 0), (-2, 0), (0, 2)])
def test_rows_that_turned_explain_the_bound(
    formula: str, lost: int, turned: tuple[int, int]
) -> None:
    elsewhere = judged(scores(0, formula=formula), scores(lost, 0, formula), promise(0.5))
    done, agreed = compared(elsewhere, scores(lost + turned[0], turned[1], formula), max_drop=0.5)
    assert all(one.agrees for one in done.compared), done.compared
    assert agreed == elsewhere
    assert done.unclear == []


@pytest.mark.parametrize(("formula", "lost"), [("right", 24), ("mean", 40)])
def test_a_bound_that_no_tolerated_row_explains_differs(formula: str, lost: int) -> None:
    elsewhere = judged(scores(0, formula=formula), scores(lost - 1, 0, formula), promise(0.5))
    low = elsewhere.model_copy(update={"upper": elsewhere.drop - 0.01})
    done, agreed = compared(low, scores(lost, 0, formula), max_drop=0.5)
    assert "sizes/1, bound" in [one.name for one in done.compared if not one.agrees]
    assert agreed.upper > low.upper
    many = judged(scores(0, formula=formula), scores(lost - 6, 0, formula), promise(0.5))
    done, _ = compared(many, scores(lost, 0, formula), max_drop=0.5)
    assert not all(one.agrees for one in done.compared)


def test_of_right_or_wrong_the_figures_must_give_each_other() -> None:
    """A row turned, so the bound may be another; but only that of the counts beside it."""
    elsewhere = judged(scores(0), scores(23), promise())
    assert compared(elsewhere, scores(24))[1] == elsewhere
    for update in ({"upper": elsewhere.upper - 2e-3}, {"drop": elsewhere.drop - 1 / ROWS}):
        assert compared(elsewhere.model_copy(update=update), scores(24))[1] == elsewhere
    update = {"score": elsewhere.score + 0.5 / ROWS, "drop": elsewhere.drop - 0.5 / ROWS}
    done, _ = compared(elsewhere.model_copy(update=update), scores(24))
    assert "sizes/1, score" in [one.name for one in done.compared if not one.agrees]


def test_a_verdict_that_turns_within_the_tolerance_cannot_be_told() -> None:
    elsewhere, here = (judged(scores(0), scores(n), promise(0.5)) for n in (10, 11))
    between = (elsewhere.upper + here.upper) / 2
    done, _ = compared(
        judged(scores(0), scores(10), promise(between)), scores(11), max_drop=between
    )
    assert all(one.agrees for one in done.compared)
    (said,) = done.unclear
    assert said.startswith("sizes/1: passed by a bound of ")
    assert "in the certificate, failed by a bound of " in said


def test_bounds_of_few_and_of_many_rows_cannot_be_compared() -> None:
    many, few = (scores(n, 0, "mean") for n in (21, 19))
    elsewhere = judged(scores(0, formula="mean"), many, promise(0.5))
    done, _ = compared(elsewhere, few, max_drop=0.5)
    assert len(done.unclear) == 1


def full_rank(done: Comparison) -> float:
    return done.agreed.full.test


def test_a_score_of_right_or_wrong_is_a_number_of_rows() -> None:
    small = scores(3)
    stored = judged(scores(0), small, promise())
    for rows, agrees in ((351, True), (350.5, False), (353, False)):
        done, _ = compared(stored, small, rows / ROWS)
        assert full_rank(done) == (rows / ROWS if agrees else scores(0).value)


def answered(differing: int) -> RowScores:
    """The answers of a model that differs on the first rows from one that always says no."""
    return answer_scores(["yes"] * differing + ["no"] * (ROWS - differing))


def of_answers(differing: int, max_drop: float = 0.5) -> tuple[Bound, Promise]:
    asked = certificate_of_answers().promise.model_copy(update={"max_drop": max_drop})
    full, small = answered(0), answered(differing)
    return drop_bound(full, small, asked.confidence).judged(max_drop), asked


def answers_compared(
    stored: Bound, differing: int, max_drop: float = 0.5
) -> tuple[Comparison, Bound]:
    here, asked = of_answers(differing, max_drop)
    done = beside([stored], [here], answered(0), asked)
    return done, the_test(done)


def test_of_the_same_answers_every_figure_is_the_same() -> None:
    stored, _ = of_answers(12)
    done, agreed = answers_compared(stored, 12)
    assert agreed == stored
    assert all(one.agrees for one in done.compared)
    for figure, by in (("score", -1e-4), ("drop", 1e-4), ("upper", -1e-4), ("upper", 1e-4)):
        changed = stored.model_copy(update={figure: getattr(stored, figure) + by})
        _, agreed = answers_compared(changed, 12)
        assert agreed == stored, figure


@pytest.mark.parametrize(("here", "is_better"), [(1, False), (4, False), (6, False), (8, True)])
def test_a_bound_that_is_much_better_than_here_cannot_be_told(here: int, is_better: bool) -> None:
    """A row is a third of a point of the bound, and a fifth of the promise is one point."""
    stored, asked = of_answers(4, 0.05)
    of_here = [of_answers(here, 0.05)[0]]
    done = beside([stored], of_here, answered(0), asked, share=0.02)  # 8 rows of 400
    assert all(one.agrees for one in done.compared)
    assert done.unclear == []
    assert [one.startswith("sizes/1: a bound of 0.022") for one in done.better] == [
        True
    ] * is_better


@pytest.mark.parametrize("here", [8, 11, 13, 16])
def test_answers_that_turned_explain_the_bound(here: int) -> None:
    stored, _ = of_answers(12)
    done, agreed = answers_compared(stored, here)
    agrees = all(one.agrees for one in done.compared)
    assert agrees == (abs(here - 12) <= 2)
    assert (agreed == stored) == agrees
    # the share, the count and the bound belong together
    less = 11 / ROWS
    for update in (
        {"differing": 13},
        {"upper": stored.upper - 1e-3},
        {"drop": less},
        {"score": 1 - less},
        {"score": 1 - less, "drop": less},
    ):
        changed = stored.model_copy(update=update)
        assert answers_compared(changed, here)[1] != changed, update


def test_a_verdict_on_answers_may_turn() -> None:
    promise = (of_answers(10)[0].upper + of_answers(11)[0].upper) / 2
    stored, _ = of_answers(10, promise)
    done, _ = answers_compared(stored, 11, promise)
    (said,) = done.unclear
    assert said.startswith("sizes/1: passed by a bound of ")


def test_a_model_agrees_with_itself_on_any_machine() -> None:
    stored, asked = of_answers(12)
    for whole, agrees in ((1.0, True), (1 - 1 / ROWS, False)):
        done = beside([stored], [stored], answered(0), asked, whole)
        assert [one.agrees for one in done.compared if one.name == "full rank"] == [agrees]
        assert full_rank(done) == 1.0


@pytest.mark.parametrize(("was", "now"), [((10, 40), (11,)), ((11,), (10, 40))])
def test_what_follows_a_verdict_that_turned_cannot_be_told(
    was: tuple[int, ...], now: tuple[int, ...]
) -> None:
    """The testing ended at another size, by a row that the tolerance allows."""
    full = scores(0)
    passes, fails = (judged(full, scores(n), promise(0.5)) for n in (10, 11))
    asked = promise((passes.upper + fails.upper) / 2)
    stored, here = ([judged(full, scores(n), asked) for n in sizes] for sizes in (was, now))
    done = beside(stored, here, full, asked)
    assert all(one.agrees for one in done.compared)
    assert done.unclear[0].startswith("sizes/1: ")
    assert len(done.unclear) == len(was)
    assert [size.test for size in done.agreed.candidates] == stored


def test_the_cut_size_that_is_written_is_another_one_then() -> None:
    full = scores(0)
    some = judged(full, scores(10), promise(0.5))
    asked = promise((some.upper + judged(full, scores(11), promise(0.5)).upper) / 2)

    def cut(*lost: int) -> Evidence:
        tests = [judged(full, scores(n), asked) for n in lost]
        found = evidence(full.value, asked, full, *tests)
        for number, size in enumerate(found.candidates):
            size.directory, size.digest = None, "sha256:w" if number == found.chosen else None
        return Evidence.model_validate(found.model_dump())

    was, now = cut(9, 10, 30), cut(9, 11)
    assert (was.chosen, now.chosen) == (1, 0)
    done = compare(was, now, full, {})
    assert done.agreed == was
    assert [said[:7] for said in done.unclear] == ["size 2:", "size 3:"]


def test_each_figure_of_the_table_is_a_field_of_a_certificate() -> None:
    document = certificate().model_dump()
    test = document["candidates"][0]["test"]
    test["every"] = 0.1
    test["labelled"] = Labelled(lost=0, won=0, neither=0, missing=0, strict=0.1).model_dump()
    found = {name for name, tolerance in map(_known, _leaves(document)) if tolerance is not None}
    assert found == {name for name, _ in TOLERANCES.values()}


def labelled(lost: int, won: int, missing: int, neither: int = 0) -> tuple[RowScores, RowScores]:
    """Full rank and a size that differ on rows with these labels."""
    kinds = [0.0] * lost + [1.0] * won + [2.0] * neither + [UNLABELLED] * missing
    first, small = np.full(ROWS, UNLABELLED), np.zeros(ROWS)
    first[: len(kinds)], small[: len(kinds)] = kinds, 1
    none = np.full(ROWS, UNLABELLED)
    parts = (np.stack([answers, first, none], axis=1) for answers in (np.zeros(ROWS), small))
    full, size = (RowScores("agreement", ASKED, part) for part in parts)
    return full, size


def test_asked_labels_must_give_the_figures_beside_them() -> None:
    """Another row differs here, and has no label."""
    asked = promise().model_copy(update={"basis": "asked", "labels": 60})
    full, here = labelled(6, 4, 1, 1)
    elsewhere = judged(*labelled(6, 4, 0, 1), asked)

    def agreed(stored: Bound) -> Bound:
        return the_test(beside([stored], [judged(full, here, asked)], full, asked))

    assert agreed(elsewhere) == elsewhere
    assert elsewhere.labelled is not None
    counts = elsewhere.labelled
    for update in (
        {"upper": elsewhere.upper - 2e-3},
        {"drop": elsewhere.drop - 1 / ROWS},
        {"labelled": counts.model_copy(update={"strict": counts.strict - 2e-3})},
    ):
        assert agreed(elsewhere.model_copy(update=update)) == elsewhere
    won = elsewhere.model_copy(update={"labelled": counts.model_copy(update={"won": 5})})
    assert agreed(won).drop == pytest.approx(elsewhere.drop - 1 / ROWS)  # and not as stored
    same = judged(full, here, asked)
    moved = {"lost": 5, "won": 5}
    assert same.labelled is not None
    other = same.model_copy(update={"labelled": same.labelled.model_copy(update=moved)})
    done = beside([other], [same], full, asked)
    assert {"sizes/1, rows lost", "sizes/1, rows won"} <= {
        one.name for one in done.compared if not one.agrees
    }
