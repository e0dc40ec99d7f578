"""`sora report`: where the page goes, what it may replace, and rows scored anew."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from sora_cli.app import run
from sora_cli.experiments.report.examples import choose
from sora_cli.search.record import AutoRecord
from tests.helpers_errors import refused
from tests.helpers_models import tiny_bert
from tests.helpers_reports import write_report, write_study
from tests.helpers_runs import train, write_recipe
from tests.sora_cli.experiments.report.pages import (
    Page,
    class_records,
    full_run,
    page_of,
    write_path,
    write_predictions,
)


def test_the_page_is_announced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = write_report(tmp_path / "run")
    assert run(["report", str(directory)]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"wrote {directory / 'report.html'}: ")


def test_another_place(tmp_path: Path) -> None:
    directory = write_report(tmp_path / "run")
    before = sorted(directory.iterdir())
    assert run(["report", str(directory), "-o", str(tmp_path / "new" / "page.html")]) == 0
    assert "accuracy 0.8000" in Page(tmp_path / "new" / "page.html").text
    assert sorted(directory.iterdir()) == before


def test_its_own_page_is_replaced_and_nobody_elses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = write_report(tmp_path / "run", ranks={}, steps=0)
    page_of(directory)
    page_of(directory)
    mine = directory / "report.html"
    mine.write_text("<p>thesis</p>")
    refused(capsys, "report", str(directory))
    assert mine.read_text() == "<p>thesis</p>"
    page_of(directory, "--force")


@pytest.mark.parametrize(
    "name", ["report.json", "history.json", "adapter", "adapter/adapter_config.json",
             "adapter/page.html", "predictions.jsonl", "checkpoints/page.html"],
)  # fmt: skip
def test_what_is_read_is_never_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    directory = full_run(tmp_path / "run")
    write_predictions(directory / "predictions.jsonl", class_records(225, 52))
    (directory / "checkpoints").mkdir()
    refused(capsys, "report", str(directory), "-o", str(directory / name), "--force")


def test_predictions_elsewhere(tmp_path: Path) -> None:
    directory = full_run(tmp_path / "run", metric=0.5,
                         more={"data": {"rows": {"validation": 10}}})  # fmt: skip
    file = write_predictions(tmp_path / "p.jsonl", class_records(6, 4))
    page = page_of(directory, "--predictions", str(file), "--examples", "2")
    said = page.section("examples")
    assert "accuracy 0.6000, the report says 0.5000" in said
    assert said.count("row ") == 4


def test_what_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = full_run(tmp_path / "study" / "run")
    refused(capsys, "report", str(directory / "report.json"))
    refused(capsys, "report", str(directory / "adapter"))
    refused(capsys, "report", str(tmp_path / "study"))


def test_a_search_that_has_not_finished(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    search = AutoRecord(name="r", recipe={}, command=["sora", "auto", "my recipe.yaml"])
    (tmp_path / "auto.json").write_text(search.model_dump_json())
    refused(capsys, "report", str(tmp_path))


def test_examples_are_of_one_finished_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_path(tmp_path / "path")
    refused(capsys, "report", str(path), "--examples", "3")
    stopped = write_report(tmp_path / "run", status="interrupted")
    refused(capsys, "report", str(stopped), "--examples", "3")


@pytest.mark.long
def test_rows_are_scored_anew(tmp_path: Path) -> None:
    """The page says the same of the rows as `sora eval` does, and a new training takes it away."""
    recipe = write_recipe(tmp_path, tiny_bert(num_labels=2), training={"max_steps": 4})
    train(recipe)
    out, file = tmp_path / "out", tmp_path / "p.jsonl"
    page = page_of(out, "--examples", "4")
    assert run(["eval", str(out), "-r", str(recipe), "--predictions", str(file)]) == 0
    said, kinds = choose([json.loads(line) for line in file.read_text().splitlines()], 4)
    assert said in page.section("examples")
    for example in (example for kind in kinds for example in kind.shown):
        assert f"row {example.row}, label" in page.section("examples")
        assert all(text in page.text for _, text in example.texts)
    train(recipe, "--force")
    assert not (out / "report.html").exists()


OLD = Path(__file__).parents[1] / "old_reports"


@pytest.mark.long
@pytest.mark.parametrize("old", sorted(OLD.iterdir()), ids=lambda old: old.name)
def test_reports_of_older_versions(old: Path, tmp_path: Path) -> None:
    shutil.copytree(old, tmp_path / "run")
    page = page_of(tmp_path / "run")
    is_path = (old / "path.json").is_file()
    assert ("5 of 5 stages" if is_path else "components of") in page.text
    assert is_path or "There is no adapter in" in page.section("spectra")


@pytest.mark.long
def test_every_run_of_a_study_has_a_page(tmp_path: Path) -> None:
    runs = sorted(write_study(tmp_path, tasks=("rte",), seeds=(0,)).iterdir())
    assert [bool(page_of(directory).section("ranks")) for directory in runs] == [True] * 4
