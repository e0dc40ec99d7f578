"""Which rows have the same input, for each family: raw rows, and rows as the model gets them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, concatenate_datasets

from sora_cli.data.repeats import groups_of
from sora_cli.model.base import Base, load_base
from sora_cli.recipe.load import load_recipe
from sora_cli.run.prepare import load_task
from sora_cli.tasks import create_task
from sora_cli.tasks.base import Task
from tests.helpers_chat import write_chat_recipe
from tests.helpers_families import FAMILIES, write_preference_recipe
from tests.helpers_models import tiny_bert
from tests.helpers_runs import save_base, tiny_tokenizer, write_recipe
from tests.present import present


def opened(path: Path) -> tuple[Task, Base, Dataset]:
    recipe = load_recipe(path).recipe
    task, rows = load_task(recipe)
    base = load_base(recipe.model, task)
    task.adapt_model(base.model, base.processor)
    return task, base, rows.train


def keys(task: Task, base: Base, rows: Dataset, **options: Any) -> list[list[int]]:
    training = options.pop("training", False)
    encoded = task.encode(rows, base.processor, training=training)
    return [key.tolist() for key in task.input_keys(encoded, **options)]


@pytest.mark.parametrize("family", FAMILIES)
def test_repeated_rows_are_the_same_input(family: str, tmp_path: Path) -> None:
    task, base, rows = opened(FAMILIES[family](tmp_path))
    twice = concatenate_datasets([rows, rows])
    for known in (
        task.raw_keys(twice),
        task.input_keys(task.encode(twice, base.processor)),
    ):
        assert all(len(key) == len(twice) for key in known)
        assert all(np.array_equal(key[: len(rows)], key[len(rows) :]) for key in known)
        groups = groups_of(known)
        # others differ: the tiny pairs have four texts, and a query has several documents
        fewest = {"image-text": 4, "reranking, single": len(rows) / 4}
        assert groups.max() + 1 >= fewest.get(family, len(rows) / 2)
    trained = {key for own in keys(task, base, rows, training=True) for key in own}
    assert trained == {key for own in keys(task, base, rows) for key in own}


def changed(rows: Dataset, column: str, value: Any) -> Dataset:
    return Dataset.from_list([{**row, column: value} for row in rows])


def test_an_answer_is_no_input_but_for_next_tokens(tmp_path: Path) -> None:
    for family in ("causal-lm", "seq2seq"):
        task, base, rows = opened(FAMILIES[family](tmp_path / family))
        other = changed(rows, "output", "the fish")
        assert keys(task, base, rows) == keys(task, base, other)
        assert [key.tolist() for key in task.raw_keys(rows)] == [
            key.tolist() for key in task.raw_keys(other)
        ]
        one, two = (keys(task, base, part, answers=True)[0] for part in (rows, other))
        assert not set(one) & set(two)


def test_a_chat_is_known_by_its_turns_before_the_last_answer(tmp_path: Path) -> None:
    def chat(*turns: str) -> dict[str, Any]:
        roles = ("user", "assistant") * len(turns)
        return {"messages": [{"role": r, "content": t} for r, t in zip(roles, turns, strict=False)]}

    recipe = load_recipe(write_chat_recipe(tmp_path)).recipe
    data = recipe.data.model_copy(update={"columns": {}})
    task, rows = (
        create_task(recipe.task, data),
        Dataset.from_list(
            [
                chat("the cat", "old"),
                chat("the cat", "new dog"),
                chat("the cat", "old", "a fish", "red"),
                chat("the cat", "old", "a fish", "blue"),
                chat("the cat", "old", "a dog", "blue"),
            ]
        ),
    )
    task.bind(rows)
    base = load_base(recipe.model, task)
    for known in (task.raw_keys(rows), task.input_keys(task.encode(rows, base.processor))):
        assert groups_of(known).tolist() == [0, 0, 1, 1, 2]


def test_pairs_are_known_by_their_prompt_in_either_order(tmp_path: Path) -> None:
    task, base, rows = opened(write_preference_recipe(tmp_path))
    turned = rows.rename_columns({"chosen": "rejected", "rejected": "chosen"})
    assert keys(task, base, rows) == keys(task, base, turned.select_columns(rows.column_names))
    assert keys(task, base, rows) == keys(task, base, changed(rows, "chosen", "the old fish"))
    without = Dataset.from_list(
        [{s: f"{row['prompt']} so {row[s]}" for s in ("chosen", "rejected")} for row in rows]
    )
    recipe = load_recipe(tmp_path / "family.yaml").recipe
    task = create_task(recipe.task, recipe.data)
    task.bind(without)
    swapped = without.rename_columns({"chosen": "rejected", "rejected": "chosen"})
    assert task.raw_keys(without)[0].tolist() == task.raw_keys(swapped)[0].tolist()


def test_an_image_or_its_text_is_enough(tmp_path: Path) -> None:
    task, base, rows = opened(FAMILIES["image-text"](tmp_path))
    image, text = (next(c for c in rows.column_names if c == name) for name in ("image", "text"))
    first, second = rows[0], next(row for row in rows if row[text] != rows[0][text])
    mixed = Dataset.from_list(
        [first, {image: first[image], text: second[text]}, {image: second[image], text: "new"}],
        features=rows.features,
    )
    for known in (task.raw_keys(mixed), task.input_keys(task.encode(mixed, base.processor))):
        assert groups_of(known).tolist() == [0, 0, 1]


def test_rows_are_compared_as_the_model_reads_them(tmp_path: Path) -> None:
    """Capitals and blanks that the tokenizer drops, and texts beyond the cut, change nothing."""
    path = write_recipe(tmp_path, tiny_bert(num_labels=2), data={"max_length": 9})
    from tokenizers import normalizers

    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    base_folder = save_base(tiny_bert(num_labels=2), tmp_path / "base")
    tokenizer.save_pretrained(base_folder)
    task, base, _ = opened(path)
    row = {"sentence1": "a cat a dog", "sentence2": "a fish", "label": 0}
    alike = [row, {**row, "sentence1": "A CAT a dog "}, {**row, "sentence1": "a dog a cat"}]
    long = [{**row, "sentence1": "old new red fish", "sentence2": f"new {'a ' * 9}{w}"}
            for w in ("cat", "dog")]  # fmt: skip
    made = Dataset.from_list([*alike, *long])
    assert groups_of(task.raw_keys(made)).tolist() == [0, 1, 2, 3, 4]
    known = task.input_keys(task.encode(made, base.processor))
    assert groups_of(known).tolist() == [0, 0, 1, 2, 2]


def test_packed_texts_are_taken_apart(tmp_path: Path) -> None:
    task, base, rows = opened(FAMILIES["causal-lm, packed"](tmp_path))
    packed = task.encode(rows, base.processor, training=True)
    assert len(packed.dataset) < len(rows)
    (single,), (apart) = (
        task.input_keys(task.encode(rows, base.processor)),
        task.input_keys(packed)[0],
    )
    assert sorted(single.tolist()) == sorted(apart.tolist())


def test_rows_of_one_context_depend_on_each_other(tmp_path: Path) -> None:
    task, base, rows = opened(FAMILIES["question-answering"](tmp_path))
    encoded = task.encode(concatenate_datasets([rows, rows]), base.processor)
    shared = present(task.shared_part(encoded))
    assert shared[0] == "context"
    assert len(set(shared[1].tolist())) == len(set(rows["context"][:]))
