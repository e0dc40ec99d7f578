"""The candidates without a rate of the grid: when a rate is lowered, and that it then falls."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sora_cli.recipe.load import load_recipe
from tools.rates import others
from tools.rates.others import Candidate, Lowering, train


@pytest.mark.parametrize(
    ("losses", "falls"),
    [
        ([1.0, 0.9, 0.8, 0.7], []),
        ([1.0, 0.9, 0.96], [2]),  # a spike
        ([1.0, 1.02, 1.03, 1.04], [2]),  # a plateau; then the rate is left for one check
        ([1.0, 1.02, 1.03, 1.04, 1.04, 1.04], [2, 4]),
        ([1.0, 1.2, 1.2, 1.2], [1, 3]),
        ([1.0, math.nan], [1]),
    ],
)
def test_a_rate_falls_after_a_spike_or_a_plateau(losses: list[float], falls: list[int]) -> None:
    rows: Any = SimpleNamespace()
    lowering = Lowering(rows, 1)
    assert [n for n, loss in enumerate(losses) if lowering.must_fall(loss)] == falls


def test_a_lowered_rate_is_the_optimisers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rates of a short run whose first check lowers: a third of the schedule's from there on."""
    rates: list[float] = []
    monkeypatch.setattr(Lowering, "must_fall", lambda self, _: self.trainer.state.global_step == 4)
    step_end = Lowering.on_step_end

    def noted(self: Lowering, *args: Any, **kwargs: Any) -> None:
        assert self.trainer is not None
        rates.append(self.trainer.optimizer.param_groups[0]["lr"])
        step_end(self, *args, **kwargs)

    monkeypatch.setattr(Lowering, "on_step_end", noted)
    monkeypatch.setattr(others, "_CHECKS", 5)
    words = ["method.name=lora", "method.r=2", "data.max_train_rows=300", "training.epochs=5"]
    words += ["data.selection=train-rows", "data.selection_rows=40", "training.max_steps=10"]
    words += ["training.schedule=constant", "training.warmup=0"]
    loaded = load_recipe(Path("recipes/offline/digits.yaml"), words)
    one = train(loaded, Candidate("lowered", 1e-3, "constant", lowers=True))
    assert one["lowered"] == [4]
    assert rates == pytest.approx([1e-3] * 4 + [1e-3 / 3] * 6)
    assert 0 <= one["validation"] <= 1
