"""Checkpoints: safetensors and JSON only, complete or absent; the best and the last are kept.

A checkpoint `checkpoints/step-000120/` holds `state.safetensors` (trained parameters, the method's
state, optimiser moments, random-number states) and `state.json` (trainer state, schedule, optimiser
options). It is written under a temporary name and renamed when complete.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Trainer, TrainerCallback

from methods.base import AdapterMethod, LowRankLinear
from sora_cli.atomic import new_directory, write_text_atomic

STATE_FILE = "state.safetensors"
"""Trained parameters and the method's state, in a checkpoint or a path's stage."""


@dataclass(frozen=True)
class Best:
    """The best evaluation so far."""

    step: int
    metric: float


class Checkpoints(TrainerCallback):  # type: ignore[misc]
    """Writes checkpoints at the recipe's cadence, tracks the best one and brings it back.

    Only states the method would deliver (`AdapterMethod.deliverable`) can be the best, and only
    they count for early stopping: AdaLoRA's early epochs score well with ranks above the budget.
    """

    def __init__(
        self,
        trainer: Trainer,
        method: AdapterMethod,
        layers: Mapping[str, LowRankLinear],
        folder: Path,
    ) -> None:
        self.trainer, self.method, self.layers, self.folder = trainer, method, layers, folder
        self.best: Best | None = None
        block = trainer.recipe.training
        self._cadence, self._keep_best = block.checkpoint, block.keep_best
        self._patience, self._worse = block.early_stopping, 0
        shutil.rmtree(folder, ignore_errors=True)

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any
    ) -> None:
        score = (metrics or {}).get(f"eval_{args.metric_for_best_model}")
        if score is None or not self.method.deliverable(self.layers):
            return
        sign = 1 if args.greater_is_better else -1
        best = self.best
        if np.isfinite(score) and (best is None or sign * score > sign * best.metric):
            self.best, self._worse = Best(state.global_step, float(score)), 0
            if self._keep_best:
                self._save(state)
            return
        self._worse += 1
        if self._patience is not None and self._worse >= self._patience:
            control.should_training_stop = True

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if isinstance(self._cadence, int) and state.global_step % self._cadence == 0:
            self._save(state)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._cadence == "epoch":
            self._save(state)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._cadence != "no":
            self._save(state)

    def restore_best(self) -> Best | None:
        """Give the model the best checkpoint's weights; None where it keeps the last ones."""
        if not self._keep_best:
            return None
        if self.best is None or self.best.step == self.trainer.state.global_step:
            return self.best
        tensors = load_file(self._path(self.best.step) / STATE_FILE)
        load_trained(self.trainer.model, self.method, tensors)
        return self.best

    def _save(self, state: Any) -> None:
        path = self._path(state.global_step)
        if not path.exists() and state.is_world_process_zero:
            write_checkpoint(path, self.trainer, self.method)
        keep = {path, *([self._path(self.best.step)] if self.best and self._keep_best else [])}
        for old in sorted(self.folder.glob("step-*")):
            if old not in keep and state.is_world_process_zero:
                shutil.rmtree(old)

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:06d}"


def write_checkpoint(path: Path, trainer: Trainer, method: AdapterMethod) -> None:
    """Everything a run needs to go on, in one directory."""
    tensors = trained_tensors(trainer.model, method)
    optimizer = trainer.optimizer.state_dict()
    moments: dict[str, Any] = {}
    for index, entry in optimizer["state"].items():
        for key, value in entry.items():
            moments[f"optimizer.{index}.{key}"] = torch.as_tensor(value)
    tensors.update(moments)
    tensors["random.torch"] = torch.get_rng_state()
    state = {
        "trainer": trainer.state.__dict__ | {"stateful_callbacks": {}},
        "optimizer": optimizer["param_groups"],
        "schedule": {
            k: v for k, v in trainer.lr_scheduler.state_dict().items() if k != "lr_lambdas"
        },
    }
    with new_directory(path) as folder:
        save_file({n: _plain(t) for n, t in tensors.items()}, folder / STATE_FILE)
        write_text_atomic(folder / "state.json", json.dumps(state, indent=1, default=str))


def trained_tensors(model: torch.nn.Module, method: AdapterMethod) -> dict[str, Tensor]:
    """Copies of the trained parameters ("model.*") and of the method's state ("method.*")."""
    tensors = {f"method.{n}": _plain(t) for n, t in method.state_dict().items()}
    trained = {f"model.{n}": _plain(p) for n, p in model.named_parameters() if p.requires_grad}
    return {**trained, **tensors}


def load_trained(
    model: torch.nn.Module, method: AdapterMethod, tensors: Mapping[str, Tensor]
) -> None:
    """Give a model and its method what `trained_tensors` returned.

    Factors take the stored rank, which compaction may have changed since or before.
    """
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in _part(tensors, "model.").items():
            parameter = parameters[name]
            if parameter.shape == tensor.shape:
                parameter.copy_(tensor)
            else:
                parameter.data = tensor.to(parameter)
    method.load_state_dict(_part(tensors, "method."))


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().clone()
