"""Rows of a class that has no other row are not held out of training, if the recipe says so."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from sora_cli.data.rows import Rows, load_rows
from sora_cli.recipe.recipe import DataBlock
from tests.helpers_first_data import many_classes, write_table

HELD = {"held_out_rows": 84, "label_column": "topic"}
SEED = 2  # the one row of t28 is drawn for validation


def _rows(folder: Path, **data: Any) -> Rows:
    path = write_table(folder / "rows.csv", many_classes(seed=SEED))
    return load_rows(DataBlock.model_validate({"files": {"train": [str(path)]}, **HELD, **data}))


def test_the_only_row_of_a_class_stays_in_training(tmp_path: Path) -> None:
    before, rows = _rows(tmp_path), _rows(tmp_path, rare_classes="train")
    assert "t28" not in before.train["topic"][:]
    assert len(set(rows.train["topic"][:])) == 29
    (moved,) = set(before.select["question"][:]) - set(rows.select["question"][:])
    assert rows.train["question"][:] == [*before.train["question"][:], moved]
    assert len(rows.select) == 83
    assert rows.notes == (
        "1 of 84 rows drawn out of train stay in training, as no other row has their class: t28",
    )
    # every row is still found in its file
    lines = (tmp_path / "rows.csv").read_text().splitlines()
    for part in (rows.train, rows.select):
        for place in (0, len(part) - 1):
            line = int(rows.origin(part).place(place).split("csv:")[1].split(",")[0])
            assert lines[line - 1].startswith(part["question"][place])


@pytest.mark.parametrize("seed", range(5))
def test_twice_held_out(tmp_path: Path, seed: int) -> None:
    twice = {"selection": "train-rows", "selection_rows": 100, "selection_seed": seed}
    rows = _rows(tmp_path, rare_classes="train", **twice)
    assert len(set(rows.train["topic"][:])) == 29
    every = Counter(rows.train["question"][:])
    every += Counter(rows.select["question"][:]) + Counter(rows.report["validation"]["question"][:])
    assert every == Counter(row[0] for row in many_classes(seed=SEED)[1:])


def test_without_a_rare_class_nothing_changes(tmp_path: Path) -> None:
    table = [row for row in many_classes(seed=SEED) if row[1] != "t28"]
    path = write_table(tmp_path / "rows.csv", table)
    block = DataBlock.model_validate({"files": {"train": [str(path)]}, **HELD})
    same = load_rows(block.model_copy(update={"rare_classes": "train"}))
    plain = load_rows(block)
    assert same.train["question"][:] == plain.train["question"][:]
    assert same.notes == plain.notes == ()
