"""`sora prune --max-drop` with rows without labels: how the rows that test are planned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sora_cli.app import run
from tests.helpers_errors import refused
from tests.sora_cli.commands.promises import LABELLED, OTHERS, Makers, finished
from tests.sora_cli.experiments.auto.support import certificate_of


@pytest.fixture
def recipe(makers: Makers) -> Path:
    """A finished run; beside it 80 inputs, ten training rows and ten labelled ones."""
    return makers.recipe(finished)


def words(recipe: Path, out: Path, *more: str) -> list[str]:
    given = ["--max-drop", "40pt", "--unlabelled", str(recipe.parent / "inputs.jsonl")]
    return ["prune", str(recipe.parent / "out"), "-o", str(out), *given, "-r", str(recipe), *more]


def test_the_basis_is_planned_before_a_row_is_scored(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sora_cli.search.cut.smallest_cut", stop)
    for drop, plan in (("40pt", "labels"), ("4pt", "answers")):
        capsys.readouterr()
        assert run([*words(recipe, tmp_path / "out"), "--max-drop", drop]) == 130
        said = capsys.readouterr().err
        assert f"(auto.basis={plan}): chance to certify" in said
        assert f" ({LABELLED} rows), answers " in said
        assert f" ({OTHERS} rows)" in said


def test_the_smallest_drop(recipe: Path, tmp_path: Path, capsys: Any) -> None:
    assert run([*words(recipe, tmp_path / "out"), "--max-drop", "smallest"]) in (0, 3)
    said = capsys.readouterr().err
    assert "smallest drop that they can be expected to certify: labels 0.1" in said
    promise = certificate_of(tmp_path / "out").promise
    assert promise.basis == "answers"
    assert 0 < promise.max_drop < 0.15


def test_metrics_that_answers_do_not_bound(recipe: Path, tmp_path: Path, capsys: Any) -> None:
    f1 = words(recipe, tmp_path / "out", "task.metrics=[f1]", "--confidence", "0.5")
    assert run(f1) in (0, 3)
    said = capsys.readouterr().err
    assert "--unlabelled is not used: f1 can drop by more than the share of answers" in said
    assert certificate_of(tmp_path / "out").promise.basis == "labels"
    refused(capsys, *words(recipe, tmp_path / "no", "task.metrics=[f1]", "auto.basis=answers"))


def test_a_basis_without_rows(recipe: Path, tmp_path: Path, capsys: Any) -> None:
    run_of = str(recipe.parent / "out")
    command = ["prune", run_of, "-o", str(tmp_path / "no"), "--max-drop", "9pt", "-r", str(recipe)]
    for more in ([], ["--heal", "2"]):
        refused(capsys, *command, *more, "auto.basis=answers")
