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
    "no rows": bad("there is no file 'trian.jsonl'", *PREDICT, "trian.jsonl", *TO,
        then="did you mean 'train.jsonl'?"),
    "a directory of rows": bad("'models' is a directory", *PREDICT, "models", *TO),
    "rows of an unknown kind": bad("'r.yaml' is no file of rows", *PREDICT, "r.yaml", *TO,
        then="known: .csv, .tsv"),
    "an output of an unknown kind": bad("-o out.xlsx: by its ending it is none of", *PREDICT,
        "train.jsonl", "-o", "out.xlsx", then="-o out.jsonl"),
    "an output that is there": bad("old.csv exists already", *PREDICT, "train.jsonl", "-o",
        "old.csv", then="--force", **{"old.csv": "a\n"}),
    "an output that is read": bad("train.jsonl is what is read here", *PREDICT, "train.jsonl", "-o",
        "train.jsonl", "--force"),
    "an output in the adapter": bad("lies in what is read here", *PREDICT, "train.jsonl", "-o",
        "models/adapter/o.csv"),
    "an output below a file": bad("r.yaml is a file", *PREDICT, "train.jsonl", "-o",
        "r.yaml/o.csv"),
    "no output": bad("Missing option", *PREDICT, "train.jsonl", then="sora predict --help"),
    "a form of a stream that is none": bad("there is no --format 'xml'", *PREDICT, "-", "-o", "-",
        "--format", "xml", then="one of jsonl, csv"),
    "a form of a file": bad("--format is of stdin and stdout", *PREDICT, "train.jsonl", *TO,
        "--format", "csv"),
    "a summary among the rows": bad("--json does not go with -o -", *PREDICT, "train.jsonl", "-o",
        "-", "--json"),
    "no model": bad("there is no model at ./gone", "predict", "./gone", "train.jsonl", *TO,
        then="sora predict DIR train.jsonl -o out.jsonl"),
    "no family": bad("m does not say which task it is for", "predict", "m", "train.jsonl", *TO,
        then="--task TASK", m=headless),
    "several labels": bad("gives several labels to a row", "predict", "m", "train.jsonl", *TO,
        m=multi_label),
    "a family that is none": bad("no task 'sequence-clas", *PREDICT, "train.jsonl", *TO, "--task",
        "sequence-clasification", then="did you mean 'sequence-classification'?"),
    "classes without a head": bad("holds no trained head", "predict", "models/base", "train.jsonl",
        *TO, "--task", "sequence-classification", "data.label_names=[a, b]"),
    "names of other classes": bad("the adapter's classes are 0, 1", *PREDICT, "train.jsonl", *TO,
        "data.label_names=[no, yes]"),
    "an empty file": bad("empty.csv holds no rows", *PREDICT, "empty.csv", *TO,
        **{"empty.csv": "sentence1,sentence2\n"}),
    "a line that is no row": bad("rows.jsonl cannot be read: no JSON", *PREDICT, "rows.jsonl", *TO,
        at=("rows.jsonl", WORD), **{"rows.jsonl": f"{ROWS}{{{WORD}\n"}),
    "rows that are null": bad("no row", *PREDICT, "rows.jsonl", *TO,
        at=("rows.jsonl", "null"), **{"rows.jsonl": f"null\n{ROWS}"}),
    "a table with a broken line": bad("4 fields, where the header has 2", *PREDICT, "a.csv", *TO,
        at=("a.csv", WORD), **{"a.csv": f"sentence1,sentence2\na,b\nc,d\n{WORD},b,c,d\n"}),
    "no column to read": bad("no text columns found among other", *PREDICT, "a.csv", *TO,
        then="data.text_columns=[", **{"a.csv": "other\nx\n"}),
    "a column that is none": bad("no column 'sentense1'", *PREDICT, "train.jsonl", *TO,
        "data.text_columns=[sentense1, sentence2]", then="did you mean 'sentence1'?"),
    "a row without its text": bad("column 'sentence2' has no text", *PREDICT, "rows.jsonl", *TO,
        at=("rows.jsonl", WORD), **{"rows.jsonl": f'{ROWS}{{"sentence1": "{WORD}"}}\n{ROWS}'}),
    "a name that is taken": bad("the rows have a column 'probability' already", *PREDICT,
        "rows.jsonl", *TO, then="--prefix model_",
        **{"rows.jsonl": '{"sentence1": "a", "sentence2": "b", "probability": 1}\n'}),
    "an override of nothing": bad("unknown key 'max_lenght' in data", *PREDICT, "train.jsonl", *TO,
        "data.max_lenght=9", then="did you mean 'max_length'?"),
    "rows of too many tokens": bad("rows of 80 tokens do not fit the model", *PREDICT, "a.csv", *TO,
        "data.max_length=80", then="data.max_length=64",
        **{"a.csv": f"sentence1,sentence2\n{'cat ' * 90},b\n"}),
    "parts of another file": bad("record.json is damaged", *PREDICT, "train.jsonl", *TO,
        then="--force", **{"out.jsonl.unfinished/record.json": "[]"}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_bad_rows(case: Case, checked: Callable[[Case], object]) -> None:
    checked(case)
