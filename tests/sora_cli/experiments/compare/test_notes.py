from pathlib import Path

import pytest

from sora_cli.app import run
from sora_cli.experiments.compare.notes import impossible_scores
from sora_cli.report import read_report
from tests.helpers_reports import write_report
from tests.present import present


def test_a_score_above_its_metrics_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_ = write_report(tmp_path / "a", metric=1.5)
    report = present(read_report(run_))
    said = "accuracy of validation is 1.5, but at most 1 is possible: the report was changed"
    assert list(impossible_scores(report)) == [said]
    assert run(["compare", str(run_)]) == 0
    assert said in capsys.readouterr().err
    assert run(["report", str(run_), "-o", str(tmp_path / "page.html")]) == 0
    assert said in (tmp_path / "page.html").read_text(encoding="utf-8")
