"""Which sizes are tested, and which is chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from methods.factors import LowRankFactors
from sora_cli.search.agreement import share_bound
from sora_cli.search.cut import choose_cut
from sora_cli.search.promise import Promise
from sora_cli.search.search import Search
from sora_cli.search.sizes import smaller_sizes
from sora_cli.search.statement import NOT_ALONE
from sora_cli.search.words import search_table, unseen_rows, verdict_lines
from sora_cli.tasks.row_scores import RowScores, answer_scores, row_scores

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
) -> tuple[Search[Mapping[str, int]], list[int]]:
    asked: list[int] = []

    def scores(factors: Mapping[str, LowRankFactors]) -> RowScores:
        asked.append(sum(f.rank for f in factors.values()))
        right = np.arange(ROWS) >= wrong(asked[-1])
        return row_scores("accuracy", "right", right, **options)

    found = promise_of(promise)
    return choose_cut(layers, scores, found, "validation", told, reference=reference), asked


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
    assert (search.certified, search.chosen.components) == (True, 6)
    assert sum(search.chosen.key.values()) == 6
    assert [p.passed for p in search.candidates] == [True] * 4 + [False]
    assert search.candidates[0].bound is None
    assert search.candidates[-1].drop == pytest.approx(0.1)
    assert search.chosen.parameters == 6 * 16
    assert (search.facts()["rows"], search.metric, search.split) == (ROWS, "accuracy", "validation")


def test_where_no_size_passes_the_one_that_looks_good_is_not_certified(
    layers: dict[str, LowRankFactors],
) -> None:
    """300 rows certify 0.01 at best: 0.005 is never shown, a drop of 0.0033 is seen."""
    search, asked = _search(layers, lambda n: 0 if n == 16 else 1 if n >= 9 else 2, 0.005)
    assert asked == [16, 12, 9, 6]
    assert not search.certified
    assert search.chosen.components == 9
    assert search.chosen.bound is None  # it was not tested
    assert [p.bound is None for p in search.candidates] == [True, False, True, True]
    assert search.certifiable is not None
    assert search.certifiable > 0.01


def test_where_even_the_largest_size_looks_bad_everything_is_kept(
    layers: dict[str, LowRankFactors],
) -> None:
    search, asked = _search(layers, lambda n: 0 if n == 16 else 60, 0.02)
    assert asked == [16, 12]
    assert (search.certified, search.chosen.components) == (True, 16)
    assert search.chosen is search.candidates[0]


ALL_RIGHT = row_scores("accuracy", "right", np.ones(ROWS, dtype=bool))


def test_against_another_model_the_largest_size_is_tested_too(
    layers: dict[str, LowRankFactors],
) -> None:
    search, asked = _search(layers, lambda n: 1 if n >= 4 else 60, 0.02, ALL_RIGHT)
    assert asked == [12, 8, 4, 2]  # 4 of 16 are zeros
    assert (search.certified, search.chosen.components, search.outside) == (
        True,
        4,
        "the model",
    )
    assert search.chosen.drop == pytest.approx(1 / ROWS)
    assert (search.candidates[0].score, search.candidates[1].components) == (1.0, 12)


def test_against_another_model_not_even_everything_may_be_enough(
    layers: dict[str, LowRankFactors],
) -> None:
    search, asked = _search(layers, lambda _: 60, 0.02, ALL_RIGHT)
    assert asked == [12]
    assert (search.certified, search.chosen.components) == (False, 12)
    assert search.chosen.drop == pytest.approx(0.2)
    assert sum(search.chosen.key.values()) == 12
    said = "NOT certified: 12 components lose 0.2000 of accuracy on these rows, and the rows"
    assert verdict_lines(search)[0].startswith(said)


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

    promise = promise_of(0.02)
    for wrong, certified in ((1, True), (60, False)):
        scored.clear()
        search = choose_cut(
            layers,
            scores("exact", 0),
            promise,
            "validation",
            told,
            as_stored=scores("stored", wrong),
        )
        assert scored[:2] == [("exact", 16), ("stored", 12)]
        assert {kind for kind, _ in scored[1:]} == {"stored"}
        assert search.certified is certified
        assert search.chosen is not search.candidates[0]
        assert search_table(search).rows[0][-1] == "the unrounded adapter"


def test_a_smaller_loss_is_better(layers: dict[str, LowRankFactors]) -> None:
    search, _ = _search(layers, lambda n: 100 if n == 16 else 60, 0.02, greater_is_better=False)
    assert search.chosen.components == 16  # all others have a larger loss
    search, _ = _search(layers, lambda n: 60 if n == 16 else 100, 0.02, greater_is_better=False)
    assert search.chosen.components == 0
    assert search.chosen.drop < 0


def test_where_the_bound_is_refused_nothing_is_certified(
    layers: dict[str, LowRankFactors],
) -> None:
    """Few rows differ, and a score without an end has no worst."""

    def scores(factors: Mapping[str, LowRankFactors]) -> RowScores:
        values = np.zeros(ROWS)
        values[: 16 - sum(f.rank for f in factors.values())] = -0.1
        return row_scores("log_likelihood", "mean", values)

    search = choose_cut(layers, scores, promise_of(0.0042, "log_likelihood"), "validation", told)
    first = search.candidates[1].bound
    assert first is not None
    assert (first.upper, first.refused) == (None, "few rows differ")
    assert (search.certified, search.certifiable, search.chosen.components) == (False, None, 4)


def _answers(
    layers: dict[str, LowRankFactors],
    other: Wrong,
    share: float,
    said: list[str] | None = None,
    *,
    rows_alone: bool = True,
    kind: str = "differ",
) -> Search[Mapping[str, int]]:
    """A search by the answers of an adapter that says `yes` on more rows, the smaller it is."""

    def scores(factors: Mapping[str, LowRankFactors]) -> RowScores:
        rank = sum(f.rank for f in factors.values())
        words = ["yes"] * other(rank) + ["no"] * (ROWS - other(rank))
        return answer_scores(words, rows_alone=rows_alone)

    update = {"kind": kind, "basis": "answers", "given": "2%"}
    promise = promise_of(share).model_copy(update=update)
    tell = told if said is None else said.append
    return choose_cut(layers, scores, promise, f"{ROWS} unlabelled rows", tell)


def test_the_smallest_size_that_answers_alike_is_kept(layers: dict[str, LowRankFactors]) -> None:
    said: list[str] = []
    search = _answers(layers, lambda n: 16 - n if n >= 12 else 40, 0.04, said)
    assert (search.certified, search.chosen.components) == (True, 12)
    assert search.rule() == {"max_differ": 0.04}
    facts = search.facts()
    assert (facts["metric"], facts["drop"], facts["rows"]) == ("agreement", 4 / ROWS, ROWS)
    promised, ahead = said
    assert promised == (
        "promise: at most 4 % of the answers differ, with 95% confidence; certified if at most 6 "
        "of 300 test rows are answered differently"
    )
    assert ahead.startswith("up to 8 sizes are scored, each on 300 rows, as the uncut adapter in ")
    (verdict,) = verdict_lines(search)
    assert verdict == (
        "certified: with 12 components at most 4 % of the answers differ from the uncut adapter's "
        "(bound 3.03 %: 4 of 300 rows differ), with confidence 0.95, on distinct inputs like these"
    )
    table = search_table(search)
    assert [table.shown(row) for row in table.rows][1][2:] == [
        "0.9867",
        "1.33%",
        "3.03%",
        "certified",
    ]
    assert "share of answers that differ there (1.33%) is a little too" in str(unseen_rows(search))


def test_rows_that_choose_among_each_other(layers: dict[str, LowRankFactors]) -> None:
    said: list[str] = []
    search = _answers(layers, lambda _: 0, 0.04, said, rows_alone=False)
    assert NOT_ALONE in said
    assert verdict_lines(search)[0].endswith(f", on distinct inputs like these; {NOT_ALONE}")
    assert search.facts()["bound_kind"] == "approximate"
    right = replace(ALL_RIGHT, rows_alone=False)
    search = choose_cut(layers, lambda _: right, promise_of(0.04), "rows", told)
    assert verdict_lines(search)[0].endswith(f", on distinct inputs like these; {NOT_ALONE}")


def test_answers_of_too_few_rows_are_not_certified(layers: dict[str, LowRankFactors]) -> None:
    said: list[str] = []
    search = _answers(layers, lambda n: 0 if n >= 9 else 40, 0.005, said)
    assert (search.certified, search.chosen.components) == (False, 9)
    assert said[1].startswith(
        "WARNING: 300 test rows cannot certify this, even if no answer differs; it takes 598 at "
        "least, and these can certify --max-differ 1% at best"
    )
    first, second = verdict_lines(search)
    assert first == (
        "NOT certified: with 9 components 0 of these 300 answers differ from the uncut adapter's, "
        "but the rows cannot certify at most 0.5 % with confidence 0.95"
    )
    assert second.startswith("the 300 rows can certify 0.99 % with a probability of 80%")
    search = _answers(layers, lambda n: 0 if n == 16 else 40, 0.02)
    assert search.chosen is search.candidates[0]
    assert verdict_lines(search)[0].startswith("no smaller size is certified to answer at most 2 %")


def test_no_row_may_differ(layers: dict[str, LowRankFactors]) -> None:
    said: list[str] = []
    _answers(layers, lambda _: 0, 0.01, said)
    assert said[0].endswith("certified if none of 300 test rows are answered differently")


def test_a_drop_that_answers_test(layers: dict[str, LowRankFactors]) -> None:
    said: list[str] = []
    search = _answers(layers, lambda n: 16 - n if n >= 12 else 40, 0.04, said, kind="drop")
    assert (search.certified, search.chosen.components) == (True, 12)
    facts = search.facts()
    assert (facts["metric"], facts["basis"], facts["rows"]) == ("accuracy", "answers", ROWS)
    assert facts["bound"] == share_bound(4, ROWS, 0.95)
    assert search.rule() == {"max_drop": 0.04}
    assert said[0].endswith("certified if at most 6 of 300 test rows are answered differently")
    (verdict,) = verdict_lines(search)
    assert verdict == (
        "certified: 12 components lose at most 0.0303 of accuracy, within 0.04, because at most "
        "3.03 % of the answers differ (4 of 300 rows), with confidence 0.95, on distinct inputs "
        "like these"
    )
    assert [column.title for column in search_table(search).columns][2:5] == [
        "agreement",
        "differ",
        "at most",
    ]
    assert "share of answers that differ there (1.33%) is a little too" in str(unseen_rows(search))
    first, second = verdict_lines(_answers(layers, lambda _: 0, 0.005, kind="drop"))
    assert first == (
        "NOT certified: with 0 components 0 of these 300 answers differ from the uncut adapter's, "
        "but the rows cannot certify a drop of at most 0.005 with confidence 0.95"
    )
    assert second.startswith("the 300 rows can certify a drop of 0.0099 with a probability of 80%")
