"""All built-in data sets: the same rows at every call, and validation that training has not had."""

from __future__ import annotations

import json
import random

import pytest
from datasets import ClassLabel, Dataset

from sora_cli.data.builtin import BUILTINS

INPUTS = {
    "entailment": ("sentence1", "sentence2"),
    "entities": ("tokens",),
    "passages": ("context", "question"),
    "rankings": ("documents", "query"),
    "numbers": ("source",),
    "endings": ("context",),
    "preferences": ("prompt",),
    "thumbs": ("prompt", "completion"),
    "digits": ("image",),
    "captions": ("image",),
}
"""Columns that the answer is to be found from."""
ROWS = {
    "entailment": (2400, 600),
    "entities": (800, 200),
    "passages": (800, 200),
    "rankings": (400, 150),
    "numbers": (1500, 200),
    "endings": (1200, 240),
    "preferences": (1000, 200),
    "thumbs": (2000, 400),
    "digits": (1437, 360),
    "captions": (1437, 360),
}


def inputs(name: str, rows: Dataset) -> list[str]:
    return [
        json.dumps([v.tobytes().hex() if column == "image" else v for column, v in row.items()])
        for row in rows.select_columns(list(INPUTS[name]))
    ]


def test_every_data_set_is_looked_at() -> None:
    assert set(BUILTINS) == set(INPUTS)


@pytest.mark.parametrize("name", INPUTS)
def test_rows_are_as_many_as_said_and_validation_is_new(name: str) -> None:
    splits = BUILTINS[name]()
    assert (len(splits["train"]), len(splits["validation"])) == ROWS[name]
    train, validation = inputs(name, splits["train"]), inputs(name, splits["validation"])
    assert len(set(train)) == len(train)
    assert len(set(validation)) == len(validation)
    assert not set(train) & set(validation)


@pytest.mark.parametrize("name", INPUTS)
def test_rows_do_not_depend_on_other_random_numbers(name: str) -> None:
    random.seed(1)
    before = random.getstate()
    first = BUILTINS[name]()
    assert random.getstate() == before
    random.seed(2)
    again = BUILTINS[name]()
    for split in ("train", "validation"):
        assert first[split].data.table.equals(again[split].data.table)
        assert first[split].features == again[split].features


def test_classes_have_names() -> None:
    digits, entities = BUILTINS["digits"]()["train"], BUILTINS["entities"]()["train"]
    assert isinstance(digits.features["label"], ClassLabel)
    assert digits.features["label"].int2str(7) == "seven"
    assert entities.features["tags"].feature.names[:3] == ["O", "B-PER", "I-PER"]
