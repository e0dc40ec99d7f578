"""Steps and learning rates told before a run are those of the run."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest

from methods.base import Layers, StepInfo
from methods.sora import Sora
from sora_cli.recipe.load import load_recipe
from sora_cli.run.prepare import prepare
from sora_cli.train.steps import count_steps, learning_rates
from sora_cli.train.trainer import training_arguments
from tests.helpers_models import tiny_bert
from tests.helpers_runs import train, write_recipe


@pytest.mark.parametrize(
    "training",
    [
        {"schedule": "linear", "warmup": 0.3},
        {"schedule": "cosine", "warmup": 3, "gradient_accumulation": 4},
        {"schedule": "polynomial", "epochs": 1.4},
        {"schedule": "constant_with_warmup", "max_steps": 9},
    ],
    ids=lambda options: options["schedule"],
)
def test_as_in_the_run(
    training: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[StepInfo] = []
    after_step = Sora.after_step

    def recorded(self: Sora, layers: Layers, info: StepInfo) -> None:
        seen.append(info)
        after_step(self, layers, info)

    monkeypatch.setattr(Sora, "after_step", recorded)
    options = {"epochs": 2, "batch_size": 8, "learning_rate": 0.01, **training}
    method = {"name": "sora", "r_max": 2, "gate_lr": 0.05}
    recipe = write_recipe(
        tmp_path, tiny_bert(num_labels=2), rows=45, training=options, method=method
    )
    loaded = load_recipe(recipe)
    ready = prepare(loaded.recipe, contextlib.nullcontext)
    args = training_arguments(loaded.recipe, tmp_path, "accuracy", evaluates=True)
    steps = count_steps(args, loaded.recipe.training, 45)
    rates = learning_rates(args, ready.method, ready.layers, steps.total)
    assert steps.per_epoch == 6
    assert steps.rows_per_pass == 8 // options.get("gradient_accumulation", 1)

    train(recipe)
    assert len(seen) == steps.total
    for step, info in enumerate(seen):
        assert info.total_steps == steps.total
        for group in ("factors", "gates"):
            assert info.learning_rates[group] == pytest.approx(rates[group][step], abs=1e-12)
