"""Rows of queries and documents that do not fit: what is wrong, where, and what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.helpers_families import retrieval_rows
from tests.sora_cli.bad_input.runner import Case, bad
from tests.sora_cli.bad_input.test_data import lines

Rows = list[dict[str, Any]]
TEXTS = retrieval_rows(12)
FAULTS: dict[str, Rows] = {
    "an empty query": [row | {"query": ""} if i == 3 else row for i, row in enumerate(TEXTS)],
    "a blank wrong document": [
        row | {"negative": " "} if i == 3 else row for i, row in enumerate(TEXTS)
    ],
    "an empty list of documents": [
        {"query": row["query"], "pos": [row["positive"]] if i != 3 else [], "neg": []}
        for i, row in enumerate(TEXTS)
    ],
    "a list of numbers": [{**row, "negative": [i]} for i, row in enumerate(TEXTS)],
    "one row": [{"query": "cat", "positive": "dog"}],
    "one document": [{"query": row["query"], "positive": "dog"} for row in TEXTS],
    "no document": [{"query": row["query"]} for row in TEXTS],
}
SEARCH = """\
model: {path: models/base}
task: {name: embedding}
data: {files: {train: search.jsonl, validation: search.jsonl}, max_length: 32}
method: {name: lora, r: 2}
training: {max_steps: 1, learning_rate: 0.01}
output: {dir: out}
"""
KEYS: dict[str, tuple[str, str]] = {
    "steps of one row": ("max_steps: 1", "max_steps: 1, batch_size: 1"),
    "an unknown loss": ("name: embedding", "name: embedding, loss: triplet"),
    "a metric of other rows": ("name: embedding", "name: embedding, metrics: [spearman]"),
    "no score": ("name: embedding", "name: embedding, loss: cosent"),
}


@pytest.mark.parametrize("rows", FAULTS.values(), ids=FAULTS)
def test_bad_rows(rows: Rows, checked: Callable[[Case], object]) -> None:
    checked(bad(r=SEARCH, **{"search.jsonl": lines(rows)}))


@pytest.mark.parametrize("change", KEYS.values(), ids=KEYS)
def test_bad_keys(change: tuple[str, str], checked: Callable[[Case], object]) -> None:
    checked(bad(r=SEARCH.replace(*change), **{"search.jsonl": lines(TEXTS)}))
