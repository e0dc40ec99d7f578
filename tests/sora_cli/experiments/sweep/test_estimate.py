"""How long runs will take, from those that have ended."""

from __future__ import annotations

from pathlib import Path

import pytest

from sora_cli.experiments.sweep.cost import Cost, Costs
from sora_cli.recipe.load import load_recipe
from sora_cli.report import Resumption, Start
from tests.helpers_reports import report_of, write_report
from tests.present import present
from tests.sora_cli.experiments.sweep.support import write_sweep

SECONDS = {"import": 5.0, "train": 80.0, "evaluate in training": 6.0, "evaluate": 4.0, "save": 1.0}


def test_parts_of_a_run() -> None:
    report = report_of(steps=40, more={"seconds": SECONDS})
    cost = Cost.of(report)
    assert cost == Cost(fixed=10.0, step=2.0, evaluation=6.0, rows=2000)


def test_a_resumed_run_counts_its_own_steps() -> None:
    report = report_of(steps=40, more={"seconds": SECONDS})
    report.resumed = [Resumption(step=30, started="")]
    cost = present(Cost.of(report))
    assert cost.step == 8.0


def test_a_forked_run_counts_its_own_steps() -> None:
    report = report_of(steps=40, more={"seconds": SECONDS})
    report.start = Start(directory="x", digest="", step=30)
    cost = present(Cost.of(report))
    assert cost.step == 8.0


@pytest.mark.parametrize(
    ("words", "seconds"),
    [
        ([], 10 + 189 * 2 + 3 * 6),
        (["training.epochs=1"], 10 + 63 * 2 + 6),
        (["training.evaluate=no"], 10 + 189 * 2),
        (["training.evaluate=50"], 10 + 189 * 2 + 3 * 6),
        (["training.max_steps=20"], 10 + 20 * 2),
        (["start={checkpoint: x, step: 0.8}", "training.max_steps=20"], 10 + 4 * 2),
        (["start={checkpoint: x, step: 63}"], 10 + 126 * 2 + 2 * 6),
        (["start.adapter=x", "training.max_steps=0"], 10),
    ],
)
def test_a_run_to_come(tmp_path: Path, words: list[str], seconds: float) -> None:
    write_sweep(tmp_path)
    recipe = load_recipe(tmp_path / "base.yaml", words).recipe
    assert Cost(10.0, 2.0, 6.0, 2000).of_run(recipe) == seconds


def test_a_path_to_come(tmp_path: Path) -> None:
    write_sweep(tmp_path)
    path = "path={vary: method.threshold, schedule: {start: 0, stop: 1e-3, num: 3}, epochs: 1}"
    loaded = load_recipe(tmp_path / "base.yaml", [path, "training.evaluate=no"])
    assert Cost(10.0, 2.0, 6.0, 2000).of_path(loaded) == 10 + (189 + 2 * 63) * 2 + 3 * 2 * 6


def test_kinds_of_runs(tmp_path: Path) -> None:
    for seed, seconds in enumerate((50.0, 60.0, 90.0)):
        write_report(tmp_path / f"a{seed}", method="lora", seed=seed, seconds=seconds)
    write_report(tmp_path / "b", method="lora", task="cola", seconds=9.0)
    write_report(tmp_path / "c", method="lora", status="failed", seconds=1.0)
    costs = Costs.under(tmp_path)
    same = report_of(method="lora", seed=9).recipe
    other_method = report_of(method="sora").recipe
    unknown = report_of(method="lora", task="sst2").recipe
    for recipe in (same, other_method):
        cost = present(costs.find(recipe))
        assert cost.step == 60.0 / 40
    assert costs.find(unknown) is None
