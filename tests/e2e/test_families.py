"""Every task family through the commands: the same promises hold whatever is learned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from methods.registry import low_rank_names
from sora_cli.app import run
from sora_cli.data.rows import load_rows
from sora_cli.recipe.load import load_recipe
from sora_cli.report import read_report
from tests.helpers_families import FAMILIES
from tests.helpers_runs import resumes_as_if_whole, train
from tests.matrix import rest_is_long

OPTIONS = {
    "adalora": ["method.target_r=2", "method.init_r=4"],
    "lora": ["method.r=4"],
    "cut": ["method.r_max=4"],
}


def _eval(capsys: pytest.CaptureFixture[str], target: Path, recipe: Path, *words: str) -> Any:
    capsys.readouterr()
    assert run(["eval", str(target), "--recipe", str(recipe), "--json", *words]) == 0
    return json.loads(capsys.readouterr().out)


def _close(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for split, scores in expected.items():
        assert found[split] == pytest.approx(scores, rel=1e-4, abs=1e-6)


@pytest.mark.versions
@pytest.mark.parametrize("family", rest_is_long(FAMILIES, 3))
def test_files_give_the_score_again_and_so_does_the_merged_model(
    family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, out = FAMILIES[family](tmp_path), tmp_path / "out"
    assert run(["train", str(recipe)]) == 0  # the files are verified against the trained model
    report = read_report(out)
    assert report is not None
    loaded = load_recipe(recipe).recipe
    assert set(report.metrics["validation"]) == {*loaded.task.options.metrics, "loss"}
    lines = tmp_path / "predictions.jsonl"
    _close(_eval(capsys, out, recipe, "--predictions", str(lines)), report.metrics)
    records = [json.loads(line) for line in lines.read_text().splitlines()]
    assert len(records) == len(load_rows(loaded.data).report["validation"])
    assert all({"split", "row", "prediction"} <= record.keys() for record in records)
    assert run(["merge", str(out), "-o", str(tmp_path / "merged")]) == 0
    _close(_eval(capsys, tmp_path / "merged", recipe), report.metrics)


def test_a_base_without_a_new_head_is_scored_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = FAMILIES["causal-lm"](tmp_path)
    before = _eval(capsys, tmp_path / "base", recipe)
    report = train(recipe)
    assert report.without_adapters is not None
    assert before["validation"]["loss"] == pytest.approx(report.without_adapters["validation"])
    assert report.metrics["validation"]["loss"] < before["validation"]["loss"]


@pytest.mark.versions
@pytest.mark.parametrize("family", rest_is_long(FAMILIES, 2))
def test_a_resumed_run_equals_one_that_was_not_stopped(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = FAMILIES[family](tmp_path)
    assert resumes_as_if_whole(recipe, tmp_path, monkeypatch).resumed


@pytest.mark.parametrize("method", [n for n in low_rank_names() if n != "sora"])
@pytest.mark.parametrize("family", rest_is_long(FAMILIES))
def test_every_method_trains_it(family: str, method: str, tmp_path: Path) -> None:
    recipe = FAMILIES[family](tmp_path)
    words = [f"method.name={method}", *OPTIONS[method], "training.max_steps=3"]
    assert run(["train", str(recipe), *words]) == 0
    report = read_report(tmp_path / "out")
    assert report is not None
    assert report.steps == 3


@pytest.mark.parametrize("family", rest_is_long(FAMILIES, 3))
def test_a_dry_run_predicts_its_memory(
    family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["train", str(FAMILIES[family](tmp_path)), "--dry-run"]) == 0
    assert "predicted peak" in capsys.readouterr().out
