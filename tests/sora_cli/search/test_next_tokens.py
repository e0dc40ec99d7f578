"""Next-token choices on given texts: which rows are read, and how two models differ on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from sora_cli.core.errors import SoraError
from sora_cli.model.base import Base, load_base
from sora_cli.recipe.load import load_recipe
from sora_cli.recipe.recipe import Recipe
from sora_cli.run.prepare import load_task
from sora_cli.search.answers import read_answer_rows
from sora_cli.search.rows import training_rows
from sora_cli.search.test_rows import TestRows
from sora_cli.tasks.base import Task
from sora_cli.tasks.row_scores import RowScores
from sora_cli.train.trainer import build_scorer
from tests.helpers_chat import instruct_rows, write_chat_recipe
from tests.helpers_errors import refusal
from tests.helpers_models import tiny_bert
from tests.helpers_runs import write_recipe, write_rows

NEW = instruct_rows(9, seed=7)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return load_recipe(write_chat_recipe(tmp_path_factory.mktemp("recipe"))).recipe


def read(recipe: Recipe, path: str, **options: Any) -> TestRows:
    task, rows = load_task(recipe)
    answered = read_answer_rows(recipe, Path(path), trained=task, next_tokens=True, **options)
    return answered.unseen([training_rows(task, rows)])


def chat(instruction: str, output: str | None = None) -> dict[str, Any]:
    answer = [] if output is None else [{"role": "assistant", "content": output}]
    return {"messages": [{"role": "user", "content": instruction}, *answer]}


def rows_of(file: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()]


def as_chats(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with its training rows as chats."""
    files = {}
    for name, source in recipe.data.files.items():
        rows = rows_of(source[0])
        files[name] = write_rows(folder / f"{name}.jsonl", [chat(**row) for row in rows])
    path = folder / "chats.yaml"
    values = recipe.model_dump(exclude_unset=True)
    values["data"]["files"] = files
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return load_recipe(path).recipe


def test_given_answers_are_read_and_told(recipe: Recipe, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [{**row, "text": "x", "id": 1} for row in NEW])
    rows = read(recipe, path)
    assert rows.notes == (
        f"{path}: next-token choices on the columns 'instruction', 'output' are compared",
    )
    assert rows.rows.column_names == ["instruction", "output"]
    assert rows.rows["output"][:] == [row["output"] for row in NEW]
    other = write_rows(tmp_path / "other.jsonl", [*NEW[:-1], {**NEW[-1], "output": "no fish"}])
    assert read(recipe, other).row_set().digest != rows.row_set().digest


@pytest.mark.parametrize("known", [True, False], ids=["by training rows", "by columns"])
def test_the_column_of_the_answers_may_have_another_name(
    recipe: Recipe, tmp_path: Path, known: bool
) -> None:
    rows = [{"instruction": row["instruction"], "response": row["output"]} for row in NEW]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    if known:  # the answers that the model was trained on are in a column of this name
        with refusal():
            read(recipe, path)
        return
    found = read_answer_rows(recipe, Path(path), columns=("instruction",), next_tokens=True)
    assert found.rows["response"][:] == [row["output"] for row in NEW]


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "the cat", "output": ""},
        {"instruction": "the cat", "output": None},
        chat("the cat"),
    ],
    ids=str,
)
def test_a_row_without_an_answer_is_named(
    recipe: Recipe,
    tmp_path: Path,
    row: dict[str, Any],
) -> None:
    rows: list[dict[str, Any]] = NEW
    if "messages" in row:
        recipe, rows = as_chats(recipe, tmp_path), [chat(**row) for row in NEW]
    path = write_rows(tmp_path / "rows.jsonl", [*rows[:3], row, *rows[3:]])
    with refusal():
        read(recipe, path)


def test_an_answer_belongs_to_the_input(recipe: Recipe, tmp_path: Path) -> None:
    """Its tokens are read before each choice, so another answer is another input."""
    trained = rows_of(recipe.data.files["train"][0])[:4]
    others = [{**row, "output": "another answer"} for row in trained]
    path = write_rows(tmp_path / "rows.jsonl", [*trained, *others, *NEW])
    answers = [row["output"] for row in [*others, *NEW]]
    assert read(recipe, path).rows["output"][:] == answers
    write_rows(Path(path), [chat(**row) for row in [*trained, *others, *NEW]])
    rows = read(as_chats(recipe, tmp_path), path)
    assert rows.rows["messages"][:] == [chat(**row)["messages"] for row in [*others, *NEW]]
    assert f"4 of 17 rows of {path} are training rows: they are left out" in rows.notes


def test_a_search_of_an_earlier_version_knows_rows_by_their_prompts(
    recipe: Recipe, tmp_path: Path
) -> None:
    trained = rows_of(recipe.data.files["train"][0])[:4]
    others = [{**row, "output": "another answer"} for row in trained]
    for write in (dict, chat):
        path = write_rows(tmp_path / "rows.jsonl", [write(**row) for row in [*others, *NEW]])
        used = recipe if write is dict else as_chats(recipe, tmp_path)
        task, rows = load_task(used)
        found = read_answer_rows(
            used, Path(path), trained=task, next_tokens=True, by_prompt=True
        ).unseen([training_rows(task, rows)])
        assert len(found) == len(NEW)


def test_a_family_that_writes_nothing_has_none(tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(tmp_path, tiny_bert(num_labels=2))).recipe
    with pytest.raises(SoraError, match="task sequence-classification writes none"):
        read(recipe, recipe.data.files["train"][0])


def changed_base(recipe: Recipe, task: Task, longer: float) -> Base:
    """The base model with another vector of one word."""
    base = load_base(recipe.model, task)
    with torch.no_grad():
        base.model.lm_head.weight[14] *= longer
    return base


def choices(recipe: Recipe, rows: TestRows, longer: float = 1.0) -> RowScores:
    base = changed_base(recipe, rows.task, longer)
    encoded = rows.encoded(base)
    trainer = build_scorer(recipe, rows.task, base)
    before = trainer.row_scores(encoded).value
    scores = rows.scores(trainer, encoded)
    assert trainer.row_scores(encoded).value == before  # scores get their own outputs again
    return scores


@pytest.mark.parametrize(
    ("columns", "longer"), [("instruction", 3.0), ("text", 1.3), ("messages", 3.0)]
)
def test_a_row_differs_if_any_of_its_tokens_does(
    recipe: Recipe, tmp_path: Path, columns: str, longer: float
) -> None:
    rows: list[dict[str, Any]] = NEW
    if columns == "text":
        rows = [{"text": f"{row['instruction']} {row['output']}"} for row in NEW]
    elif columns == "messages":
        rows = [chat(**row) for row in NEW]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    found = read_answer_rows(recipe, Path(path), next_tokens=True)
    whole = choices(recipe, found)
    assert whole.is_agreement
    assert not whole.differs(choices(recipe, found)).any()
    models = [changed_base(recipe, found.task, factor).model for factor in (1.0, longer)]
    expected = []
    for row in found.encoded(load_base(recipe.model, found.task)).dataset:
        counted = torch.tensor(row["labels"][1:]) != -100
        assert counted.sum() == (len(counted) if columns == "text" else 3)  # answers, their ends
        ids = torch.tensor([row["input_ids"]])
        one, other = (model(input_ids=ids).logits[0, :-1].argmax(-1)[counted] for model in models)
        expected.append(not torch.equal(one, other))
    assert 0 < sum(expected) < len(expected)
    assert whole.differs(choices(recipe, found, longer)).tolist() == expected


def test_a_text_without_a_next_token_is_named(recipe: Recipe, tmp_path: Path) -> None:
    """Any two models would agree on it."""
    path = write_rows(tmp_path / "rows.jsonl", [{"text": "the cat"}, {"text": "the dog"}])
    rows = read_answer_rows(recipe, Path(path), next_tokens=True)
    base = load_base(recipe.model, rows.task)
    base.processor.eos_token = None  # nothing ends a text of one word, then
    write_rows(tmp_path / "rows.jsonl", [{"text": "the cat"}, {"text": "dog"}])
    rows = read_answer_rows(recipe, Path(path), next_tokens=True)
    with refusal():
        rows.encoded(base)
