"""Scored rows that were trained on, too."""

from __future__ import annotations

from typing import Any

import pytest
from datasets import Dataset

from sora_cli.data.overlap import Overlap, find_overlaps

Row = tuple[Any, Any, Any]
TRAIN: list[Row] = [("a", "b", 0), ("a b", "c", 1), ("d", "e", 0), ("d", "e", 1), ("a", "b", 0)]


def _rows(rows: list[Row]) -> Dataset:
    return Dataset.from_list([{"one": a, "two": b, "gold": y, "idx": 7} for a, b, y in rows])


def _found(rows: list[Row], train: list[Row] = TRAIN) -> Overlap:
    splits = {"validation": _rows(rows)}
    return find_overlaps(_rows(train), splits, texts=["one", "two"], label="gold")["validation"]


@pytest.mark.parametrize(
    ("rows", "overlap"),
    [
        ([("x", "y", 0)], Overlap(0, 0)),
        ([("a", "b", 0), ("x", "y", 1)], Overlap(1, 0)),
        ([("a", "b", 1)], Overlap(1, 1)),
        ([("b", "a", 0)], Overlap(0, 0)),  # another order
        ([("a", "b c", 1)], Overlap(0, 0)),  # the same words
        ([("A", "b", 0), ("a ", "b", 0)], Overlap(0, 0)),  # to the letter
        ([("a", "b", 0)] * 3, Overlap(3, 0)),  # every row counts
        ([("d", "e", 0), ("d", "e", 1), ("d", "e", 2)], Overlap(3, 1)),  # both are there
    ],
)
def test_inputs_and_their_labels(rows: list[Row], overlap: Overlap) -> None:
    assert _found(rows) == overlap


def test_numbers_are_compared_as_the_texts_they_become() -> None:
    assert _found([(1, 2, 0)], [("1", "2", 0)]) == Overlap(1, 0)


def test_every_split_and_rows_of_several_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sora_cli.data.overlap._BATCH", 3)
    train = [(str(i), "t", i % 2) for i in range(20)]
    splits = {
        "validation": _rows([(str(i), "t", 0) for i in range(15, 30)]),
        "test": _rows([(str(i), "t", i % 2) for i in range(19, 40)]),
    }
    found = find_overlaps(_rows(train), splits, texts=["one", "two"], label="gold")
    assert found == {"validation": Overlap(5, 3), "test": Overlap(1, 0)}
    single = find_overlaps(_rows(train), splits, texts=["two"], label="gold")
    assert single["test"] == Overlap(21, 0)
