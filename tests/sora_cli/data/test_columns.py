"""What a column holds, by its values and its name."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, Value

from sora_cli.data.columns import read_columns
from sora_cli.data.loading import load_file

TEXTS = [f"the cat number {i} sees a dog" for i in range(40)]
COLUMNS: dict[str, tuple[str, list[Any]]] = {
    "review": ("text", TEXTS),
    "chinese": ("text", [f"这个产品非常好我会再次购买{i}" for i in range(40)]),
    "city": ("word", [f"Town{i}" for i in range(40)]),
    "team": ("class", ["billing", "delivery"] * 20),
    "ten": ("class", [f"c{i % 10}" for i in range(40)]),
    "eleven": ("word", [f"c{i % 11}" for i in range(40)]),
    "stars": ("class", [i % 5 for i in range(40)]),
    "signed": ("whole", [i % 2 * 2 - 1 for i in range(40)]),
    "likes": ("whole", [i * i for i in range(40)]),
    "flag": ("class", [i % 2 == 0 for i in range(40)]),
    "score": ("number", [i / 7 for i in range(40)]),
    "id": ("identifier", [i * i for i in range(40)]),
    "user_id": ("identifier", [f"u{i}" for i in range(40)]),
    "counted": ("identifier", [i + 1 for i in range(40)]),
    "hash": ("identifier", [f"{i:032x}" for i in range(40)]),
    "when": ("date", [f"2024-01-{1 + i % 28:02d}" for i in range(40)]),
    "german": ("date", [f"{1 + i % 28}.1.2024 10:00" for i in range(40)]),
    "day": ("date", [datetime.date(2024, 1, 1 + i % 28) for i in range(40)]),
    "source": ("constant", ["web"] * 40),
    "nothing": ("empty", [None] * 40),
    "tokens": ("words", [["a", "b"]] * 40),
    "tags": ("numbers", [[], [0, 1]] * 20),
    "messages": ("chat", [[{"role": "user", "content": "a"}]] * 40),
    "sharegpt": ("chat", [[{"from": "human", "value": "a"}]] * 40),
    "answers": ("answers", [{"text": ["a"], "answer_start": [0]}] * 40),
    "choices": ("choices", [{"text": ["a", "b"], "label": ["A", "B"]}] * 40),
    "nested": ("other", [{"en": "a", "de": "b"}] * 40),
}


def test_every_kind() -> None:
    rows = Dataset.from_dict({name: values for name, (_, values) in COLUMNS.items()})
    found = {name: column.kind for name, column in read_columns(rows).items()}
    assert found == {name: kind for name, (kind, _) in COLUMNS.items()}


def test_values_of_several_kinds(tmp_path: Path) -> None:
    file = tmp_path / "mixed.jsonl"
    file.write_text('{"a": "x", "b": [1, "x"]}\n{"a": [1], "b": {"c": [1]}}\n')
    columns = read_columns(load_file(file, tmp_path / "cache").rows)
    assert [column.kind for column in columns.values()] == ["other", "other"]


def test_named_classes_are_classes_whatever_their_numbers() -> None:
    features = Features({"y": ClassLabel(names=["a", "b"]), "n": Value("int64")})
    rows = Dataset.from_dict({"y": [0, 0, 0], "n": [0, 0, 0]}, features=features)
    assert [column.kind for column in read_columns(rows).values()] == ["class", "constant"]


def test_rows_are_looked_at_all_over_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file sorted by its labels shows one class in its first rows."""
    monkeypatch.setattr("sora_cli.data.columns.LOOKED_AT", 10)
    rows = Dataset.from_dict({"label": ["a"] * 50 + ["b"] * 50})
    assert read_columns(rows)["label"].about == "2 classes"
    assert read_columns(Dataset.from_dict({"t": TEXTS}))["t"].about == "texts of 7 words"


def test_rows_in_turns_show_both_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tenth row of these is of one class."""
    monkeypatch.setattr("sora_cli.data.columns.LOOKED_AT", 10)
    rows = Dataset.from_dict({"label": ["a", "b"] * 50})
    assert read_columns(rows)["label"].about == "2 classes"


def test_a_few_that_are_no_numbers_make_no_classes() -> None:
    """A CSV file with one NaN is read as texts."""
    scores = [str(number / 4) for number in range(100)]
    rows = Dataset.from_dict({"s": ["NaN", *scores], "c": ["NaN", *("0", "1") * 50]})
    assert [c.kind for c in read_columns(rows).values()] == ["number", "class"]
