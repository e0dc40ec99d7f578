"""The switches of training: where a run asks them, and the order of a step."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer
from transformers import Trainer

from methods.sora import Sora
from sora_cli.app import run
from sora_cli.recipe.recipe import Recipe
from sora_cli.train import switches
from sora_cli.train.switch import Context, Switch
from sora_cli.train.trainer import AdapterTrainer
from tests.helpers_models import tiny_bert
from tests.helpers_runs import train, write_recipe


class Recording(Switch):
    """A switch that is on if the recipe's label asks for it, and counts its calls."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()

    def is_on(self, recipe: Recipe) -> bool:
        return recipe.output.label == "recording"

    def check_recipe(self, recipe: Recipe) -> None:
        self.calls["recipe"] += 1

    def check_machine(self, recipe: Recipe) -> None:
        self.calls["machine"] += 1

    def check_model(self, recipe: Recipe, model: Any) -> None:
        self.calls["model"] += 1

    def arguments(self, recipe: Recipe) -> dict[str, Any]:
        return {"torch_empty_cache_steps": 7}

    def in_passes(self, model: Any) -> Context:
        return self._counted("passes")

    def in_loss(self, model: Any, device: str) -> Context:
        return self._counted(f"loss on {device}")

    @contextlib.contextmanager
    def in_training(self, trainer: Any) -> Iterator[Callable[[], Context]]:
        assert trainer.args.torch_empty_cache_steps == 7
        with self._counted("training"):
            yield lambda: self._counted("micro-batch")

    @contextlib.contextmanager
    def _counted(self, name: str) -> Iterator[None]:
        self.calls[name] += 1
        yield
        self.calls[f"after {name}"] += 1


def test_a_run_asks_each_switch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on = Recording()
    monkeypatch.setattr(switches, "SWITCHES", (on, *switches.SWITCHES))
    training = {"max_steps": 3, "batch_size": 4, "gradient_accumulation": 2, "evaluate": 2}
    recipe = write_recipe(tmp_path, tiny_bert(num_labels=2), training=training)
    train(recipe, f"output.dir={tmp_path}/off")
    assert not on.calls
    train(recipe, f"output.dir={tmp_path}/on", "output.label=recording")
    checks = {"recipe": 1, "machine": 1, "model": 1}
    entered = {"training": 1, "micro-batch": 6, "loss on cpu": 6}  # none in evaluation
    assert on.calls == checks | entered | {f"after {name}": n for name, n in entered.items()}
    on.calls.clear()
    assert run(["train", str(recipe), "output.label=recording", "--dry-run"]) == 0
    assert on.calls["passes"] == on.calls["after passes"] > 0
    assert on.calls["loss on cpu"] > 0


def test_the_order_of_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order that the comment in `AdapterTrainer.training_step` states."""
    events: list[str] = []

    def noting(owner: Any, name: str, event: str) -> None:
        inner = getattr(owner, name)

        def noted(*args: Any, **kwargs: Any) -> Any:
            events.append(event)
            return inner(*args, **kwargs)

        monkeypatch.setattr(owner, name, noted)

    noting(AdapterTrainer, "compute_loss", "loss")
    noting(Sora, "penalty", "penalty")
    noting(torch.Tensor, "backward", "backward")
    noting(torch.nn.utils, "clip_grad_norm_", "clip")
    noting(AcceleratedOptimizer, "step", "optimiser")
    noting(Sora, "after_step", "method")
    noting(torch.optim.lr_scheduler.LambdaLR, "step", "rate")
    noting(torch.nn.Module, "zero_grad", "zero")
    noting(Trainer, "_maybe_log_save_evaluate", "log, evaluate")
    training = {"max_steps": 2, "batch_size": 4, "gradient_accumulation": 2, "max_grad_norm": 1.0}
    recipe = write_recipe(tmp_path, tiny_bert(num_labels=2), training=training)
    train(recipe, f"output.dir={tmp_path}/run")
    first = events.index("log, evaluate")
    second = events.index("log, evaluate", first + 1)
    one = ["loss", "penalty", "backward"]
    step = [*one, *one, "clip", "optimiser", "method", "rate", "zero", "log, evaluate"]
    assert events[first + 1 : second + 1] == step
