"""Rows that do not fit the task, files that cannot be read, splits that are not there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from tests.helpers_runs import pair_rows
from tests.sora_cli.bad_input.runner import Case, bad, recipe


def lines(rows: list[dict[str, Any]], *more: str) -> str:
    """JSON lines."""
    return "".join(f"{line}\n" for line in (*(json.dumps(row) for row in rows), *more))


def changed(key: str, values: list[Any], rows: int = 8) -> str:
    """Rows whose last have other values of a key."""
    made = pair_rows(rows)
    for row, value in zip(reversed(made), values, strict=False):
        row[key] = value
    return lines(made)


def files(train: str = "train.jsonl", validation: str = "validation.jsonl") -> str:
    """The recipe with a split's files in lines of their own."""
    return recipe("data", "files:", f"  train: {train}", f"  validation: {validation}")


def saved(labels: list[int], names: list[str]) -> Callable[[Path], object]:
    """A directory that `save_to_disk` wrote, of classes with names."""

    def make(path: Path) -> None:
        rows = {"sentence": ["the cat"] * len(labels), "label": labels}
        features = Features({"sentence": Value("string"), "label": ClassLabel(names=names)})
        part = Dataset.from_dict(rows, features)
        DatasetDict({"train": part, "validation": part}).save_to_disk(str(path))

    return make


FOLDER = recipe("data", "path: d").replace(
    "  files: {train: train.jsonl, validation: validation.jsonl}\n", ""
)
SCRIPT = "import datasets\nopen('ran', 'w').close()\n"
HEADER = "sentence1,sentence2,label\n"
REGRESSION = recipe("task", "name: sequence-regression")
NAMED = recipe("data", "label_names: [a, b]")

SOURCES: dict[str, Case] = {
    "no such file": bad(r=files("trian.jsonl")),
    "a directory for a file": bad(r=files("d"), **{"d/x.csv": HEADER}),
    "a configuration of files": bad(r=recipe("data", "name: rte")),
    "a version of files": bad(r=recipe("data", "revision: x")),
    "two kinds of files": bad(r=files("[train.jsonl, b.csv]"), **{"b.csv": HEADER}),
    "a kind that is not read": bad(r=files("a.txt"), **{"a.txt": "x"}),
    "no such directory": bad(r=FOLDER.replace("path: d", "path: ./d")),
    "an empty directory": bad(r=FOLDER, **{"d/x/y.q": ""}),
    "a loading script": bad(r=FOLDER, **{"d/d.py": SCRIPT}),
    "unknown built-in rows": bad(r=FOLDER.replace("path: d", "path: builtin://entailmnet")),
    "out of reach": bad(r=FOLDER.replace("path: d", "path: nyu-mll/glue")),
    "a name the Hub cannot have": bad(r=FOLDER.replace("path: d", "path: a b")),
    "no such split": bad(r=recipe("data", "validation: dev")),
    "no split to train on": bad(r=recipe("data", "train: trian")),
    "half of one row": bad(r=recipe("data", "selection: half-validation"),
        **{"validation.jsonl": lines(pair_rows(1))}),
    "nothing left to train on": bad(r=recipe("data", "selection_rows: 20",
        "selection: train-rows")),
}  # fmt: skip
FILES: dict[str, Case] = {
    "an empty file": bad(r=files("a.jsonl"), **{"a.jsonl": ""}),
    "no rows": bad(r=files(validation="a.csv"), **{"a.csv": HEADER}),
    "JSON that is no row": bad(r=recipe(), **{"train.jsonl": lines(pair_rows(5),
        '["BROKEN", 1]')}),
    "JSON rows that are null": bad(r=files("a.jsonl"), **{"a.jsonl": "null\n"}),
    "a JSON document cut": bad(r=files("a.json"),
        **{"a.json": '[{"sentence1": "a"},\n {"sentence1": "BROKEN'}),
    "JSON not in UTF-8": bad(r=recipe(), **{"validation.jsonl": lines(pair_rows(3),
        '{"sentence1": "BROKEN \xff"}').encode("latin-1")}),
    "CSV not in UTF-8": bad(r=files("a.csv"),
        **{"a.csv": f"{HEADER}a,b,0\nBROKEN Привет,b,1\n".encode("cp1251")}),
    "CSV with a quote left open": bad(r=files("a.csv"),
        **{"a.csv": f'{HEADER}a,b,0\n"BROKEN,b,1\na,b,0\n'}),
    "no parquet": bad(r=files("a.parquet"), **{"a.parquet": "PAR2"}),
    "parquet cut": bad(r=files("a.parquet"), **{"a.parquet": b"PAR1" + b"\0" * 50}),
}  # fmt: skip
COLUMNS: dict[str, Case] = {
    "no such text column": bad(r=recipe("data",
        "text_columns: [premise, sentence2]")),
    "three text columns": bad(r=recipe("data",
        "text_columns: [sentence1, sentence2, label]")),
    "no text columns": bad(r=recipe("data", "text_columns: []")),
    "unusual names": bad(r=recipe(), **{"train.jsonl": lines([{"a": "x", "label": 0}])}),
    "no label column": bad(r=recipe("data", "label_column: gold")),
    "a column that one split lacks": bad(r=recipe(),
        **{"validation.jsonl": lines([{"sentence1": "a", "label": 1}])}),
    "texts in lists": bad(r=recipe(), **{"train.jsonl": changed("sentence1", [["a", "b"]] * 8)}),
    "texts and lists": bad(r=recipe(), **{"train.jsonl": changed("sentence1", [{"a": 1}])}),
}  # fmt: skip
LABELS: dict[str, Case] = {
    name: bad(r=made, **{file: content})
    for name, made, file, content in [
        ("unseen in training", recipe(), "validation.jsonl", changed("label", [2])),
        ("unknown", recipe(), "validation.jsonl", changed("label", [-1])),
        ("not a number", recipe(), "train.jsonl", changed("label", [float("nan")])),
        ("in lists", recipe(), "train.jsonl", changed("label", [[1]] * 8)),
        ("in lists later", recipe(), "validation.jsonl", changed("label", [[1]] * 8)),
        ("row numbers", recipe(), "train.jsonl", changed("label", [10**9])),
        ("below zero", recipe(), "train.jsonl", changed("label", [-1])),
        ("words for numbers", REGRESSION, "train.jsonl", changed("label", ["high"])),
        ("no numbers", REGRESSION, "validation.jsonl", changed("label", [None])),
        ("infinite", REGRESSION, "train.jsonl", changed("label", [float("inf")])),
        ("names of others", NAMED, "train.jsonl", changed("label", ["c"] * 8)),
        ("too few names", NAMED, "train.jsonl", changed("label", [2])),
    ]
}  # fmt: skip
LABELS["of one class"] = bad(r=recipe(), **{"train.jsonl": changed("label", [1] * 8)})  # fmt: skip
NAMES: dict[str, Case] = {
    "more names than classes": bad(r=FOLDER.replace("path: d",
        "path: d\n  label_names: [a, b, c]"), d=saved([0, 1], ["a", "b"])),
    "names in another order": bad(r=FOLDER.replace("path: d", "path: d\n  label_names: [b, a]"),
        d=saved([0, 1], ["a", "b"])),
    "hidden labels": bad(r=FOLDER, d=saved([-1, -1], ["a", "b"])),
    "longer than the model reads": bad(r=recipe("data", "max_length: 80"),
        **{"train.jsonl": changed("sentence1", ["cat " * 100])}),
}  # fmt: skip
LETTERS = "text,label\n" + "".join(f"the cat sees {i},{i % 2}\n" for i in range(20))
STORIES = LETTERS.replace("text,", "story,").replace("\n", ",the dog is red\n")
INIT: dict[str, Case] = {
    name: bad("init", "a.csv", "--model", "models/base", *words,
        *(() if "-o" in words else ("-o", "new.yaml")), **{"a.csv": content})
    for name, content, words in [
        ("empty", "", ()),
        ("a header alone", "text,label\n", ()),
        ("one row", "text,label\nthe cat sees a dog,1\n", ()),
        ("no text", "a,b,c\n1.5,2,3\n2.5,3,4\n3.5,5,6\n", ()),
        ("two texts", STORIES.replace("label,the dog is red", "label,plot").replace(
            "sees 3,1,the dog is red", "sees 3,1,a dog is blue"), ()),
        ("no such key", LETTERS, ("data.text_colums=[text]",)),
        ("no such family", LETTERS, ("--task", "seq2sec")),
        ("another family", LETTERS, ("--task", "token-classification")),
        ("a column that is not there", LETTERS, ("data.label_column=stars",)),
        ("a broken line", LETTERS.replace("sees 5,", "sees 5,a,"), ()),
        ("a row without text", LETTERS.replace("the cat sees 5,", ","), ()),
        ("an output of another name", LETTERS, ("-o", "a.txt")),
        ("a model out of reach", LETTERS, ("--model", "nobody/none")),
    ]
}  # fmt: skip
CASES = {
    f"{kind}-{name}": case
    for kind, table in [("source", SOURCES), ("file", FILES), ("column", COLUMNS),
                        ("label", LABELS), ("names", NAMES), ("init", INIT)]
    for name, case in table.items()
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_bad_data(case: Case, checked: Callable[[Case], object]) -> None:
    checked(case)
