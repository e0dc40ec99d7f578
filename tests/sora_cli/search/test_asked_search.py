"""A search that asks for labels: which sizes go in, which rows are asked, when it ends.

The sizes are made up: each differs from full rank on the first rows of 400, whose label is known.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sora_cli.report import BaseFacts
from sora_cli.search.ask_table import NONE, Given, Question
from sora_cli.search.asked import Asked
from sora_cli.search.asked_labels import AskedLabels
from sora_cli.search.asked_search import AskedSearch, Questions, TooManyLabelsError
from sora_cli.search.auto_search import Made, Maker
from sora_cli.search.evidence import Candidate, Evidence, Reference, Screened
from sora_cli.search.promise import Promise
from sora_cli.search.record import AutoRecord
from sora_cli.search.row_set import SCREENING, TEST, TRAIN, RowSet
from sora_cli.search.statistic import BoundMethod
from sora_cli.tasks.questions import Questions as Shown
from sora_cli.tasks.row_scores import RowScores, asked_scores
from tests.present import present
from tests.sora_cli.experiments.auto.support import full, screened
from tests.sora_cli.search.test_asked_labels import promise

ROWS = 400
LOST, WON = "full", "size"
"""Labels: the answer of full rank, and that of a size."""


class Invented(Maker):
    """Sizes that differ on the first rows.

    Args:
        differing: number of rows, by size.
    """

    def __init__(self, *differing: int) -> None:
        self.differing, self.trained = differing, list[int]()

    def full_rank(self) -> Reference:
        return full()

    def screened(self, promise: Promise, bound: BoundMethod) -> list[Screened]:
        del promise, bound
        sizes = screened([0.01] * len(self.differing))
        return [size.model_copy(update={"named": True}) for size in sizes]

    def size(self, number: int, named: Screened, *, scored: bool) -> Made:
        self.trained.append(number)
        made = Candidate(
            **named.model_dump(include={*Candidate.model_fields} - {"test"}), test=None
        )
        return made, self.scored(number, named)

    def scored(self, number: int, named: Screened) -> RowScores:
        del named
        few = self.differing[number]
        return asked_scores([WON] * few + [LOST] * (self.rows - few))

    def scores_at_full_rank(self) -> RowScores:
        return asked_scores([LOST] * self.rows)

    def draw(self, rows: int) -> Any:
        self.rows = rows
        texts = [f"{row}" for row in range(rows)]
        answers = [{label: label for label in (LOST, WON, "other")}] * rows
        shown = Shown({"text": texts}, answers)
        return SimpleNamespace(
            task=SimpleNamespace(questions=lambda *_: shown), rows=None, unused=None
        )


class Search:
    """A search with its record, which is continued with other labels and limits."""

    def __init__(self, *differing: int, max_drop: float = 0.02) -> None:
        self.maker, self.max_drop = Invented(*differing), max_drop
        self.record = AutoRecord(
            name="x", recipe={}, command=[], started="", environment={}, rows={
                name: RowSet(split="x", rows=ROWS, digest="x") for name in (TRAIN, SCREENING, TEST)
            },
        )  # fmt: skip
        self.labels: Mapping[int, str] = {}

    def run(self, labels: int = 60, *, ask_all: bool = False) -> AskedSearch:
        asked = promise(self.max_drop, labels).model_copy(update={"ask_all": ask_all})
        bound = AskedLabels(labels).method_on(ROWS, 0.95)
        seeds = {"training": 0, "rows": 0}
        search = AskedSearch(self.maker, self.record, asked, bound, ROWS, seeds)
        search.read = self._read
        for _ in search.run():
            pass
        return search

    def _read(self, rows: Mapping[str, Question]) -> Mapping[str, Given]:
        labels = {key: self.labels.get(int(row.shown["text"]), "") for key, row in rows.items()}
        return {key: (label, "") if label else NONE for key, label in labels.items()}


def asked_rows(search: AskedSearch) -> list[int]:
    return sorted(int(row.shown["text"]) for row in search.wanted.rows.values())


def certificate(search: AskedSearch) -> Evidence:
    return search.certificate({}, BaseFacts())


def test_a_size_that_passes_with_all_of_its_rows_lost_asks_for_no_label() -> None:
    """Of 400 rows 3 may be lost, for two points."""
    found = Search(1, 2).run()
    assert asked_rows(found) == []
    assert found.wanted.open == 0
    assert certificate(found).certified
    assert certificate(found).chosen == 1


def test_a_search_of_an_earlier_version_tests_as_many_rows_as_it_began_with() -> None:
    new, old = Search(1, max_drop=0.1), Search(1, max_drop=0.1)
    old.record.asked = Asked(planned=60, rows=0, by_size=True)
    rows = [present(search.run().record.asked).rows for search in (old, new)]
    assert rows == [29, 46]


def test_rows_of_a_size_are_asked_once_the_one_before_it_is_certified() -> None:
    search = Search(8, 10, 30, 32)
    found = search.run()
    assert asked_rows(found) == list(range(8))
    assert (found.wanted.open, found.wanted.kept) == (8, 0)
    assert search.maker.trained == [0]
    # all rows are won: the first size passes, and the second even with its other rows lost
    search.labels = dict.fromkeys(range(8), WON)
    found = search.run()
    assert search.maker.trained == [0, 1, 2]
    assert asked_rows(found) == list(range(30))
    assert (found.wanted.open, found.wanted.kept) == (22, 2)
    assert certificate(found).chosen == 1  # without the new labels
    search.labels = {**search.labels, **dict.fromkeys(range(8, 30), LOST)}
    found = search.run()
    assert found.wanted.open == 0
    assert search.maker.trained == [0, 1, 2]  # the third failed: the fourth is not made
    assert certificate(found).chosen == 1
    assert present(found.record.asked).sizes == 3


def test_a_label_of_a_row_that_is_no_longer_needed_counts() -> None:
    """The second size passes without its own rows; what was labelled in spite of that, counts."""
    search = Search(8, 10)
    search.labels = dict.fromkeys(range(8), WON)
    assert asked_rows(search.run()) == list(range(8))
    search.labels = {**search.labels, 9: WON}
    found = search.run()
    assert asked_rows(found) == [*range(8), 9]
    assert present(present(found.tested[1].test).labelled).won == 9


def test_a_search_goes_on_as_it_began_or_asks_for_all_the_rest() -> None:
    """Records of earlier versions have asked for all sizes, and go on so."""
    search = Search(8, 14)
    assert asked_rows(search.run()) == list(range(8))
    assert asked_rows(search.run(ask_all=True)) == list(range(14))
    assert asked_rows(search.run()) == list(range(14))


def test_rows_are_asked_of_all_sizes_that_a_label_can_decide() -> None:
    search = Search(2, 8, 10)
    found = search.run(ask_all=True)
    assert asked_rows(found) == list(range(10))
    assert (found.wanted.open, found.wanted.answered, found.wanted.more) == (10, 0, None)
    assert search.maker.trained == [0, 1, 2]
    assert [size.test is not None and size.test.kept for size in found.tested] == [True, False]
    # half of the rows are won: the second size passes, and the third
    search.labels = {row: (LOST, WON)[row % 2] for row in range(10)}
    found = search.run()
    assert found.wanted.open == 0
    assert search.maker.trained == [0, 1, 2]  # none is trained again
    assert certificate(found).chosen == 2
    assert found.record.asked is not None
    assert (found.record.asked.answered, found.record.asked.sizes) == (10, 3)


def test_a_half_filled_table_says_how_many_more_labels_certify() -> None:
    search = Search(8)
    search.labels = {0: LOST, 1: WON}
    found = search.run()
    assert found.wanted.open == 6
    assert found.wanted.more == 4
    assert not certificate(found).certified
    search.labels = {row: (WON, LOST)[row % 2] for row in range(7)}
    found = search.run()
    assert certificate(found).certified
    assert "1 without a label; rows without an agreed label count" in certificate(found).statement


def test_a_size_that_no_label_can_save_ends_the_testing() -> None:
    search = Search(8, 9)
    search.labels = dict.fromkeys(range(8), LOST)
    found = search.run()
    assert found.wanted.open == 0
    assert len(found.tested) == 1
    evidence = certificate(found)
    assert not evidence.certified
    assert evidence.statement.endswith("8 rows differ: 8 lost, 0 won")


def test_sizes_go_in_as_long_as_the_rows_of_all_are_few_enough() -> None:
    search = Search(5, 8, 12, 14)
    found = search.run(labels=10, ask_all=True)
    assert asked_rows(found) == list(range(8))
    assert search.maker.trained == [0, 1, 2]  # the third did not go in, so the fourth is not made
    assert found.wanted.left == 12
    search.labels = {row: (LOST, WON)[row % 2] for row in range(8)}
    assert certificate(search.run(labels=10)).chosen == 1
    rows = present(found.record.asked)
    found = search.run(labels=14)  # the next sizes of the order go in, and no other row tests
    assert asked_rows(found) == list(range(14))
    assert found.wanted.open == 6
    assert search.maker.trained == [0, 1, 2, 3]
    assert found.record.asked is not None
    assert (found.record.asked.planned, found.record.asked.rows) == (10, rows.rows)


def test_nothing_is_asked_if_the_largest_size_differs_on_too_many_rows() -> None:
    search = Search(8, 9)
    with pytest.raises(TooManyLabelsError) as refused:
        search.run(labels=5)
    assert refused.value.exit_code == 3
    assert "differs from full rank on 8 of" in refused.value.what
    assert refused.value.hint == "the same command with --labels 8; or a larger promise"
    assert search.maker.trained == [0]
    assert asked_rows(search.run(labels=8)) == list(range(8))


def test_labels_that_were_changed_promise_nothing() -> None:
    search = Search(8)
    search.labels = {row: (LOST, WON)[row % 2] for row in range(8)}
    found = search.run()
    assert certificate(found).certified
    assert found.record.asked is not None
    found.record.asked.changed = ["bcd"]
    changed = certificate(found)
    assert changed.status == "not certified"
    assert changed.statement.startswith(
        "a label was changed after it had been read, so nothing is promised; otherwise: with 95%"
    )


def test_ids_are_those_of_the_run(tmp_path: Path) -> None:
    part = Invented().draw(3)
    one, other = (Questions.of(part, 0, salt) for salt in ("sha256:a", "sha256:b"))
    assert not {row.id for row in one.rows} & {row.id for row in other.rows}
    codes = one.codes(
        {one.rows[1].id: (LOST, WON), "unknown": (LOST, ""), one.rows[2].id: ("?", "")}
    )
    assert (codes[0] == codes[2]).all()
    assert codes[1, 0] == asked_scores([LOST]).parts[0, 0]
    assert np.isfinite(codes).all()
    assert not list(tmp_path.iterdir())
