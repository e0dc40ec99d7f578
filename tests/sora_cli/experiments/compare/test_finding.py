"""Which reports `sora compare` finds, in which order, and what it leaves out."""

from __future__ import annotations

from pathlib import Path

import pytest

from sora_cli.core.errors import SoraError
from sora_cli.experiments.compare.finding import find_runs, report_files
from sora_cli.experiments.path.record import PathReport
from tests.helpers_errors import refusal
from tests.helpers_reports import write_report


def names(folder: Path, *places: Path) -> list[str]:
    found = find_runs(places or [folder])
    return [str(run.directory.relative_to(folder)) for run in found.runs]


def test_runs_below_a_directory_in_natural_order(tmp_path: Path) -> None:
    for name in ("s10", "s9", "deep/er/s1"):
        write_report(tmp_path / name)
    assert names(tmp_path) == ["deep/er/s1", "s9", "s10"]


def test_a_run_is_not_looked_into(tmp_path: Path) -> None:
    write_report(tmp_path / "a")
    write_report(tmp_path / "a" / "inside")
    assert names(tmp_path) == ["a"]
    assert names(tmp_path, tmp_path / "a" / "inside") == ["a/inside"]


def test_each_run_once_however_it_is_named(tmp_path: Path) -> None:
    for name in "ab":
        write_report(tmp_path / name)
    places = [tmp_path / "b" / "report.json", tmp_path, tmp_path / "a", tmp_path / "a" / ".." / "b"]
    assert names(tmp_path, *places) == ["b", "a"]


def test_stages_of_a_path_are_runs_and_the_path_is_none(tmp_path: Path) -> None:
    recipe = {"training": {"seed": 7}}
    record = PathReport(name="p", recipe=recipe, vary="method.threshold", method="m", stage_count=3)
    (tmp_path / "path.json").write_text(record.model_dump_json())
    for index in range(2):
        write_report(tmp_path / "stages" / f"{index:02}", seed=7 + 1000 * index)
    (tmp_path / "stages" / "02").mkdir()
    assert names(tmp_path) == ["stages/00", "stages/01"]
    assert [run.seed for run in find_runs([tmp_path]).runs] == [7, 7]
    (tmp_path / "path.json").write_text("{")
    with refusal():
        find_runs([tmp_path])


def test_what_a_killed_process_has_left_is_not_looked_into(tmp_path: Path) -> None:
    write_report(tmp_path / "a")
    write_report(tmp_path / ".b.12345678.partial")
    assert names(tmp_path) == ["a"]


def test_what_is_left_out_is_named_with_the_reason(tmp_path: Path) -> None:
    write_report(tmp_path / "good")
    for status in ("running", "failed", "interrupted"):
        write_report(tmp_path / status, status=status)
    for name, text in {"broken": "{", "list": "[]", "other": '{"a": 1}'}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").write_text(text)
    write_report(tmp_path / "scoreless", more={"metrics": {}})
    write_report(tmp_path / "metricless", more={"main_metric": "gone"})
    write_report(tmp_path / "bare", more={"recipe": {"method": {"name": "x"}}})
    (tmp_path / "empty").mkdir()
    found = find_runs([tmp_path, tmp_path / "empty"])
    assert [run.directory.name for run in found.runs] == ["good"]
    said = {Path(line.partition(": ")[0]).name: line.partition(": ")[2] for line in found.left_out}
    assert said.keys() == {"running", "failed", "interrupted", "broken", "list", "other",
                           "scoreless", "metricless", "bare", "empty"}  # fmt: skip
    assert said["failed"] == "not finished: failed"
    assert "name: Field required" in said["other"]
    assert said["scoreless"] == "it reports no score"
    assert said["metricless"] == "it reports no gone on validation"
    assert said["bare"] == "its recipe has no training.seed, model.path"
    assert said["empty"] == "no report.json in it or below it"


def test_nothing_finished_is_an_error_that_names_the_first(tmp_path: Path) -> None:
    write_report(tmp_path / "a", status="running")
    with refusal():
        find_runs([tmp_path])


def test_a_place_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SoraError, match="no file or directory"):
        report_files(tmp_path / "gone")


def test_a_stage_counts_by_the_rows_it_was_not_trained_on(tmp_path: Path) -> None:
    scores = {"train-subset": 0.99, "validation": 0.8, "selection": 0.81}
    metrics = {split: {"accuracy": value} for split, value in scores.items()}
    write_report(tmp_path / "a", more={"metrics": metrics})
    (run,) = find_runs([tmp_path]).runs
    assert (run.split, run.metric) == ("validation", 0.8)
