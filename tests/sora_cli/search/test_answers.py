"""Rows without labels: which are read, what is said of them, and what each family compares."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from sora_cli.core.errors import SoraError
from sora_cli.model.base import load_base
from sora_cli.recipe.load import load_recipe
from sora_cli.recipe.recipe import Recipe
from sora_cli.run.prepare import load_task
from sora_cli.search.answers import read_answer_rows
from sora_cli.search.row_set import SCREENING, TEST
from sora_cli.search.rows import training_rows
from sora_cli.search.test_rows import TestRows
from sora_cli.tasks.row_scores import RowScores
from sora_cli.train.trainer import build_scorer
from tests.helpers_chat import write_chat_recipe
from tests.helpers_errors import refusal
from tests.helpers_families import FAMILIES, TRAINING
from tests.helpers_models import tiny_bert
from tests.helpers_runs import pair_rows, write_recipe, write_rows


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """Of two classes, 0 and 1, with 48 training rows."""
    path = write_recipe(tmp_path_factory.mktemp("recipe"), tiny_bert(num_labels=2))
    return load_recipe(path).recipe


def inputs(rows: int, seed: int = 5) -> list[dict[str, Any]]:
    return [{k: v for k, v in r.items() if k != "label"} for r in pair_rows(rows, seed=seed)]


def read(recipe: Recipe, path: Path | str, **options: Any) -> TestRows:
    """Read a file as `sora auto` does: with the task of the training rows."""
    task, rows = load_task(recipe)
    return read_answer_rows(recipe, Path(path), trained=task, **options).unseen(
        [training_rows(task, rows)]
    )


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv", "parquet", "crlf.csv"])
def test_every_kind_of_file(recipe: Recipe, tmp_path: Path, kind: str) -> None:
    rows, path = pd.DataFrame(inputs(20)), tmp_path / f"rows.{kind}"
    if kind == "jsonl":
        rows.to_json(path, orient="records", lines=True)
    elif kind == "parquet":
        rows.to_parquet(path)
    else:
        end = "\r\n" if kind == "crlf.csv" else "\n"
        rows.to_csv(path, sep="\t" if kind == "tsv" else ",", index=False, lineterminator=end)
    found = read(recipe, path)
    assert len(found) == 20
    assert found.rows["sentence2"][:] == [row["sentence2"] for row in inputs(20)]
    assert found.notes == (f"{path}: answers to the columns 'sentence1', 'sentence2' are compared",)
    wanted = read(recipe, write_rows(tmp_path / "other.jsonl", inputs(20)))
    assert found.row_set().digest == wanted.row_set().digest
    assert found.row_set().split == "unlabelled"


@pytest.mark.parametrize("label", ["no class of this model", None, 7, 0.5])
def test_labels_are_ignored_and_that_is_said(recipe: Recipe, tmp_path: Path, label: Any) -> None:
    rows = [{**row, "label": label, "split": "test", "id": str(i)}
            for i, row in enumerate(inputs(20))]  # fmt: skip
    path = write_rows(tmp_path / "rows.jsonl", rows)
    found = read(recipe, path)
    assert f"{path}: the column 'label' is ignored: no label is needed" in found.notes
    assert found.task.input_columns == ("sentence1", "sentence2")
    plain = read(recipe, write_rows(tmp_path / "plain.jsonl", inputs(20)))
    assert found.row_set().digest == plain.row_set().digest


def test_training_rows_and_repeated_rows_are_left_out(recipe: Recipe, tmp_path: Path) -> None:
    trained = [{k: row[k] for k in ("sentence1", "sentence2")} for row in pair_rows(48)[:7]]
    new = inputs(20)
    path = write_rows(tmp_path / "rows.jsonl", [*trained, *new, *new[:3], new[0]])
    found = read(recipe, path)
    assert found.rows["sentence1"][:] == [row["sentence1"] for row in new]
    assert f"7 of 31 rows of {path} are training rows: they are left out" in found.notes
    assert f"4 of 31 rows of {path} repeat another row: they are left out" in found.notes
    only = write_rows(tmp_path / "only.jsonl", [*trained, new[0], new[0]])
    with refusal():
        read(recipe, only)


def test_parts_are_drawn_by_the_seed_and_do_not_overlap(recipe: Recipe, tmp_path: Path) -> None:
    found = read(recipe, write_rows(tmp_path / "rows.jsonl", inputs(60)))
    parts = found.parts(15, 40, seed=3)
    assert {name: len(part) for name, part in parts.items()} == {SCREENING: 15, TEST: 40}
    texts = [set(zip(*(part.rows[c][:] for c in part.task.input_columns), strict=True))
             for part in parts.values()]  # fmt: skip
    assert len(texts[0] | texts[1]) == 55
    again, other = found.parts(15, 40, seed=3), found.parts(15, 40, seed=4)
    assert parts[TEST].row_set() == again[TEST].row_set() != other[TEST].row_set()


def test_columns_must_be_those_of_the_training_rows(recipe: Recipe, tmp_path: Path) -> None:
    rows = [{"sentence1": row["sentence1"], "text": row["sentence2"]} for row in inputs(9)]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    with refusal():
        read(recipe, path)


def test_files_that_are_none(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "header.csv").write_text("sentence1,sentence2\n")
    (tmp_path / "notes.txt").write_text("x")
    for name, said in {
        "none.csv": "there is no file",
        "": "is a directory, not a file of rows",
        "empty.csv": "holds no rows",
        "header.csv": "holds no rows",
        "notes.txt": "is not a file of rows",
    }.items():
        with pytest.raises(SoraError, match=said):
            read(recipe, tmp_path / name)


def test_classes_are_those_of_the_training_rows(tmp_path: Path) -> None:
    rows = [{**row, "label": ["no", "yes"][row["label"]]} for row in pair_rows(48)]
    path = write_recipe(tmp_path, tiny_bert(num_labels=2))
    for name in ("train", "validation"):
        write_rows(tmp_path / f"{name}.jsonl", rows)
    found = read(load_recipe(path).recipe, write_rows(tmp_path / "rows.jsonl", inputs(9)))
    assert found.task.label_names == ["no", "yes"]
    assert found.rows["label"][:] == ["no"] * 9


@pytest.mark.parametrize(
    ("name", "tolerance", "said"),
    [
        ("sequence-regression", None, "answers with numbers: two models never give the same"),
        ("sequence-classification", 0.1, "--tolerance is for answers that are numbers"),
    ],
)
def test_a_tolerance_is_for_numbers(
    tmp_path: Path, name: str, tolerance: float | None, said: str
) -> None:
    path = write_recipe(tmp_path, tiny_bert(num_labels=2), task={"name": name})
    rows = write_rows(tmp_path / "rows.jsonl", inputs(9))
    with pytest.raises(SoraError, match=said):
        read(load_recipe(path).recipe, rows, tolerance=tolerance)


def chat_of(row: dict[str, Any]) -> list[dict[str, str]]:
    """An instruction row, or a chat, as a chat."""
    if "messages" in row:
        return list(row["messages"])
    turns = {"user": row["instruction"], "assistant": row["output"]}
    return [{"role": role, "content": text} for role, text in turns.items()]


def test_a_chat_is_compared_without_its_own_answer(tmp_path: Path) -> None:
    """Its answer is among its inputs, and must neither be read nor hide a training row."""
    path = write_chat_recipe(tmp_path, training=TRAINING)
    column, files = "messages", ("train", "valid")
    for name in files:
        rows = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").open()]
        write_rows(tmp_path / f"{name}.jsonl", [{column: chat_of(row)} for row in rows])
    recipe = load_recipe(path).recipe
    chats = [chat_of(json.loads(line)) for line in (tmp_path / "train.jsonl").open()][:4]
    asked = [[*chat[:-1]] for chat in chats]
    answered = [[*chat[:-1], {**chat[-1], "content": "another answer"}] for chat in chats]
    new = [[{"role": "user", "content": f"the old cat {n} sees"}] for n in range(3)]
    for known in (asked, answered, chats):
        file = write_rows(tmp_path / "rows.jsonl", [{column: one} for one in [*known, *new]])
        found = read(recipe, file)
        assert len(found) == 3, found.notes
        assert any("4 of 7 rows" in note for note in found.notes)


class Unmoved:
    """The reference model: the base as it was."""

    def __init__(self, outputs: np.ndarray) -> None:
        self._outputs = outputs

    def outputs(self, *_: Any) -> np.ndarray:
        return self._outputs


def answers(rows: TestRows, recipe: Recipe, change: float = 0.0) -> RowScores:
    """The answers of a base model, whose parameters may be moved at random."""
    task, _ = load_task(recipe)
    torch.manual_seed(0)  # of a new head
    base = load_base(recipe.model, task)
    encoded = rows.encoded(base)
    scorer = build_scorer(recipe, rows.task, base)
    if rows.task.options.needs_reference:
        outputs = scorer.outputs_of(encoded, rows.task.outputs_to_keep)
        rows.task.reference = Unmoved(rows.task.measured(outputs))
    rng = np.random.default_rng(0)
    for parameter in base.model.parameters():
        noise = rng.normal(size=tuple(parameter.shape)) * change
        parameter.data += parameter.data.new_tensor(noise)
    base.model.train()  # as training leaves it
    found = rows.scores(scorer, encoded)
    assert not base.model.training  # dropout must not answer
    return found


def without(rows: Sequence[dict[str, Any]], labels: Sequence[str]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in labels} for row in rows]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_answers_and_is_compared(tmp_path: Path, family: str) -> None:
    recipe = load_recipe(FAMILIES[family](tmp_path)).recipe
    task, rows = load_task(recipe)
    part = rows.select
    name = tmp_path / "rows.parquet"
    part.select_columns(list(task.input_columns)).to_parquet(str(name))
    if task.options.ANSWERS_NUMBERS:
        with pytest.raises(SoraError, match="two models never give the same one"):
            read_answer_rows(recipe, name, trained=task)
        return
    found = read_answer_rows(recipe, name, trained=task)
    full = answers(found, recipe)
    assert len(full) == len(found)
    again = answers(found, recipe)
    assert full.differs(again).sum() == 0
    assert again.beside(full) == 1.0
    other = answers(found, recipe, change=3.0)
    assert 0 < full.differs(other).sum() <= len(found)
