"""Texts made of several columns."""

from __future__ import annotations

from typing import Any

import pytest
from datasets import Dataset

from sora_cli.core.errors import SoraError
from sora_cli.recipe.recipe import DataBlock, TaskBlock
from sora_cli.tasks import create_task
from sora_cli.tasks.texts import columns_in, made_texts
from tests.helpers_runs import tiny_tokenizer

ROWS = Dataset.from_dict(
    {
        "word": ["cat", "dog"],
        "first": ["the cat sees", "a {first} dog"],
        "second": ["no cat", "old dog"],
        "times": [3, 4],
        "label": [0, 1],
    }
)


@pytest.mark.parametrize(
    ("entries", "texts"),
    [
        (["first"], [["the cat sees"], ["a {first} dog"]]),
        (["second", "first"], [["no cat", "the cat sees"], ["old dog", "a {first} dog"]]),
        (["{word}: {first}"], [["cat: the cat sees"], ["dog: a {first} dog"]]),
        (["{word}{word} ({times})"], [["catcat (3)"], ["dogdog (4)"]]),
        (["second", "is {word}?"], [["no cat", "is cat?"], ["old dog", "is dog?"]]),
        (["{times}", "times"], [["3", "3"], ["4", "4"]]),
    ],
)
def test_texts_are_columns_or_made_of_them(entries: list[str], texts: list[list[str]]) -> None:
    made = made_texts(ROWS, entries)
    assert [list(row.values()) for row in made] == texts


def test_columns_of_an_entry() -> None:
    columns = ["word", "{word}", "a b"]
    assert columns_in("word", columns) == ("word",)
    assert columns_in("{word}", columns) == ("{word}",)  # a column of that very name
    assert columns_in("{word} and {a b}", columns) == ("word", "a b")
    assert columns_in("none", columns) == ("none",)


def _bound(**data: Any) -> Any:
    task = create_task(TaskBlock(name="sequence-classification"), DataBlock(path="unused", **data))
    task.bind(ROWS)
    return task


def test_a_task_encodes_what_templates_make() -> None:
    task = _bound(text_columns=["{word} {first}", "{second}"])
    assert task.input_columns == ("word", "first", "second")
    tokenizer = tiny_tokenizer()
    encoded = task.encode(ROWS, tokenizer)
    direct = tokenizer("cat the cat sees", "no cat")
    assert encoded.dataset[0]["input_ids"] == direct["input_ids"]
    assert encoded.dataset["labels"][:] == [0, 1]


@pytest.mark.parametrize(
    ("entry", "missing"),
    [
        ("{words}: {first}", "words"),
        ("{word.__class__}", "word.__class__"),
        ("{first[0]}", "first[0]"),
        ("{times:>9}", "times:>9"),
        ("{word", "{word"),
        ("no braces", "no braces"),
    ],
)
def test_braces_hold_names_of_columns_only(entry: str, missing: str) -> None:
    with pytest.raises(SoraError) as caught:
        _bound(text_columns=[entry])
    assert caught.value.what == f"data.text_columns: no column '{missing}'"


def test_a_column_without_text_is_told_by_its_name() -> None:
    task = _bound(text_columns=["{word} {first}"])
    rows = ROWS.remove_columns("word").add_column("word", [None, "dog"])
    with pytest.raises(SoraError, match="column 'word' has no text\nrow 0 "):
        task.check(rows)
