"""The note on steps that have become slow: when it comes, and what it says to type."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sora_cli.app import run
from sora_cli.train import fit
from sora_cli.train.pace import Pace, slow_line
from tests.helpers_device import computing_on
from tests.helpers_models import tiny_bert
from tests.helpers_runs import write_recipe

FIRST = [(10 * (n % 4 + 1), 0.1 * (n % 4 + 1)) for n in range(20)]
"""The trial: batches of 10 to 40 numbers, which take a hundredth of a second each."""


def ratio(later: list[tuple[int, float]]) -> float | None:
    """What a run that takes these steps after the trial is told at its end."""
    pace = Pace(print)
    assert [pace.note(*step) for step in FIRST] == [None] * 20
    return [pace.note(*step) for step in later][-1]


def test_a_step_is_measured_by_one_that_was_as_large() -> None:
    assert ratio([(10, 0.1), (40, 0.4)] * 5) == pytest.approx(1)
    assert ratio([(10, 0.25), (40, 1.0)] * 5) == pytest.approx(2.5)
    assert ratio([(31, 0.8)] * 10) == pytest.approx(2)  # by those of 40
    assert ratio([(10, 0.3)] * 9) is None  # too few
    assert ratio([(50, 3.0)] * 30) is None  # larger than any of the trial


def test_a_pause_in_a_few_steps_means_nothing() -> None:
    assert ratio([(10, 0.1)] * 6 + [(10, 60.0)] * 4) == pytest.approx(1)


@pytest.mark.parametrize(
    ("words", "end"),
    [
        (["train", "r.yaml", "--force"], "OMP_NUM_THREADS=1 sora train r.yaml --resume"),
        (["prune", "a b", "--heal", "9"], "OMP_NUM_THREADS=1 sora prune 'a b' --heal 9 --resume"),
        (["auto", "r.yaml", "--force"], "OMP_NUM_THREADS=1 sora auto r.yaml"),
        (["-f", "kernel.json"], "OMP_NUM_THREADS=1 before the same command"),
    ],
)
def test_what_to_type(words: list[str], end: str) -> None:
    line = slow_line(3.14, 2, words)
    assert line.startswith("note: steps take 3.1 times as long as the first ones: ")
    assert line.endswith(f"to go on with 1 thread in place of 2: Ctrl-C, then {end}")
    assert "8 threads in place of 16: Ctrl-C, then OMP_NUM_THREADS=8 " in slow_line(3, 16, words)


@pytest.mark.parametrize(
    ("threads", "checkpoint", "device", "watched"),
    [(2, "epoch", "cpu", True), (1, "epoch", "cpu", False), (2, "no", "cpu", False),
     (2, "epoch", "cuda", False)],
)  # fmt: skip
def test_which_runs_are_watched(
    threads: int, checkpoint: str, device: str, watched: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    added: list[Any] = []
    recipe = SimpleNamespace(training=SimpleNamespace(checkpoint=checkpoint))
    trainer: Any = SimpleNamespace(recipe=recipe, note_pass=print, add_callback=added.append)
    computing_on(device, monkeypatch)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    pace = Pace(print)
    pace.watch(trainer)
    assert added == [pace] * watched
    assert (trainer.note_pass is print) != watched


@pytest.mark.usefixtures("two_threads")
def test_a_run_says_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The clock is read twice a step, and goes three times as fast after 25 steps."""
    ticks = iter([*range(50), *range(50, 200, 3)])
    monkeypatch.setattr(fit, "Pace", lambda tell: Pace(tell, lambda: next(ticks)))
    training = {"max_steps": 45, "batch_size": 2, "evaluate": "no"}
    recipe = write_recipe(tmp_path, tiny_bert(num_labels=2), training=training)
    words = ["train", str(recipe), "--no-verify"]
    monkeypatch.setattr(sys, "argv", ["sora", *words])
    assert run(words) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "note: steps take " in line]
    assert len(said) == 1
    assert said[0].endswith(f"OMP_NUM_THREADS=1 sora train {recipe} --no-verify --resume")
    assert next(ticks) > 100  # the steps were measured to the end
