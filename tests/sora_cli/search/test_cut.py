"""Which sizes are tested, and which is chosen."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from methods.factors import LowRankFactors
from sora_cli.search.binomial import share_bound
from sora_cli.search.cut import choose_cut
from sora_cli.search.evidence import Candidate, Evidence
from sora_cli.search.promise import Promise
from sora_cli.search.row_set import RowSet
from sora_cli.search.sizes import smaller_sizes
from sora_cli.search.statistic import AFTERWARDS
from sora_cli.search.words import NOT_ALONE, size_table, unseen_rows, verdict_lines
from sora_cli.tasks.row_scores import RowScores, answer_scores, row_scores
from tests.present import present

ROWS = 300
Wrong = Callable[[int], int]
"""Components -> rows that are wrong with so many."""


def promise_of(max_drop: float, metric: str = "accuracy") -> Promise:
    return Promise(
        max_drop=max_drop,
        given=f"{max_drop:g}",
        confidence=0.95,
        metric=metric,
        greater_is_better=True,
        serve=None,
    )


def told(_: str) -> None:
    """What rows can certify is not looked at here."""


@pytest.fixture
def layers() -> dict[str, LowRankFactors]:
    g = torch.Generator().manual_seed(0)
    return {
        f"l.{i}": LowRankFactors(torch.randn(8, 10, generator=g), torch.randn(6, 8, generator=g))
        for i in range(2)
    }  # rank 6 each: 8 directions of 6 outputs


def _search(
    layers: dict[str, LowRankFactors],
    wrong: Wrong,
    promise: float,
    reference: RowScores | None = None,
    **options: Any,
) -> tuple[Evidence, list[int]]:
    asked: list[int] = []

    def scores(factors: Mapping[str, LowRankFactors]) -> RowScores:
        asked.append(sum(f.rank for f in factors.values()))
        right = np.arange(ROWS) >= wrong(asked[-1])
        return row_scores("accuracy", "right", right, **options)

    return searched(layers, scores, promise_of(promise), reference=reference), asked


def searched(
    layers: dict[str, LowRankFactors],
    scores: Callable[[Mapping[str, LowRankFactors]], RowScores],
    promise: Promise,
    tell: Callable[[str], None] = told,
    **options: Any,
) -> Evidence:
    """The certificate of a search on rows that are all there is."""
    rows = RowSet(split="validation", rows=ROWS, digest="d", held=ROWS)
    found = choose_cut(layers, scores, promise, rows, tell, **options)
    evidence = found.evidence("prune", Path("nowhere"), {})
    assert sum(found.written(evidence.chosen).values()) == written(evidence).components
    return evidence


def written(evidence: Evidence) -> Any:
    """What is written: a size, or the reference."""
    return evidence.written or evidence.full


def passed(evidence: Evidence) -> list[bool]:
    return [size.test is not None and size.test.kept for size in evidence.candidates]


def in_time(size: Candidate) -> bool:
    """It was tested before the testing ended."""
    return size.test is not None and size.test.refused != AFTERWARDS


def test_sizes_follow_from_the_number_of_components_alone() -> None:
    assert smaller_sizes(144) == [108, 81, 60, 45, 33, 24, 18, 13, 9, 6, 4, 3]
    assert smaller_sizes(5) == [3, 2, 1, 0]
    assert smaller_sizes(1) == [0]
    assert smaller_sizes(0) == []


def test_the_smallest_that_passed_is_kept_and_nothing_is_tested_after_a_failure(
    layers: dict[str, LowRankFactors],
) -> None:
    search, asked = _search(layers, lambda n: 0 if n >= 6 else 30, 0.02)
    assert asked == [16, 12, 9, 6, 4]
    assert (search.certified, written(search).components) == (True, 6)
    assert passed(search) == [True] * 3 + [False]
    last = present(search.candidates[-1].test)
    assert last.drop == pytest.approx(0.1)
    assert written(search).parameters == 6 * 16
    assert search.rows["test"].rows == ROWS


def test_where_no_size_passes_the_one_that_looks_good_is_not_certified(
    layers: dict[str, LowRankFactors],
) -> None:
    """300 rows certify 0.01 at best: 0.005 is never shown, a drop of 0.0033 is seen."""
    search, asked = _search(layers, lambda n: 0 if n == 16 else 1 if n >= 9 else 2, 0.005)
    assert asked == [16, 12, 9, 6]
    assert not search.certified
    assert written(search).components == 9
    assert [in_time(size) for size in search.candidates] == [True, False, False]
    assert search.statement.startswith("no size passed its test: of the largest, accuracy may be ")
    assert search.statement.endswith("; the written size loses 0.0033 on these rows")


def test_where_even_the_largest_size_looks_bad_everything_is_kept(
    layers: dict[str, LowRankFactors],
) -> None:
    search, asked = _search(layers, lambda n: 0 if n == 16 else 60, 0.02)
    assert asked == [16, 12]
    assert (search.certified, search.written) == (True, None)
    assert search.statement.startswith(
        "nothing is lost, as everything is kept; no size passed its test: "
    )


ALL_RIGHT = row_scores("accuracy", "right", np.ones(ROWS, dtype=bool))


def test_against_another_model_the_largest_size_is_tested_too(
    layers: dict[str, LowRankFactors],
) -> None:
    search, asked = _search(layers, lambda n: 1 if n >= 4 else 60, 0.02, ALL_RIGHT)
    assert asked == [12, 8, 4, 2]  # 4 of 16 are zeros
    assert (search.certified, written(search).components, search.full.name) == (
        True,
        4,
        "the model",
    )
    assert written(search).test.drop == pytest.approx(1 / ROWS)
    assert (search.full.test, search.candidates[0].components) == (1.0, 12)


def test_against_another_model_not_even_everything_may_be_enough(
    layers: dict[str, LowRankFactors],
) -> None:
    search, asked = _search(layers, lambda _: 60, 0.02, ALL_RIGHT)
    assert asked == [12]
    assert (search.certified, written(search).components) == (False, 12)
    assert written(search).test.drop == pytest.approx(0.2)


def test_rounded_sizes_are_tested_against_the_unrounded_adapter(
    layers: dict[str, LowRankFactors],
) -> None:
    """The uncut adapter is the largest size: rounded, it may answer otherwise."""
    scored: list[tuple[str, int]] = []

    def scores(kind: str, wrong: int) -> Callable[[Mapping[str, LowRankFactors]], RowScores]:
        def score(factors: Mapping[str, LowRankFactors]) -> RowScores:
            scored.append((kind, sum(f.rank for f in factors.values())))
            return row_scores("accuracy", "right", np.arange(ROWS) >= wrong)

        return score

    for wrong, certified in ((1, True), (60, False)):
        scored.clear()
        search = searched(
            layers, scores("exact", 0), promise_of(0.02), as_stored=scores("stored", wrong)
        )
        assert scored[:2] == [("exact", 16), ("stored", 12)]
        assert {kind for kind, _ in scored[1:]} == {"stored"}
        assert search.certified is certified
        assert search.written is not None
        assert size_table(search).rows[0][0] == "the unrounded adapter"


def test_a_smaller_loss_is_better(layers: dict[str, LowRankFactors]) -> None:
    search, _ = _search(layers, lambda n: 100 if n == 16 else 60, 0.02, greater_is_better=False)
    assert search.written is None  # all others have a larger loss
    search, _ = _search(layers, lambda n: 60 if n == 16 else 100, 0.02, greater_is_better=False)
    assert written(search).components == 0
    assert written(search).test.drop < 0


def test_where_the_bound_is_refused_nothing_is_certified(
    layers: dict[str, LowRankFactors],
) -> None:
    """Few rows differ, and a score without an end has no worst."""

    def scores(factors: Mapping[str, LowRankFactors]) -> RowScores:
        values = np.zeros(ROWS)
        values[: 16 - sum(f.rank for f in factors.values())] = -0.1
        return row_scores("log_likelihood", "mean", values)

    search = searched(layers, scores, promise_of(0.0042, "log_likelihood"))
    first = present(search.candidates[0].test)
    assert math.isnan(first.upper)
    assert first.refused == "the models differ on fewer than 20 rows"
    assert (search.certified, written(search).components) == (False, 4)
    assert search.bound.smallest_drop is None


def _answers(
    layers: dict[str, LowRankFactors],
    other: Wrong,
    share: float,
    said: list[str] | None = None,
    *,
    rows_alone: bool = True,
    kind: str = "differ",
) -> Evidence:
    """A search by the answers of an adapter that says `yes` on more rows, the smaller it is."""

    def scores(factors: Mapping[str, LowRankFactors]) -> RowScores:
        rank = sum(f.rank for f in factors.values())
        words = ["yes"] * other(rank) + ["no"] * (ROWS - other(rank))
        return answer_scores(words, rows_alone=rows_alone)

    update = {"kind": kind, "basis": "answers", "given": "2%"}
    promise = promise_of(share).model_copy(update=update)
    return searched(layers, scores, promise, told if said is None else said.append)


def test_the_smallest_size_that_answers_alike_is_kept(layers: dict[str, LowRankFactors]) -> None:
    said: list[str] = []
    search = _answers(layers, lambda n: 16 - n if n >= 12 else 40, 0.04, said)
    assert (search.certified, written(search).components) == (True, 12)
    assert search.promise.rule == {"max_differ": 0.04}
    assert written(search).test.drop == 4 / ROWS
    promised, ahead = said
    assert promised == (
        "promise: at most 4 % of the answers differ, with 95% confidence; certified if at most 6 "
        "of 300 test rows are answered differently"
    )
    assert ahead.startswith("up to 8 sizes are scored, each on 300 rows, as the uncut adapter in ")
    assert search.statement == (
        "with 95% confidence at most 4 % of the answers differ from the uncut adapter's "
        "(bound 3.03 %: 4 of 300 distinct inputs that training has not seen differ)"
    )
    table = size_table(search)
    assert table.shown(table.rows[1])[4:] == ["0.9867", "1.33%", "3.03%", "passed, written"]
    assert "share of answers that differ there (1.33%) is a little too" in str(unseen_rows(search))


def test_rows_that_choose_among_each_other(layers: dict[str, LowRankFactors]) -> None:
    said: list[str] = []
    search = _answers(layers, lambda _: 0, 0.04, said, rows_alone=False)
    assert NOT_ALONE in said
    assert search.statement.endswith(f"; {NOT_ALONE}")
    assert not search.bound.exact
    right = replace(ALL_RIGHT, rows_alone=False)
    search = searched(layers, lambda _: right, promise_of(0.04))
    assert search.statement.endswith(f"; {NOT_ALONE}")


def test_answers_of_too_few_rows_are_not_certified(layers: dict[str, LowRankFactors]) -> None:
    said: list[str] = []
    search = _answers(layers, lambda n: 0 if n >= 9 else 40, 0.005, said)
    assert (search.certified, written(search).components) == (False, 9)
    assert said[1].startswith(
        "WARNING: 300 test rows cannot certify this, even if no answer differs; it takes 598 at "
        "least, and these can certify --max-differ 1% at best"
    )
    first, *_, last = verdict_lines(search)
    assert first.startswith("kept: ")
    assert last.startswith("the 300 rows can certify 0.99 % with a probability of 80%")
    assert search.statement.startswith(
        "no size passed its test: of the largest, up to 0.99 % of the answers may differ from "
        "the uncut adapter's, and 0.5 % is tolerated (bound 0.99 %: 0 of 300 "
    )
    search = _answers(layers, lambda n: 0 if n == 16 else 40, 0.02)
    assert search.written is None
    assert search.statement.startswith(
        "nothing is lost, as everything is kept; no size passed its test: "
    )


def test_no_row_may_differ(layers: dict[str, LowRankFactors]) -> None:
    said: list[str] = []
    _answers(layers, lambda _: 0, 0.01, said)
    assert said[0].endswith("certified if none of 300 test rows are answered differently")


def test_a_drop_that_answers_test(layers: dict[str, LowRankFactors]) -> None:
    said: list[str] = []
    search = _answers(layers, lambda n: 16 - n if n >= 12 else 40, 0.04, said, kind="drop")
    assert (search.certified, written(search).components) == (True, 12)
    assert (search.promise.metric, search.promise.basis) == ("accuracy", "answers")
    assert written(search).test.upper == share_bound(4, ROWS, 0.95)
    assert search.promise.rule == {"max_drop": 0.04}
    assert said[0].endswith("certified if at most 6 of 300 test rows are answered differently")
    assert search.statement == (
        "with 95% confidence accuracy is at most 0.04 worse than the uncut adapter's, because "
        "at most 3.03 % of the answers differ (4 of 300 distinct inputs without labels that "
        "training has not seen differ)"
    )
    titles = [getattr(column, "title", column) for column in size_table(search).columns]
    assert titles[4:7] == ["agreement", "differ", "at most"]
    assert "share of answers that differ there (1.33%) is a little too" in str(unseen_rows(search))
    search = _answers(layers, lambda _: 0, 0.005, kind="drop")
    assert not search.certified
    assert "accuracy may be 0.0099 worse than the uncut adapter's" in search.statement
