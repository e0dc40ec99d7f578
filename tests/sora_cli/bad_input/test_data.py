"""Rows that do not fit the task, files that cannot be read, splits that are not there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from tests.helpers_runs import pair_rows
from tests.sora_cli.bad_input.runner import HERE, Case, bad, recipe

WORD = "BROKEN"
"""Marks the line of a file of rows that an error is to name."""


def lines(rows: list[dict[str, Any]], *more: str) -> str:
    """JSON lines."""
    return "".join(f"{line}\n" for line in (*(json.dumps(row) for row in rows), *more))


def changed(key: str, values: list[Any], rows: int = 8) -> str:
    """Rows whose last have other values of a key, the first of these marked."""
    made = pair_rows(rows)
    for row, value in zip(reversed(made), values, strict=False):
        row[key] = value
    made[-len(values)]["mark"] = WORD
    return lines(made)


def files(train: str = "train.jsonl", validation: str = "validation.jsonl") -> str:
    """The recipe with a split's files in lines of their own, the one that is to blame marked."""
    first = train != "train.jsonl"
    made = recipe("data", "files:", f"  train: {train}", f"  validation: {validation}")
    mark = f"    train: {train}" if first else f"    validation: {validation}"
    return made.replace(f"  {HERE}", "").replace(f"{mark}\n", f"{mark}  {HERE}\n")


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
REGRESSION = recipe("task", "name: sequence-regression").replace(HERE, "")

SOURCES: dict[str, Case] = {
    "no such file": bad("no data file 'trian.jsonl'", r=files("trian.jsonl"), then="train.jsonl"),
    "a directory for a file": bad("'d' is a directory, not a data file", r=files("d"),
        then="data.path=d", **{"d/x.csv": HEADER}),
    "a configuration of files": bad("data.name would change nothing: it is for data.path",
        r=recipe("data", "name: rte"), then="data.name=null"),
    "a version of files": bad("data.revision would change nothing", r=recipe("data", "revision: x"),
        then="data.revision=null"),
    "two kinds of files": bad("of the same known kind", r=files("[train.jsonl, b.csv]"),
        then="csv, tsv, json, jsonl, parquet", **{"b.csv": HEADER}),
    "a kind that is not read": bad("of the same known kind", r=files("a.txt"),
        then="csv, tsv, json, jsonl, parquet", **{"a.txt": "x"}),
    "no such directory": bad("no data directory './d'", r=FOLDER.replace("path: d", "path: ./d"),
        then="there are:"),
    "an empty directory": bad("data 'd' cannot be loaded", r=FOLDER, **{"d/x/y.q": ""}),
    "a loading script": bad("data 'd' cannot be loaded: Dataset scripts are no longer supported",
        r=FOLDER, **{"d/d.py": SCRIPT}),
    "unknown built-in rows": bad("no built-in data 'entailmnet'",
        r=FOLDER.replace("path: d", "path: builtin://entailmnet"),
        then="did you mean 'entailment'?"),
    "out of reach": bad("the data set 'nyu-mll/glue' is neither",
        r=FOLDER.replace("path: d", "path: nyu-mll/glue"), then="data.path=DIR"),
    "a name the Hub cannot have": bad("the data set 'a b' is neither",
        r=FOLDER.replace("path: d", "path: a b")),
    "no such split": bad("no split 'dev'", r=recipe("data", "validation: dev"),
        then="there are: train, validation"),
    "no split to train on": bad("no split 'trian'", r=recipe("data", "train: trian"),
        then="did you mean 'train'?"),
    "half of one row": bad("half-validation needs two rows",
        r=recipe("data", "selection: half-validation"), then="data.selection=validation",
        **{"validation.jsonl": lines(pair_rows(1))}),
    "nothing left to train on": bad("leaves no rows to train on: there are 20",
        r=recipe("data", "selection_rows: 20", "selection: train-rows"),
        then="data.selection_rows=2"),
}  # fmt: skip
FILES: dict[str, Case] = {
    "an empty file": bad("data.files.train holds no rows", r=files("a.jsonl"), then="a.jsonl",
        **{"a.jsonl": ""}),
    "no rows": bad("data.files.validation holds no rows", r=files(validation="a.csv"), then="a.csv",
        **{"a.csv": HEADER}),
    "JSON that is no row": bad("not a row", r=recipe(), at=("train.jsonl", WORD),
        then='{"text": "...", "label": 0}', **{"train.jsonl": lines(pair_rows(5),
        f'["{WORD}", 1]')}),
    "JSON rows that are null": bad("not a row", r=files("a.jsonl"),
        at=("a.jsonl", "null"), **{"a.jsonl": "null\n"}),
    "a JSON document cut": bad("not valid JSON", r=files("a.json"), at=("a.json", WORD),
        **{"a.json": f'[{{"sentence1": "a"}},\n {{"sentence1": "{WORD}'}),
    "JSON not in UTF-8": bad("not UTF-8", r=recipe(), at=("validation.jsonl", WORD),
        **{"validation.jsonl": lines(pair_rows(3),
        f'{{"sentence1": "{WORD} \xff"}}').encode("latin-1")}),
    "CSV not in UTF-8": bad("not UTF-8", r=files("a.csv"), at=("a.csv", WORD),
        then="save it as CSV UTF-8",
        **{"a.csv": f"{HEADER}a,b,0\n{WORD} Привет,b,1\n".encode("cp1251")}),
    "CSV with a quote left open": bad("unexpected end of data", r=files("a.csv"),
        at=("a.csv", WORD), **{"a.csv": f'{HEADER}a,b,0\n"{WORD},b,1\na,b,0\n'}),
    "no parquet": bad("it is not a parquet file", r=files("a.parquet"), then="a.parquet",
        **{"a.parquet": "PAR2"}),
    "parquet cut": bad("data.files.train cannot be read", r=files("a.parquet"), then="a.parquet",
        **{"a.parquet": b"PAR1" + b"\0" * 50}),
}  # fmt: skip
COLUMNS: dict[str, Case] = {
    "no such text column": bad("no column 'premise'", r=recipe("data",
        "text_columns: [premise, sentence2]"), then="sentence1"),
    "three text columns": bad("one or two columns, not 3", r=recipe("data",
        "text_columns: [sentence1, sentence2, label]")),
    "no text columns": bad("one or two columns, not 0", r=recipe("data", "text_columns: []")),
    "unusual names": bad("no text columns found among", r=recipe(),
        then="train.jsonl, split 'train'", **{"train.jsonl": lines([{"a": "x", "label": 0}])}),
    "no label column": bad("no column 'gold'", r=recipe("data", "label_column: gold"),
        then="label"),
    "a column that one split lacks": bad("no column 'sentence2'", r=recipe(),
        then="validation.jsonl, split 'validation'; there are: sentence1, label",
        **{"validation.jsonl": lines([{"sentence1": "a", "label": 1}])}),
    "texts in lists": bad("which is no text", r=recipe(), at=("train.jsonl", WORD),
        then="data.text_columns", **{"train.jsonl": changed("sentence1", [["a", "b"]] * 8)}),
    "texts and lists": bad("which is no text", r=recipe(), at=("train.jsonl", WORD),
        then="data.text_columns", **{"train.jsonl": changed("sentence1", [{"a": 1}])}),
}  # fmt: skip
LABELS: dict[str, Case] = {
    f"{name}": bad(says, r=made, at=(file, WORD), then=then, **{file: content})
    for name, made, file, content, says, then in [
        ("unseen in training", recipe(), "validation.jsonl", changed("label", [2]),
            "label 2 in column 'label' is none of the 2 classes",
            "split 'validation'; classes: 0, 1"),
        ("unknown", recipe(), "validation.jsonl", changed("label", [-1]),
            "label -1 in column 'label' is none", "without labels cannot be evaluated"),
        ("not a number", recipe(), "train.jsonl", changed("label", [float("nan")]),
            "a row has no label in column 'label'", "data.label_column"),
        ("in lists", recipe(), "train.jsonl", changed("label", [[1]] * 8),
            "holds [1], which is no label", "data.label_column"),
        ("in lists later", recipe(), "validation.jsonl", changed("label", [[1]] * 8),
            "holds [1], which is no label", "data.label_column"),
        ("row numbers", recipe(), "train.jsonl", changed("label", [10**9]),
            "numbers up to 1000000000", "sequence-regression"),
        ("below zero", recipe(), "train.jsonl", changed("label", [-1]),
            "classes are counted from 0: -1", "label_names"),
        ("words for numbers", REGRESSION, "train.jsonl", changed("label", ["high"]),
            "not all numbers: 'high'", "task.name=sequence-classification"),
        ("no numbers", REGRESSION, "validation.jsonl", changed("label", [None]),
            "not all numbers: null", "split 'validation'"),
        ("infinite", REGRESSION, "train.jsonl", changed("label", [float("inf")]),
            "a number that is NaN or infinite", "remove such rows"),
        ("names of others", recipe("data", "label_names: [a, b]").replace(HERE, ""), "train.jsonl",
            changed("label", ["c"] * 8), "label 'c' in column 'label' is none", "classes: a, b"),
        ("too few names", recipe("data", "label_names: [a, b]").replace(HERE, ""), "train.jsonl",
            changed("label", [2]), "label 2 in column 'label' is none", "classes: a, b"),
    ]
}  # fmt: skip
LABELS["of one class"] = bad(
    "one class only: 1", r=recipe(), then="train.jsonl, split 'train'",
    **{"train.jsonl": changed("label", [1] * 8)},
)  # fmt: skip
NAMES: dict[str, Case] = {
    "more names than classes": bad("data.label_names do not fit",
        r=FOLDER.replace(HERE, "").replace("path: d", f"path: d\n  label_names: [a, b, c] {HERE}"),
        then="the data's classes, in order: a, b", d=saved([0, 1], ["a", "b"])),
    "names in another order": bad("data.label_names do not fit",
        r=FOLDER.replace(HERE, "").replace("path: d", f"path: d\n  label_names: [b, a] {HERE}"),
        then="the data's classes, in order: a, b", d=saved([0, 1], ["a", "b"])),
    "hidden labels": bad("label -1 in column 'label' is none of the 2 classes",
        r=FOLDER.replace(HERE, ""), then="row 0 (counted from 0), split 'train'",
        d=saved([-1, -1], ["a", "b"])),
    "longer than the model reads": bad("rows of 80 tokens do not fit the model",
        r=recipe("data", "max_length: 80"), then="data.max_length=64",
        **{"train.jsonl": changed("sentence1", ["cat " * 100])}),
}  # fmt: skip
LETTERS = "text,label\n" + "".join(f"the cat sees {i},{i % 2}\n" for i in range(20))
STORIES = LETTERS.replace("text,", "story,").replace("\n", ",the dog is red\n")
INIT: dict[str, Case] = {
    name: bad(says, "init", "a.csv", "--model", "models/base", *words,
              *(() if "-o" in words else ("-o", "new.yaml")), then=then, **{"a.csv": content})
    for name, content, words, says, then in [
        ("empty", "", (), "holds no rows", ""),
        ("a header alone", "text,label\n", (), "no rows", ""),
        ("one row", "text,label\nthe cat sees a dog,1\n", (), "1 row is too little", ""),
        ("no text", "a,b,c\n1.5,2,3\n2.5,3,4\n3.5,5,6\n", (), "no task fits the columns",
            "data.text_columns=[COLUMN]"),
        ("two texts", STORIES.replace("label,the dog is red", "label,plot").replace(
            "sees 3,1,the dog is red", "sees 3,1,a dog is blue"), (),
            "2 columns could be the text: story, plot", "data.text_columns=[plot]"),
        ("no such key", LETTERS, ("data.text_colums=[text]",), "unknown key 'text_colums'",
            "did you mean 'text_columns'?"),
        ("no such family", LETTERS, ("--task", "seq2sec"), "unknown task 'seq2sec'", ""),
        ("another family", LETTERS, ("--task", "token-classification"),
            "the columns do not fit task token-classification", "tokens: COLUMN"),
        ("a column that is not there", LETTERS, ("data.label_column=stars",),
            "no column 'stars'", "there are: text, label"),
        ("a broken line", LETTERS.replace("sees 5,", "sees 5,a,"), (),
            "3 fields, but the header has 2", "a.csv:7"),
        ("a row without text", LETTERS.replace("the cat sees 5,", ","), (),
            "column 'text' has no text", "a.csv:7"),
        ("an output of another name", LETTERS, ("-o", "a.txt"), "ends in .yaml", "a.txt.yaml"),
        ("a model out of reach", LETTERS, ("--model", "nobody/none"), "nobody/none",
            "a model on this disk: --model DIR"),
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
