"""The rows that test: distinct inputs, as the model reads them, that training has not seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sora_cli.model.base import load_base
from sora_cli.recipe.load import load_recipe
from sora_cli.run.encode import encode
from sora_cli.run.prepare import load_task
from sora_cli.search.cut import scored_on
from sora_cli.search.row_set import SCREENING, TEST
from sora_cli.search.rows import deciding_parts, selection_rows
from sora_cli.search.statistics import drop_bound
from sora_cli.search.test_rows import EncodedRows, TestRows
from sora_cli.tasks.row_scores import row_scores
from sora_cli.train.trainer import build_scorer
from tests.helpers_errors import refusal
from tests.helpers_models import tiny_bert
from tests.helpers_runs import pair_rows, write_recipe, write_rows

ROWS = pair_rows(12, seed=5)


def part_of(folder: Path, test: list[dict[str, Any]], *, seed: int = 0) -> EncodedRows:
    """The test rows of a recipe whose validation split was given by the user."""
    path = write_recipe(
        folder,
        tiny_bert(num_labels=2),
        data={"max_length": 16, "files": {
            "train": write_rows(folder / "a.jsonl", ROWS),
            "validation": write_rows(folder / "b.jsonl", test),
        }},
    )  # fmt: skip
    recipe = load_recipe(path).recipe
    task, rows = load_task(recipe)
    base = load_base(recipe.model, task)
    train = encode(task, base, rows.train, rows.origin(rows.train), training=True)
    part = TestRows(task, rows.select, rows.origin(rows.select), "validation")
    return part.distinct_on(base, [(task, train)], seed)


def test_training_rows_and_repeats_do_not_test(tmp_path: Path) -> None:
    new = pair_rows(9, seed=8)
    spaced = {**new[0], "sentence1": f"{new[0]['sentence1']}  "}
    part = part_of(tmp_path, [*new, spaced, new[1], new[1], ROWS[3], ROWS[4]])
    assert len(part) == 9
    assert (part.seen, part.repeated, part.alike) == (2, 3, 1)
    assert part.counted is not None
    assert not set(part.counted.tolist()) & {12, 13}
    found = part.row_set()
    assert (found.rows, found.held) == (9, 14)
    assert list(part.notes("test rows")) == [
        "2 of 14 test rows are training or screening rows as the model reads them: they do not "
        "test",
        "3 of 14 test rows repeat another one, 1 of them only as the model reads them: one of each "
        "input tests",
    ]


def test_without_repeats_all_rows_test(tmp_path: Path) -> None:
    part = part_of(tmp_path, pair_rows(9, seed=8))
    assert (len(part), list(part.notes("rows"))) == (9, [])
    assert part.row_set().held == 9


def test_where_labels_disagree_the_seed_draws_a_row(tmp_path: Path) -> None:
    (row,) = pair_rows(1, seed=8)
    rows = [{**row, "label": label} for label in (0, 1)]
    drawn = {
        int(part_of(tmp_path / str(seed), rows, seed=seed).counted[0])  # type: ignore[index]
        for seed in range(8)
        if not (tmp_path / str(seed)).mkdir()
    }
    assert drawn == {0, 1}


def test_rows_that_are_all_known_test_nothing(tmp_path: Path) -> None:
    with refusal():
        part_of(tmp_path, ROWS[:3])


@pytest.mark.parametrize("trained", [0, 2], ids=["screening", "training and screening"])
def test_a_refusal_says_which_rows_are_repeated(trained: int, tmp_path: Path) -> None:
    new = pair_rows(3, seed=8)
    found = part_of(tmp_path, [*ROWS[:trained], *new])
    recipe = load_recipe(tmp_path / "tiny.yaml").recipe
    task, rows = load_task(recipe)
    base = load_base(recipe.model, task)
    train = encode(task, base, rows.train, rows.origin(rows.train), training=True)
    screened = found.part.take(np.arange(trained, trained + 3)).encoded(base)
    with refusal():
        found.part.distinct_on(base, [(task, train)], screened=[(found.part.task, screened)])


def test_rows_that_screening_has_seen_do_not_test(tmp_path: Path) -> None:
    """They were dealt apart by their texts, and the model reads one of them as it reads another."""
    new = pair_rows(9, seed=8)
    part_of(tmp_path, [*new, {**new[0], "sentence1": f"{new[0]['sentence1']}  "}])
    recipe = load_recipe(tmp_path / "tiny.yaml", ["auto={max_drop: 50pt}"]).recipe
    task, rows = load_task(recipe)
    base = load_base(recipe.model, task)
    train = encode(task, base, rows.train, rows.origin(rows.train), training=True)
    whole = TestRows(task, rows.select, rows.origin(rows.select), "validation")
    held = {SCREENING: whole.take(np.arange(3)), TEST: whole.take(np.arange(3, 10))}
    found = deciding_parts(recipe, task, base, rows, train, held)
    assert (len(found.test), found.test.seen) == (6, 1)


def test_a_bound_is_of_the_rows_that_test_and_tells_the_drop_on_all() -> None:
    right = np.ones(40)
    lost = right.copy()
    lost[:4] = 0  # a stock phrase, four times in the test rows
    full, small = (row_scores("accuracy", "right", each) for each in (right, lost))
    testing = np.arange(3, 40)
    bound = drop_bound(full.of_these(testing), small.of_these(testing))
    assert bound.drop == pytest.approx(1 / 37)
    assert bound.every == pytest.approx(0.1)
    assert drop_bound(full, small).every is None
    assert full.of_these(testing).take(np.arange(3)).every is None


def test_rows_that_choose_a_finished_adapters_size(tmp_path: Path) -> None:
    """Rows of a split that the user gave count once."""
    new = pair_rows(9, seed=8)
    part_of(tmp_path, [*new, new[1], ROWS[3]])
    recipe = load_recipe(tmp_path / "tiny.yaml").recipe
    rows = selection_rows(recipe)
    trainer = build_scorer(recipe, rows.task, load_base(recipe.model, rows.task))
    found, score = scored_on(rows, recipe, trainer)
    assert (len(score()), len(score().every or [])) == (9, 11)
    assert list(found.notes()) == [
        "1 of 11 rows of validation are training or screening rows as the model reads them: they "
        "do not test",
        "1 of 11 rows of validation repeat another one: one of each input tests",
    ]
