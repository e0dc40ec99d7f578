"""Rows as people see them to label them: what is shown, what each label makes right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from sora_cli.core.errors import SoraError
from sora_cli.data.places import RowError
from sora_cli.recipe.load import load_recipe
from sora_cli.recipe.recipe import DataBlock, TaskBlock
from sora_cli.search.basis import check_asking
from sora_cli.tasks import create_task
from sora_cli.tasks.base import Task
from sora_cli.tasks.questions import Questions
from tests.helpers_images import corner_rows
from tests.present import present


def bound(name: str, rows: Dataset, **data: Any) -> Task:
    task = create_task(TaskBlock(name=name), DataBlock(path="unused", **data))
    task.bind(rows)
    return task


def asked(task: Task, rows: Dataset, seed: int = 0) -> Questions:
    return present(task.questions(rows, np.random.default_rng(seed)))


def test_texts_are_shown_with_the_names_of_the_classes() -> None:
    rows = Dataset.from_list(
        [{"sentence1": "a", "sentence2": "b", "label": "no", "more": 1},
         {"sentence1": "c", "sentence2": "d", "label": "yes", "more": 2}]
    )  # fmt: skip
    found = asked(bound("sequence-classification", rows), rows)
    assert found.shown == {"sentence1": ["a", "c"], "sentence2": ["b", "d"]}  # and no label
    assert found.answers == [{"no": "no", "yes": "yes"}] * 2


@pytest.mark.parametrize(
    "row",
    [
        {"ctx": "the cat", "endings": ["red", "blue"], "label": 1},
        {"context": "the cat", "choice1": "red", "choice2": "blue", "label": 1},
    ],
)
def test_choices_have_letters(row: dict[str, Any]) -> None:
    rows = Dataset.from_list([row])
    found = asked(bound("multiple-choice", rows), rows)
    assert found.shown == {"context": ["the cat"], "a": ["red"], "b": ["blue"]}
    assert found.answers == [{"a": 0, "b": 1}]


def test_pairs_are_shown_in_a_random_order() -> None:
    pairs = [{"prompt": f"p{n}", "chosen": f"x{n}", "rejected": f"y{n}"} for n in range(40)]
    rows = Dataset.from_list(pairs)
    task = bound("preference", rows)
    found = asked(task, rows)
    assert list(found.shown) == ["prompt", "answer_a", "answer_b"]
    firsts = found.shown["answer_a"]
    assert 5 < sum(text.startswith("x") for text in firsts) < 35
    for a, b, answers in zip(firsts, found.shown["answer_b"], found.answers, strict=True):
        assert {answers["a"]: a[0], answers["b"]: b[0]} == {"chosen": "x", "rejected": "y"}
    assert asked(task, rows) == found
    assert asked(task, rows, seed=1) != found


def test_pairs_of_which_nobody_has_said_the_better_answer_are_read() -> None:
    task = bound("preference", Dataset.from_list([{"prompt": "p", "chosen": "x", "rejected": "y"}]))
    rows = Dataset.from_list([{"prompt": "p", "answer_a": "x", "answer_b": "y"}])
    assert task.unlabelled(rows).column_names == ["prompt", "chosen", "rejected"]
    named = rows.rename_columns({"answer_a": "chosen", "answer_b": "rejected"})
    assert task.unlabelled(named) is named


def test_images_are_shown_by_the_names_of_their_files(tmp_path: Path) -> None:
    rows = corner_rows(2)
    task = bound("image-classification", rows)
    with pytest.raises(RowError, match="no file name"):
        asked(task, rows)
    paths = []
    for number, image in enumerate(rows["image"][:]):
        paths.append(str(tmp_path / f"{number}.png"))
        image.save(paths[-1])
    named = Dataset.from_dict({"image": paths, "label": rows["label"][:]})
    named = named.cast_column("image", rows.features["image"])
    assert asked(task, named).shown == {"image": ["0.png", "1.png"]}


@pytest.mark.parametrize(
    ("recipe", "metrics", "reason"),
    [
        ("sst2", "[f1, accuracy]", "f1 is no share of right rows"),
        ("offline/instruct", "[exact_match]", "exact_match compares texts: a slip of the pen"),
        ("offline/captions", "[recall_at_1]", "each row chooses among all others"),
        ("offline/passages", "[exact_match]", "exact_match compares texts"),
    ],
)
def test_other_metrics_are_refused(recipe: str, metrics: str, reason: str) -> None:
    loaded = load_recipe(recipe, [f"task.metrics={metrics}"]).recipe
    task = create_task(loaded.task, loaded.data)
    with pytest.raises(SoraError, match="no labels can be asked for") as caught:
        check_asking(loaded, task, task.best)
    assert reason in caught.value.what
    assert len(caught.value.lines()) <= 3
