"""`sora predict`: rows that cannot be answered, and models that do not say what they are for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers_models import tiny_bert
from tests.helpers_runs import pair_rows
from tests.sora_cli.bad_input.runner import Case, bad
from tests.sora_cli.bad_input.test_data import lines

TO = ("-o", "out.jsonl")
PREDICT = ("predict", "models/adapter")
ROWS = lines(pair_rows(4))


def multi_label(folder: Path) -> None:
    """A model that gives several labels to a row."""
    tiny_bert(num_labels=3, problem_type="multi_label_classification").save_pretrained(folder)


def headless(folder: Path) -> None:
    """A model that no family is for."""
    tiny_bert(num_labels=2).base_model.save_pretrained(folder)


CASES: dict[str, Case] = {
    "no family": bad("predict", "m", "train.jsonl", *TO, m=headless),
    "several labels": bad("predict", "m", "train.jsonl", *TO, m=multi_label),
    "an empty file": bad(*PREDICT, "empty.csv", *TO, **{"empty.csv": "sentence1,sentence2\n"}),
    "a line that is no row": bad(*PREDICT, "rows.jsonl", *TO,
        **{"rows.jsonl": f"{ROWS}{{BROKEN\n"}),
    "rows that are null": bad(*PREDICT, "rows.jsonl", *TO, **{"rows.jsonl": f"null\n{ROWS}"}),
    "a table with a broken line": bad(*PREDICT, "a.csv", *TO,
        **{"a.csv": "sentence1,sentence2\na,b\nc,d\nBROKEN,b,c,d\n"}),
    "no column to read": bad(*PREDICT, "a.csv", *TO, **{"a.csv": "other\nx\n"}),
    "a row without its text": bad(*PREDICT, "rows.jsonl", *TO,
        **{"rows.jsonl": f'{ROWS}{{"sentence1": "BROKEN"}}\n{ROWS}'}),
    "a name that is taken": bad(*PREDICT, "rows.jsonl", *TO,
        **{"rows.jsonl": '{"sentence1": "a", "sentence2": "b", "probability": 1}\n'}),
    "rows of too many tokens": bad(*PREDICT, "a.csv", *TO, "data.max_length=80",
        **{"a.csv": f"sentence1,sentence2\n{'cat ' * 90},b\n"}),
    "parts of another file": bad(*PREDICT, "train.jsonl", *TO,
        **{"out.jsonl.unfinished/record.json": "[]"}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_bad_rows(case: Case, checked: Callable[[Case], object]) -> None:
    checked(case)
