"""A run that was stopped and resumed ends as if it had never been stopped, to the bit."""

from __future__ import annotations

import json
import math
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from methods.registry import low_rank_names
from sora_cli.app import run
from sora_cli.report import read_report
from sora_cli.train.checkpoint.files import newest_checkpoint
from tests.helpers_errors import error_of
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

STEPS = 6  # an epoch of 48 rows in steps of 8, or of 43
METHODS: dict[str, list[str]] = {
    "sora": [],
    "lora": [],
    "adalora": ["method.target_r=2", "method.init_r=4", "method.t_init=2", "method.t_final=4"],
    "cut": ["method.cut_at=8"],
    "sora with a budget": [
        "method.threshold=null",
        "method.target_r=1.5",
        "method.gate_init=ones",
    ],
}
"""What each method needs beside its name to do its work in a few steps."""


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
    name = method.partition(" ")[0]
    return [f"method.name={name}", *METHODS.get(method, []), f"output.dir={place}"]


def _stopped(
    monkeypatch: pytest.MonkeyPatch, recipe: Path, *words: str, step: int, number: int
) -> None:
    with monkeypatch.context() as patched:
        signal_at(patched, step, number)
        assert run(["train", str(recipe), "--no-verify", *words]) == 128 + number


class Wholes:
    """Runs that nothing stopped, one for each method and its options; nobody writes into them."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._made = folder, dict[str, Path]()

    def of(self, method: str = "sora", **training: Any) -> tuple[Path, Path]:
        """The recipe, and the finished run."""
        key = f"{method} {training}"
        if key not in self._made:
            place = self._folder / str(len(self._made))
            place.mkdir()
            recipe = self._made[key] = _recipe(place, **training)
            train(recipe, *_words(method, f"{place}/whole"))
        return self._made[key], self._made[key].parent / "whole"


@pytest.fixture(scope="module")
def wholes(tmp_path_factory: pytest.TempPathFactory) -> Wholes:
    return Wholes(tmp_path_factory.mktemp("wholes"))


def _assert_equal_end(
    monkeypatch: pytest.MonkeyPatch, of: tuple[Path, Path], folder: Path, *steps: int,
    method: str = "sora",
) -> None:  # fmt: skip
    """Stopped in each of those steps and resumed, a run equals the one that was not stopped."""
    recipe, whole = of
    expected = read_report(whole)
    assert expected is not None
    words = _words(method, f"{folder}/cut")
    resume: list[str] = []
    for step in steps:
        _stopped(monkeypatch, recipe, *words, *resume, step=step, number=signal.SIGTERM)
        resume = ["--resume"]
        report = read_report(folder / "cut")
        assert report is not None
        assert (report.status, report.steps) == ("interrupted", step)
    report = train(recipe, *words, "--resume")
    assert [r.step for r in report.resumed] == list(steps)
    assert files_of(folder / "cut" / "adapter") == files_of(whole / "adapter")
    assert timeless(report) == timeless(expected)


@pytest.mark.parametrize(
    "method", rest_is_long(sorted({*low_rank_names(), *METHODS}, reverse=True))
)
def test_every_method_in_the_middle_of_a_later_epoch(
    wholes: Wholes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    _assert_equal_end(monkeypatch, wholes.of(method), tmp_path, STEPS + 3, method=method)


@pytest.mark.parametrize(
    "steps", rest_is_long([[STEPS - 1, STEPS + 1], [1], [STEPS], [3 * STEPS - 1], [3 * STEPS]])
)
def test_first_last_and_several_steps(
    wholes: Wholes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: list[int]
) -> None:
    _assert_equal_end(monkeypatch, wholes.of(), tmp_path, *steps)


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
    wholes: Wholes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any],
    step: int,
) -> None:  # fmt: skip
    _assert_equal_end(monkeypatch, wholes.of(**options, learning_rate=0.03), tmp_path, step)


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
    wholes: Wholes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epoch_end: bool
) -> None:
    """Killed while it scored or wrote: the last checkpoint says that training was over."""
    recipe, whole = wholes.of(**({} if epoch_end else {"max_steps": 10}))
    expected = read_report(whole)
    assert expected is not None
    shutil.copytree(whole, tmp_path / "cut")
    report = json.loads((tmp_path / "cut" / "report.json").read_text())
    (tmp_path / "cut" / "report.json").write_text(json.dumps({**report, "status": "running"}))
    shutil.rmtree(tmp_path / "cut" / "adapter")
    with monkeypatch.context() as patched:
        patched.setattr("sora_cli.train.trainer.AdapterTrainer.training_step", None)
        resumed = train(recipe, f"output.dir={tmp_path}/cut", "--resume")
    assert files_of(tmp_path / "cut" / "adapter") == files_of(whole / "adapter")
    assert timeless(resumed) == timeless(expected)


def test_a_finished_run_has_nothing_left_to_do(
    wholes: Wholes, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, whole = wholes.of()
    before = files_of(whole)
    assert run(["train", str(recipe), *_words("sora", str(whole)), "--resume"]) == 0
    assert "already holds this run, finished" in capsys.readouterr().err
    assert files_of(whole) == before


def test_nothing_to_go_on_from_starts_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = train(_recipe(tmp_path), "--resume")
    assert report.status == "completed"
    assert not report.resumed
    assert "starting at the first step" in capsys.readouterr().err


def _cut(
    monkeypatch: pytest.MonkeyPatch, recipe: Path, out: Path | None = None, step: int = STEPS + 2
) -> Path:
    out = recipe.parent / "out" if out is None else out
    _stopped(monkeypatch, recipe, f"output.dir={out}", step=step, number=signal.SIGTERM)
    return out / "checkpoints"


def test_another_recipe_is_refused_and_the_difference_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = _recipe(tmp_path)
    _cut(monkeypatch, recipe)
    before = files_of(tmp_path / "out")
    resume = [str(recipe), "--resume"]
    lines = error_of(capsys, "train", *resume, "training.learning_rate=0.5", "method.r_max=5")
    assert "method.r_max was 4, is now 5; also training.learning_rate" in lines[0]
    assert "method.r_max" in error_of(capsys, "train", *resume, "method.r_max=5", "--force")[0]
    lines = error_of(capsys, "train", *resume, "training.logging_steps=2")
    assert "--resume --force" in lines[-1]
    assert files_of(tmp_path / "out") == before
    report = train(recipe, "--resume", "training.logging_steps=2", "--force")
    assert "training.logging_steps was 4, is now 2" in " ".join(report.recipe_notes)
    assert {e["step"] for e in report.history if "loss" in e} >= {4, 10, 12}


def test_changed_rows_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = _recipe(tmp_path)
    _cut(monkeypatch, recipe)
    write_rows(tmp_path / "train.jsonl", pair_rows(43, seed=9))
    lines = error_of(capsys, "train", str(recipe), "--resume")
    assert "the data (train) is not the same as when the run" in lines[0]


def test_an_unfinished_run_is_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = _recipe(tmp_path)
    _cut(monkeypatch, recipe)
    before = files_of(tmp_path / "out")
    lines = error_of(capsys, "train", str(recipe))
    assert "not finished, with checkpoints" in lines[0]
    assert "--resume" in lines[1]
    assert files_of(tmp_path / "out") == before
    assert not train(recipe, "--force").resumed


@pytest.mark.parametrize(
    "damage",
    rest_is_long(["changed", "no mark", "short", "empty"]),
)
def test_a_checkpoint_that_is_not_complete_is_skipped_and_named(
    wholes: Wholes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], damage: str,
) -> None:  # fmt: skip
    recipe, whole = wholes.of()
    expected = read_report(whole)
    assert expected is not None
    folder = _cut(monkeypatch, recipe, tmp_path / "out")
    last = folder / f"step-{STEPS + 2:06d}"
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
    report = train(recipe, f"output.dir={tmp_path}/out", "--resume")
    said = capsys.readouterr().err
    assert f"skipped: {last}" in said
    assert [r.step for r in report.resumed] == [STEPS]
    assert files_of(tmp_path / "out" / "adapter") == files_of(whole / "adapter")
    assert timeless(report) == timeless(expected)


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
