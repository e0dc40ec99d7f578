"""A run that was stopped and resumed ends as if it had never been stopped, to the bit."""

from __future__ import annotations

import json
import math
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sora_cli.app import run
from sora_cli.report import RunReport, read_report
from sora_cli.train.checkpoint.files import newest_checkpoint
from tests.helpers_errors import refused
from tests.helpers_methods import BUDGET, method_words
from tests.helpers_models import tiny_bert
from tests.helpers_runs import (
    files_of,
    pair_rows,
    script_scores,
    signal_at,
    timeless,
    train,
    write_recipe,
    write_rows,
)
from tests.matrix import rest_is_long
from tests.present import present

STEPS = 6  # an epoch of 48 rows in steps of 8, or of 43


def _recipe(folder: Path, *, rows: int = 43, **training: Any) -> Path:
    """Dropout, gradient accumulation, a short last step: everything that keeps a state."""
    model = tiny_bert(num_labels=2)
    block = {"epochs": 3, "gradient_accumulation": 2, "model_dropout": 0.1, "logging_steps": 4}
    return write_recipe(
        folder,
        model,
        rows=rows,
        training={**block, **training},
        method={"dropout": 0.1},
    )


def _words(method: str, place: str) -> list[str]:
    return [*method_words(method), f"output.dir={place}"]


def _stopped(
    monkeypatch: pytest.MonkeyPatch, recipe: Path, *words: str, step: int, number: int
) -> None:
    with monkeypatch.context() as patched:
        signal_at(patched, step, number)
        assert run(["train", str(recipe), "--no-verify", *words]) == 128 + number


@dataclass(frozen=True)
class Runs:
    """A run that was not stopped, and one that was in step 8; nobody writes into them."""

    recipe: Path
    whole: Path
    cut: Path

    def continued(self, folder: Path) -> list[str]:
        """A copy of the stopped run in out/; the words of its recipe."""
        shutil.copytree(self.cut, folder / "out")
        return [str(self.recipe), f"output.dir={folder}/out"]

    def assert_end(self, folder: Path, report: RunReport) -> None:
        """A run in that directory ended as the one that was not stopped."""
        expected = present(read_report(self.whole))
        assert files_of(folder / "adapter") == files_of(self.whole / "adapter")
        assert timeless(report) == timeless(expected)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("resume")
    runs = Runs(_recipe(folder), folder / "whole", folder / "cut")
    train(runs.recipe, f"output.dir={runs.whole}")
    with pytest.MonkeyPatch.context() as patch:
        place = f"output.dir={runs.cut}"
        _stopped(patch, runs.recipe, place, step=STEPS + 2, number=signal.SIGTERM)
    return runs


def _assert_equal_end(
    monkeypatch: pytest.MonkeyPatch, recipe: Path, *steps: int, method: str = "sora"
) -> None:
    """Stopped in each of those steps and resumed, a run equals the one that was not stopped."""
    folder = recipe.parent
    train(recipe, *_words(method, f"{folder}/whole"))
    runs = Runs(recipe, folder / "whole", folder / "cut")
    _assert_same_end(monkeypatch, runs, folder / "cut", *steps, words=method_words(method))


def _assert_same_end(
    monkeypatch: pytest.MonkeyPatch, runs: Runs, place: Path, *steps: int, words: list[str]
) -> None:
    recipe, words = runs.recipe, [*words, f"output.dir={place}"]
    resume: list[str] = []
    for step in steps:
        _stopped(monkeypatch, recipe, *words, *resume, step=step, number=signal.SIGTERM)
        resume = ["--resume"]
        report = present(read_report(place))
        assert (report.status, report.steps) == ("interrupted", step)
    report = train(recipe, *words, "--resume")
    assert [r.step for r in report.resumed] == list(steps)
    runs.assert_end(place, report)


def test_a_budget_in_the_middle_of_a_later_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every method is resumed in `tests/e2e/test_families.py`."""
    _assert_equal_end(monkeypatch, _recipe(tmp_path), STEPS + 3, method=BUDGET)


def test_first_last_and_several_steps(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = [1, STEPS - 1, STEPS, STEPS + 1, 3 * STEPS - 1, 3 * STEPS]
    _assert_same_end(monkeypatch, runs, tmp_path / "cut", *steps, words=[])


@pytest.mark.parametrize(
    ("options", "step"),
    rest_is_long(
        [
            ({"evaluate": 4, "checkpoint": 3}, 8),  # an evaluation is due in that step, too
            ({"evaluate": 3, "checkpoint": 2}, STEPS),  # at an epoch's last step
            ({"evaluate": "no", "length_grouping": False}, 8),
            ({"max_steps": 10}, 7),
            ({"max_steps": 10, "evaluate": 5}, 10),
            ({"keep_best": False, "warmup": 3, "schedule": "cosine"}, 8),
            ({"gradient_accumulation": 1, "workers": 1}, 8),
            ({"compact_every": 2}, 9),
            ({"compact_every": 2, "compact_only_count": True}, 9),
        ]
    ),
    ids=str,
)
def test_cadences_and_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], step: int
) -> None:
    recipe = _recipe(tmp_path, **options, learning_rate=0.03)
    _assert_equal_end(monkeypatch, recipe, step)


def test_early_stopping_counts_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = _recipe(tmp_path, epochs=6, early_stopping=2)
    scores = [0.5, 0.9, 0.8, 0.7, 0.95, 0.6]
    script_scores(monkeypatch, scores)
    assert train(recipe, "output.dir=" + str(tmp_path / "whole")).steps == 4 * STEPS
    words = ["output.dir=" + str(tmp_path / "cut")]
    script_scores(monkeypatch, scores)
    _stopped(monkeypatch, recipe, *words, step=3 * STEPS + 2, number=signal.SIGINT)
    script_scores(monkeypatch, scores[3:])
    report = train(recipe, *words, "--resume")
    assert (report.steps, report.best_step) == (4 * STEPS, 2 * STEPS)
    assert files_of(tmp_path / "cut" / "adapter") == files_of(tmp_path / "whole" / "adapter")


@pytest.mark.parametrize("epoch_end", [True, False])
def test_stopped_after_training_nothing_is_trained_again(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epoch_end: bool
) -> None:
    """Killed while it scored or wrote: the last checkpoint says that training was over."""
    if not epoch_end:
        recipe = _recipe(tmp_path, max_steps=10)
        train(recipe, f"output.dir={tmp_path}/whole")
        runs = Runs(recipe, tmp_path / "whole", tmp_path / "cut")
    shutil.copytree(runs.whole, tmp_path / "cut")
    report = json.loads((tmp_path / "cut" / "report.json").read_text())
    (tmp_path / "cut" / "report.json").write_text(json.dumps({**report, "status": "running"}))
    shutil.rmtree(tmp_path / "cut" / "adapter")
    with monkeypatch.context() as patched:
        patched.setattr("sora_cli.train.trainer.AdapterTrainer.training_step", None)
        resumed = train(runs.recipe, f"output.dir={tmp_path}/cut", "--resume")
    runs.assert_end(tmp_path / "cut", resumed)


def test_a_finished_run_has_nothing_left_to_do(
    runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files_of(runs.whole)
    assert run(["train", str(runs.recipe), f"output.dir={runs.whole}", "--resume"]) == 0
    assert "already holds this run, finished" in capsys.readouterr().err
    assert run(["train", str(runs.recipe), f"output.dir={runs.whole}", "--resume", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(
        (runs.whole / "report.json").read_text(encoding="utf-8")
    )
    assert files_of(runs.whole) == before


def test_nothing_to_go_on_from_starts_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = train(_recipe(tmp_path), "--resume")
    assert report.status == "completed"
    assert not report.resumed
    assert "starting at the first step" in capsys.readouterr().err


def _cut(monkeypatch: pytest.MonkeyPatch, recipe: Path, **options: Any) -> Path:
    _stopped(monkeypatch, recipe, step=options.get("step", STEPS + 2), number=signal.SIGTERM)
    return recipe.parent / "out" / "checkpoints"


def test_another_recipe_is_refused_and_the_difference_shown(
    runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    resume = [*runs.continued(tmp_path), "--resume"]
    before = files_of(tmp_path / "out")
    refused(capsys, "train", *resume, "training.learning_rate=0.5", "method.r_max=5")
    refused(capsys, "train", *resume, "method.r_max=5", "--force")
    refused(capsys, "train", *resume, "training.logging_steps=2")
    assert files_of(tmp_path / "out") == before
    report = train(*resume, "training.logging_steps=2", "--force")
    assert "training.logging_steps was 4, is now 2" in " ".join(report.recipe_notes)
    assert {e["step"] for e in report.history if "loss" in e} >= {4, 10, 12}


def test_changed_rows_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = _recipe(tmp_path)
    _cut(monkeypatch, recipe)
    write_rows(tmp_path / "train.jsonl", pair_rows(43, seed=9))
    refused(capsys, "train", str(recipe), "--resume")


def test_an_unfinished_run_is_not_overwritten(
    runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = runs.continued(tmp_path)
    before = files_of(tmp_path / "out")
    refused(capsys, "train", *words)
    assert files_of(tmp_path / "out") == before
    assert not train(*words, "--force").resumed


@pytest.mark.parametrize(
    "damage",
    rest_is_long(["changed", "no mark", "short", "empty"]),
)
def test_a_checkpoint_that_is_not_complete_is_skipped_and_named(
    runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    words = runs.continued(tmp_path)
    last = tmp_path / "out" / "checkpoints" / f"step-{STEPS + 2:06d}"
    state = last / "state.safetensors"
    if damage == "no mark":
        (last / "complete.json").unlink()
    elif damage == "short":
        state.write_bytes(state.read_bytes()[:-5])
    elif damage == "changed":
        state.write_bytes(state.read_bytes()[:-1] + b"\0")
    else:
        shutil.rmtree(last)
        last.mkdir()
    report = train(*words, "--resume")
    said = capsys.readouterr().err
    assert f"skipped: {last}" in said
    assert [r.step for r in report.resumed] == [STEPS]
    runs.assert_end(tmp_path / "out", report)


def test_without_its_best_one_a_checkpoint_is_of_no_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script_scores(monkeypatch, [0.9, 0.1])
    folder = _cut(monkeypatch, _recipe(tmp_path), step=2 * STEPS + 1)
    assert sorted(p.name for p in folder.iterdir()) == ["step-000006", "step-000013"]
    shutil.rmtree(folder / "step-000006")
    found, skipped = newest_checkpoint(folder)
    assert found is None
    assert len(skipped) == 1


def test_none_on_the_way_where_the_recipe_wants_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = _recipe(tmp_path, checkpoint="no", evaluate="no")
    folder = _cut(monkeypatch, recipe)
    assert not folder.exists()
    assert "no checkpoint yet" in capsys.readouterr().err


def test_what_to_type_next_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = _recipe(tmp_path)
    _stopped(monkeypatch, recipe, "training.seed=3", step=4, number=signal.SIGINT)
    said = capsys.readouterr().err.splitlines()
    assert said[-3:] == [
        "interrupted by SIGINT",
        f"kept: {tmp_path}/out/checkpoints/step-000004",
        f"to resume: sora train {recipe} training.seed=3 --resume",
    ]


def test_loss_history_has_no_gap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The losses since the last entry are remembered: 4, 8, ... with a stop between."""
    recipe = _recipe(tmp_path)
    _cut(monkeypatch, recipe, step=6)
    report = train(recipe, "--resume")
    losses = {e["step"]: e["loss"] for e in report.history if "loss" in e}
    assert list(losses) == [4, 8, 12, 16]
    assert all(math.isfinite(loss) for loss in losses.values())
