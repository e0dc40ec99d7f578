"""`sora predict`: rows that cannot be answered, and models that do not say what they are for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers_models import tiny_bert
from tests.helpers_runs import pair_rows
from tests.sora_cli.bad_input.runner import Case, bad
from tests.sora_cli.bad_input.test_data import lines

WORD = "BROKEN"
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
    "no family": bad("m does not say which task it is for", "predict", "m", "train.jsonl", *TO,
        then="--task TASK", m=headless),
    "several labels": bad("gives several labels to a row", "predict", "m", "train.jsonl", *TO,
        m=multi_label),
    "an empty file": bad("empty.csv holds no rows", *PREDICT, "empty.csv", *TO,
        **{"empty.csv": "sentence1,sentence2\n"}),
    "a line that is no row": bad("cannot be read: not valid JSON", *PREDICT, "rows.jsonl", *TO,
        at=("rows.jsonl", WORD), **{"rows.jsonl": f"{ROWS}{{{WORD}\n"}),
    "rows that are null": bad("not a row", *PREDICT, "rows.jsonl", *TO,
        at=("rows.jsonl", "null"), **{"rows.jsonl": f"null\n{ROWS}"}),
    "a table with a broken line": bad("4 fields, but the header has 2", *PREDICT, "a.csv", *TO,
        at=("a.csv", WORD), **{"a.csv": f"sentence1,sentence2\na,b\nc,d\n{WORD},b,c,d\n"}),
    "no column to read": bad("no text columns found among other", *PREDICT, "a.csv", *TO,
        then="data.text_columns=[", **{"a.csv": "other\nx\n"}),
    "a row without its text": bad("column 'sentence2' has no text", *PREDICT, "rows.jsonl", *TO,
        at=("rows.jsonl", WORD), **{"rows.jsonl": f'{ROWS}{{"sentence1": "{WORD}"}}\n{ROWS}'}),
    "a name that is taken": bad("the rows have a column 'probability' already", *PREDICT,
        "rows.jsonl", *TO, then="--prefix model_",
        **{"rows.jsonl": '{"sentence1": "a", "sentence2": "b", "probability": 1}\n'}),
    "rows of too many tokens": bad("rows of 80 tokens do not fit the model", *PREDICT, "a.csv", *TO,
        "data.max_length=80", then="data.max_length=64",
        **{"a.csv": f"sentence1,sentence2\n{'cat ' * 90},b\n"}),
    "parts of another file": bad("record.json is damaged", *PREDICT, "train.jsonl", *TO,
        then="--force", **{"out.jsonl.unfinished/record.json": "[]"}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_bad_rows(case: Case, checked: Callable[[Case], object]) -> None:
    checked(case)
