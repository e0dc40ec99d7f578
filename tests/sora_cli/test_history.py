"""`history.json` beside `report.json`: what goes there, and reports that have none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sora_cli.app import run
from sora_cli.core.json_text import readable_json
from sora_cli.experiments.compare.finding import find_runs
from sora_cli.experiments.compare.runs import selection_scores
from sora_cli.experiments.path.record import read_path
from sora_cli.experiments.sweep.cost import Cost
from sora_cli.report import Compaction, Removal, RunReport, read_report
from sora_cli.train.log import ReportLog, RunLog
from tests.helpers_models import tiny_bert
from tests.helpers_reports import write_report
from tests.helpers_runs import files_of, train, write_recipe
from tests.present import present

OLD = Path(__file__).with_name("old_reports")
"""Real reports of version 1, without the blanks and line breaks between their values."""
GROWING = {"history", "live_components", "non_finite_steps"}


def _write(folder: Path, **fields: Any) -> RunLog:
    log = RunLog(folder, name="x", recipe={})
    for key, value in fields.items():
        setattr(log.report, key, value)
    log.save()
    return log


def test_what_grows_with_a_run_is_beside_its_report(tmp_path: Path) -> None:
    kept = train(write_recipe(tmp_path, tiny_bert(num_labels=2), training={"compact_every": 2}))
    text = (tmp_path / "out" / "report.json").read_text()
    report = json.loads(text)
    beside = (tmp_path / "out" / "history.json").read_text()
    assert len(text.splitlines()) < 160
    assert len(beside.splitlines()) == 1
    history = json.loads(beside)
    assert not GROWING & report.keys()
    assert history.keys() == {
        "started", "history", "live_components", "removals", "method_details",
    }  # fmt: skip
    assert report["method_details"].keys() == {"revivals"}
    assert history["method_details"].keys() == {"last_died"}
    assert "removals" not in report["compaction"]
    assert kept.compaction is not None
    assert kept.compaction.removed == sum(r["removed"] for r in history["removals"]) > 0
    assert len(kept.live_components) == kept.steps == 12
    assert kept.method_details.keys() == {"revivals", "last_died"}


def test_all_of_a_report_comes_back(tmp_path: Path) -> None:
    compaction = Compaction(
        every=2, only_count=False, removals=[Removal(step=2, removed=1, left=3)]
    )
    log = _write(
        tmp_path,
        history=[{"step": 1, "loss": 0.5}],
        live_components=[4, 3],
        non_finite_steps=[2],
        compaction=compaction,
        method_details={"revivals": 1, "last_died": {"a": [None, 2]}},
    )
    assert read_report(tmp_path) == log.report


def test_a_history_of_another_start_is_not_this_run_s(tmp_path: Path) -> None:
    """The process of a run that is trained again was killed before it could delete it."""
    _write(tmp_path, started="2026-01-01", live_components=[4, 3])
    history = (tmp_path / "history.json").read_text()
    _write(tmp_path, started="2026-01-02")
    assert not (tmp_path / "history.json").exists()
    (tmp_path / "history.json").write_text(history)
    report = present(read_report(tmp_path))
    assert (report.started, report.live_components) == ("2026-01-02", [])


@pytest.mark.parametrize("content", [None, "", "[1]", '{"started": "s", "history": 5}'])
def test_a_finished_run_is_one_without_its_history(tmp_path: Path, content: str | None) -> None:
    _write(tmp_path, started="s", status="completed", live_components=[4, 3])
    (tmp_path / "history.json").unlink()
    if content is not None:
        (tmp_path / "history.json").write_text(content)
    report = present(read_report(tmp_path))
    assert (report.status, report.live_components) == ("completed", [])


def test_killed_between_the_two_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = _write(tmp_path, live_components=[4])
    log.report.live_components, log.report.status = [4, 3], "completed"

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(ReportLog, "write", die)
        with pytest.raises(KeyboardInterrupt):
            log.save()
    report = present(read_report(tmp_path))
    assert (report.status, report.live_components) == ("running", [4, 3])


def test_old_reports_are_read_everywhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = present(read_report(OLD / "digits-sora-s0"))
    assert (report.schema_version, report.status) == (1, "completed")
    assert len(report.live_components) == report.steps == 540
    assert report.method_details["last_died"]
    cost = present(Cost.of(report))
    assert 0 < cost.step < 1
    assert selection_scores(report) == {}
    path = present(read_path(OLD / "rising-s0"))
    assert path.stages[-1].live == sum(map(len, path.stages[-1].alive.values()))
    runs = find_runs([OLD]).runs
    assert [(run.task, run.seed, len(run.report.history) > 0) for run in runs] == [
        ("builtin://digits", 0, True), ("stsb", 0, True),
    ]  # fmt: skip
    assert run(["compare", str(OLD), "-o", str(tmp_path / "a.csv")]) == 0
    capsys.readouterr()


def test_an_old_finished_run_has_nothing_left_to_do(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, tiny_bert(num_labels=2), training={"max_steps": 2})
    report = train(recipe).model_copy(update={"schema_version": 1})
    (tmp_path / "out" / "report.json").write_text(report.model_dump_json(indent=2))
    (tmp_path / "out" / "history.json").unlink()
    before = files_of(tmp_path / "out")
    assert run(["train", str(recipe), "--resume"]) == 0
    assert run(["train", str(recipe)]) == 2
    assert run(["inspect", str(tmp_path / "out")]) == 0
    assert files_of(tmp_path / "out") == before
    assert read_report(tmp_path / "out") == report


def test_generated_reports_have_both_files(tmp_path: Path) -> None:
    folder = write_report(tmp_path / "a", status="completed")
    assert {file.name for file in folder.iterdir()} == {"history.json", "report.json"}
    assert isinstance(read_report(folder), RunReport)


def test_lines_of_readable_json() -> None:
    values = {
        "short": {"a": [1, None, "\u00e9"], "b": {}},
        "many": {f"key{i}": i / 7 for i in range(40)},
        "table": {f"module{i}": {"start": 8, "end": i} for i in range(9)},
        "words": ["w" * 30] * 9,
        "long": "x" * 200,
        "deep": {"a": {"b": [{"c": "y" * 60}, {"d": ["z" * 60] * 2}]}},
    }
    text = readable_json(values)
    assert json.loads(text) == values
    lines = text.splitlines()
    assert lines[1] == '  "short": {"a": [1, null, "\u00e9"], "b": {}},'
    assert '    "module3": {"start": 8, "end": 3},' in lines
    assert sum("key" in line for line in lines) < 14
    assert [len(line) > 100 for line in lines].count(True) == 1
