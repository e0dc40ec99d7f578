"""Scores on the selection rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from sora_cli.app import run
from sora_cli.experiments.compare.finding import find_runs
from sora_cli.experiments.compare.runs import on_selection_rows, selection_score
from tests.helpers_reports import report_of, write_report

HISTORY = [
    {"step": 10, "loss": 0.5},
    {"step": 20, "eval_accuracy": 0.7},
    {"step": 40, "eval_accuracy": 0.6},
]


def test_of_the_weights_that_were_kept() -> None:
    report = report_of(more={"history": HISTORY, "best_step": 20})
    assert selection_score(report) == 0.7
    report.best_step = None
    assert selection_score(report) == 0.6
    report.history = HISTORY[:1]
    assert selection_score(report) is None


def test_in_the_place_of_the_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_report(tmp_path / "a", metric=0.8, more={"history": HISTORY, "best_step": 20})
    write_report(tmp_path / "b", metric=0.8, seed=1, more={"history": HISTORY[:1]})
    runs, left_out = on_selection_rows(find_runs([tmp_path]).runs)
    assert [(each.metric, each.split) for each in runs] == [(0.7, "selection")]
    assert left_out == [f"{tmp_path / 'b'}: not evaluated on its selection rows"]
    assert run(["compare", str(tmp_path), "--selection", "--format", "csv"]) == 0
    assert "0.7" in capsys.readouterr().out
    assert run(["compare", str(tmp_path / "b"), "--selection"]) == 2
