"""Trials of learning rates: which is taken, and that they leave no trace."""

from __future__ import annotations

from pathlib import Path

import pytest

from sora_cli.app import run
from sora_cli.experiments.auto.budget import probe_steps
from sora_cli.experiments.auto.probe import best
from sora_cli.experiments.auto.record import Tried, read_auto
from sora_cli.report import read_report
from tests.helpers_runs import files_of, train
from tests.sora_cli.experiments.auto.support import auto_recipe


def tried(*losses: float | None) -> list[Tried]:
    rates = (0.1, 0.3, 0.9)
    return [Tried(learning_rate=r, loss=x) for r, x in zip(rates, losses, strict=True)]


@pytest.mark.parametrize(
    ("losses", "rate"),
    [
        ((0.5, 0.4, 0.6), 0.3),
        ((0.5, 0.6, 0.4), 0.9),
        ((0.4, 0.4, 0.4), 0.3),  # nothing speaks against the recipe's own
        ((0.5, None, None), 0.1),
        ((None, None, None), 0.3),
    ],
)
def test_the_smallest_loss_is_taken(losses: tuple[float | None, ...], rate: float) -> None:
    assert best(tried(*losses), 0.3) == rate


@pytest.mark.parametrize(("total", "steps"), [(4, 4), (100, 10), (600, 30), (9000, 100)])
def test_steps(total: int, steps: int) -> None:
    assert probe_steps(total) == steps


@pytest.mark.long
def test_the_full_run_is_as_if_nothing_had_been_tried(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = auto_recipe(tmp_path)
    words = ["auto", str(recipe), "--probe"]
    assert run([*words, "--dry-run", "--preview", "1"]) == 0
    shown = capsys.readouterr().out
    assert "trials of learning rates 188%" in shown  # three of 10 steps beside 16
    assert "row 0" in shown
    assert "row 1" not in shown
    whole = shown.partition("sizes of")[2]
    assert "about" in whole
    assert "predicted; the smaller sizes need no more" in whole
    assert run(words) == 0
    found = read_auto(tmp_path / "out")
    assert found is not None
    assert found.probe is not None
    rates = [one.learning_rate for one in found.probe.tried]
    assert rates == pytest.approx([0.00667, 0.02, 0.06])
    assert (found.probe.steps, found.probe.trained, found.probe.held_out) == (10, 51, 13)
    report = read_report(tmp_path / "out")
    assert report is not None
    assert report.recipe["training"]["learning_rate"] == found.probe.chosen
    assert found.probe.note in report.recipe_notes
    plain = [f"training.learning_rate={found.probe.chosen}", "training.evaluate=no"]
    plain += ["training.keep_best=false", "data.selection=train-rows"]
    plain += ["data.selection_rows=60", "data.selection_seed=42"]
    train(recipe, *plain, f"output.dir={tmp_path / 'plain'}")
    alone, full = (files_of(tmp_path / at / "adapter") for at in ("plain", "out/sizes/full"))
    assert alone["adapter_model.safetensors"] == full["adapter_model.safetensors"]
    again = [*words, f"output.dir={tmp_path / 'again'}"]
    assert run(again) == 0
    second = read_auto(tmp_path / "again")
    assert second is not None
    assert second.probe == found.probe
