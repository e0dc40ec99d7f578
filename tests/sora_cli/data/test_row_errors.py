"""What `sora train` says to data that do not fit, and to a Hub that does not answer."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from sora_cli.data.rows import load_rows
from sora_cli.recipe.recipe import DataBlock
from tests.helpers_errors import refusal, refused
from tests.helpers_runs import write_glue

HEADER = "sentence1,sentence2,label\n"
PLAIN = HEADER + "".join(f"the cat {i},a dog,{i % 2}\n" for i in range(8))
JSON_ROWS = [{"sentence1": f"cat {i}", "sentence2": "dog", "label": i % 2} for i in range(8)]


SPLITS = ("train", "validation")


def _write(path: Path, content: str) -> None:
    """CSV and JSON lines as they are, rows of JSON as parquet."""
    if path.suffix == ".parquet":
        Dataset.from_list([json.loads(row) for row in content.splitlines()]).to_parquet(str(path))
    else:
        path.write_text(content)


def _json(number: int, **changed: Any) -> str:
    rows = [row | changed if i == number else row for i, row in enumerate(JSON_ROWS)]
    return "".join(json.dumps(row) + "\n" for row in rows)


FAULTS: dict[str, tuple[str, str]] = {
    # the ending of the file, and its content
    "missing column": ("csv", PLAIN.replace("sentence2", "other", 1)),
    "semicolons": ("csv", PLAIN.replace(",", ";").replace("the cat 3", "")),
    "empty cell": ("csv", PLAIN.replace("the cat 3", "", 1)),
    "after a quoted newline": ("csv", PLAIN.replace("the cat 1", '"the\n\ncat"').replace(
        "the cat 3", "", 1)),
    "short line": ("csv", PLAIN.replace("3,a dog,1", "3,a dog")),
    "long first line": ("csv", PLAIN.replace("0,a dog,0", "0,a dog,0,1")),
    "long line": ("csv", PLAIN.replace("3,a dog,1", "3,a dog,1,1")),
    "floats": ("csv", PLAIN.replace("dog,0", "dog,0.0").replace("dog,1", "dog,1.0")),
    "fractions": ("csv", PLAIN.replace("3,a dog,1", "3,a dog,0.5")),
    "no label": ("csv", PLAIN.replace("3,a dog,1", "3,a dog,")),
    "below zero": ("jsonl", _json(5, label=-1)),
    "no text": ("jsonl", _json(5, sentence1=None)),
    "list": ("jsonl", _json(5, sentence2=["x"])),
    "mixed labels": ("jsonl", _json(5, label="yes")),
    "broken JSON": ("jsonl", _json(5).replace('"cat 5"', '"cat 5', 1)),
    "other labels": ("jsonl", _json(0, label="0").replace('"label": 0', '"label": "n"').replace(
        '"label": 1', '"label": "p"').replace('"0"', '"n"')),
    "true and false": ("csv", PLAIN.replace("dog,0", "dog,False").replace("dog,1", "dog,True")),
    "digits as texts": ("jsonl", "".join(json.dumps(row | {"label": str(row["label"])}) + "\n"
        for row in JSON_ROWS)),
    "a row of parquet": ("parquet", _json(5, sentence1=None)),
}  # fmt: skip


IN_DIRECTORIES = ("empty cell", "no label", "long line", "broken JSON", "a row of parquet")
RECIPE = """\
model: {path: base}  # an empty configuration: no model could be loaded from it
task: {name: sequence-classification}
data: {text_columns: [sentence1, sentence2]}
method: {name: lora}
"""


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize(
    ("fault", "directory"),
    [*((fault, False) for fault in FAULTS), *((fault, True) for fault in IN_DIRECTORIES)],
)
def test_a_fault_is_named_by_file_line_and_split(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fault: str,
    directory: bool,
    split: str,
) -> None:
    """The origin shown was the last override, whatever the fault; no model is loaded before."""
    ending, content = FAULTS[fault]
    monkeypatch.chdir(tmp_path)
    Path("base").mkdir()
    Path("base/config.json").write_text("{}")
    Path("d").mkdir()
    Path("r.yaml").write_text(RECIPE)
    files = {name: Path(f"d/{name}.{ending if directory else 'csv'}") for name in SPLITS}
    files[split] = faulty = Path(f"d/{split}.{ending}")
    for path in files.values():
        _write(path, content if path == faulty else PLAIN if path.suffix == ".csv" else _json(0))
    words = [f"data.files.{name}={path}" for name, path in files.items()]
    refused(capsys, "train", "r.yaml", "--dry-run", *(["data.path=d"] if directory else words))


@pytest.mark.parametrize("recipe", ["rte", "official/rte"])
def test_hub_out_of_reach(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    recipe: str,
) -> None:
    """Data first, then the model; both say the command that needs no network."""
    out = f"output.dir={tmp_path / 'out'}"
    glue = write_glue(tmp_path / "glue", rows=4, tasks=("rte",))
    monkeypatch.setattr("sora_cli.core.hub.find_spec", lambda _: True)
    for words in ([], [f"data.path={glue}"]):
        refused(capsys, "train", recipe, out, *words)
    assert not (tmp_path / "out").exists()


def test_offline_hint_without_the_demo_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sora_cli.core.hub.find_spec", lambda _: None)
    monkeypatch.setattr(sys, "argv", ["sora", "train", "--force", "my/run.yaml", "a.b=c"])
    with refusal():
        load_rows(DataBlock(path="nyu-mll/glue", name="rte"))
