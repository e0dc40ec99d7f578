"""`sora auto --max-drop` with rows without labels: which rows test the drop, and what is said."""

from __future__ import annotations

import json
import shutil
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from sora_cli.app import run
from sora_cli.core.errors import SoraError
from sora_cli.core.exit_codes import FAILED, OK
from sora_cli.experiments.auto.plan import plan_auto
from sora_cli.experiments.auto.record import AutoRecord, read_auto
from sora_cli.experiments.auto.rows import planned_rows
from sora_cli.recipe.auto import Basis
from sora_cli.recipe.load import load_recipe
from sora_cli.report import read_report
from sora_cli.search.agreement import share_bound
from sora_cli.verify import certificate as recheck
from tests.helpers_errors import error_of
from tests.helpers_runs import signal_at
from tests.sora_cli.commands.test_auto import (
    NOT_VERIFIED,
    goes_on_after_a_signal,
    leaves,
    other,
    placed,
    scored_once,
)
from tests.sora_cli.experiments.auto.support import certificate_of, recipe_with_inputs

__all__ = ["scored_once"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recipe_with_inputs(tmp_path_factory.mktemp("basis"))


def words(recipe: Path, out: Path, *more: str) -> list[str]:
    given = ["--max-drop", "60pt", "--unlabelled", str(recipe.parent / "inputs.jsonl")]
    return ["auto", str(recipe), *given, f"output.dir={out}", *more, "--no-verify"]


def made(recipe: Path, basis: str) -> Path:
    out = recipe.parent / basis
    if not out.exists():
        assert run(words(recipe, out, f"auto.basis={basis}")) == OK
    return out


@pytest.fixture
def done(recipe: Path) -> Path:
    return made(recipe, "answers")


def test_by_answers_no_row_is_held_out(done: Path) -> None:
    found = certificate_of(done)
    assert (found.promise.kind, found.promise.basis) == ("drop", "answers")
    assert {name: (part.split, part.rows) for name, part in found.rows.items()} == {
        "train": ("train", 124),
        "screening": ("unlabelled", 25),
        "test": ("unlabelled", 75),
        "validation": ("validation", 24),
    }
    for size in found.candidates:
        assert size.test is not None
        assert size.test.upper == share_bound(size.test.differing or 0, 75, 0.95)
        assert size.test.kept == (size.test.upper <= 0.6)
    assert "accuracy" in found.statement


def test_the_report_says_the_basis(done: Path) -> None:
    report = read_report(done)
    assert report is not None
    assert report.recipe["auto"]["basis"] == done.name
    assert done.name in {certificate_of(done).promise.basis}


def test_what_the_plan_says(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sixteen labelled rows and a hundred others: the plan chooses, and says how."""
    assert run([*words(recipe, tmp_path / "out"), "--dry-run"]) == OK
    told = capsys.readouterr()
    said, shown = " ".join(told.err.split()), " ".join(told.out.split())
    assert "chance to certify 0.6, in the mean of sizes that differ on 0.25% to 5%" in said
    assert "labels 100% (16 rows), answers 100% (75 rows)" in said
    assert "labels test the drop, and rows without labels are not used (auto.basis=labels)" in said
    assert "rows held out of the training split: 16 screen" in shown
    capsys.readouterr()
    assert run([*words(recipe, tmp_path / "out"), "--max-drop", "10pt", "--dry-run"]) == OK
    told = capsys.readouterr()
    said, shown = " ".join(told.err.split()), " ".join(told.out.split())
    assert "3 of 108 rows of" in said
    assert "the column 'label' is ignored" in said
    assert "(auto.basis=answers): chance to certify 0.1" in said
    assert "rows without labels: 25 screen the sizes, 75 test them" in shown
    command = words(recipe, tmp_path / "out", "auto.basis=answers", "auto.rows=60")
    assert run([*command, "--dry-run"]) == OK
    told = capsys.readouterr()
    assert "certified if at most 37 of 75 test rows are answered differently" in told.out
    assert "auto.rows is not used: no labelled row is held out" in told.err
    assert not (tmp_path / "out").exists()


def test_rows_without_labels_that_are_not_used(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for more, reason in (
        (["auto.basis=labels"], "auto.basis=labels"),
        (["task.metrics=[f1]"], "f1 can drop by more than the share of answers that differ"),
    ):
        capsys.readouterr()
        assert run([*words(recipe, tmp_path / "out", *more), "--dry-run"]) == OK
        assert f"auto.unlabelled is not used: {reason}" in " ".join(capsys.readouterr().err.split())


def test_the_smallest_drop(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = words(recipe, tmp_path / "out")
    command[command.index("60pt")] = "smallest"
    assert run([*command, "--dry-run"]) == OK
    told = capsys.readouterr()
    assert "smallest drop that they can be expected to certify: labels 0.1" in told.err
    assert "promise: a drop of at most 0.1" in told.out


def test_pages_say_what_was_tested(
    recipe: Path, done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["report", str(done), "--force"]) == OK
    page = (done / "report.html").read_text(encoding="utf-8")
    card = (done / "adapter" / "README.md").read_text(encoding="utf-8")
    assert "accuracy at most 60pt worse than at full rank, by the share of answers that" in page
    assert certificate_of(done).statement in card
    capsys.readouterr()
    assert run(["list", str(recipe.parent)]) == OK
    assert "certified" in capsys.readouterr().out


def test_it_is_scored_again(done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    moved = shutil.copytree(done, tmp_path / "elsewhere")
    assert run(["verify", str(moved), "--certificate", "--json"]) == OK
    facts = json.loads(capsys.readouterr().out)
    assert facts["verdict"] == "same"
    assert all(one["stored"] == one["here"] for one in facts["compared"])


@pytest.mark.usefixtures("scored_once")
def test_no_field_of_the_certificate_can_be_changed(done: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(done, tmp_path / "copy")
    file = copy / "certificate.json"
    document = json.loads(file.read_text(encoding="utf-8"))
    passing = set()
    for path, value in leaves(document):
        name = ".".join(str(part) for part in path if not isinstance(part, int))
        name = name.replace("screened.", "screened[].")
        changed = {("promise", "kind"): "differ", ("promise", "basis"): "labels"}
        file.write_text(
            placed(document, path, changed.get(path, other(path, value))), encoding="utf-8"
        )
        with suppress(SoraError):  # exit code 2
            if recheck.recheck(copy)[1].exit_code == 0:
                assert name in NOT_VERIFIED, path
                passing.add(name)
    assert passing == NOT_VERIFIED.keys()


@pytest.mark.usefixtures("scored_once")
def test_figures_that_fit_each_other_are_compared_all_the_same(done: Path, tmp_path: Path) -> None:
    """More rows differ, with the bound that follows: as if nothing had been edited."""
    copy = shutil.copytree(done, tmp_path / "copy")
    file = copy / "certificate.json"
    document = json.loads(file.read_text(encoding="utf-8"))
    test, rows = document["candidates"][0]["test"], document["rows"]["test"]["rows"]
    test["drop"] += 0.25
    test["score"] -= 0.25
    test["differing"] = round(test["drop"] * rows)
    test["upper"] = share_bound(test["differing"], rows, 0.95)
    file.write_text(json.dumps(document), encoding="utf-8")
    assert recheck.recheck(copy)[1].exit_code == FAILED


def test_a_search_that_was_begun_keeps_its_basis(recipe: Path) -> None:
    given = ["auto.max_drop=10pt", f"auto.unlabelled={recipe.parent}/inputs.jsonl"]
    plan = plan_auto(load_recipe(str(recipe), given))
    planned, rows, _ = planned_rows(plan)
    assert (planned.promise.basis, rows.unlabelled) == ("answers", True)
    bases: tuple[Basis, ...] = ("labels", "answers")
    for basis in bases:
        record = AutoRecord(name="begun", recipe={}, basis=basis)
        planned, rows, _ = planned_rows(plan, record)
        assert (planned.promise.basis, planned.block.basis) == (basis, basis)
        assert rows.unlabelled == (basis == "answers")


def test_it_is_not_continued_on_other_rows(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    inputs, out = tmp_path / "inputs.jsonl", tmp_path / "out"
    rows = (recipe.parent / "inputs.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    inputs.write_text("".join(rows), encoding="utf-8")
    command = [*words(recipe, out), "--max-drop", "10pt", "--unlabelled", str(inputs)]
    with monkeypatch.context() as patched:
        signal_at(patched, 3)
        assert run(command) == 128 + signal.SIGTERM
    record = read_auto(out)
    assert record is not None
    assert (record.basis, record.rows["test"].rows) == ("answers", 75)
    inputs.write_text("".join(rows[:30]), encoding="utf-8")
    error = error_of(capsys, *command)
    assert f"the screening rows are not the same as when the run in '{out}' started" in error[0]
    assert error[1:] == [
        "25 rows of unlabelled then, 7 rows of unlabelled now",
        "restore them, or train elsewhere: output.dir=DIR",
    ]
    assert read_auto(out) == record


@pytest.mark.long
@pytest.mark.parametrize("step", [3, -1])
def test_a_signal_in_training_and_in_healing(
    recipe: Path, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    command = words(recipe, tmp_path / "out", f"auto.basis={done.name}")
    step = step if step > 0 else certificate_of(done).full.steps - 1
    goes_on_after_a_signal(monkeypatch, step, command, done, tmp_path / "out")
