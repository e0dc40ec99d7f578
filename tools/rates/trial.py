"""Train a prepared model for a few steps at a learning rate, score it, and restore it.

The rows that score a trial are held out of the training rows, and are training rows again
afterwards: no row that chooses a size, tests or is reported takes part.
"""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sora_cli.recipe.recipe import Recipe
from sora_cli.run.encode import encode
from sora_cli.run.micro_batch import left_as_it_was
from sora_cli.run.prepare import Prepared
from sora_cli.tasks.base import Encoded
from sora_cli.train.checkpoint.files import load_trained, trained_tensors
from sora_cli.train.fit import fit
from sora_cli.train.trainer import build_scorer, build_trainer

NO_FILES = {"keep_checkpoints": [], "checkpoint": "no", "evaluate": "no", "loggers": []}
"""Options of `training` with which a run writes nothing."""


@dataclass(frozen=True)
class Trial:
    """A trial of a learning rate.

    Attributes:
        steps: optimiser steps of a whole schedule, its warm-up and decay included.
        losses: training loss of each step, on rows that the model sees for the first time as long
            as the steps are less than an epoch.
        held: mean losses on each block of the rows held out; NaN if the loss is not finite.
    """

    learning_rate: float
    steps: int
    losses: tuple[float, ...]
    held: tuple[float, ...]

    @property
    def loss(self) -> float:
        """The mean loss on the rows held out; NaN if it, or a step, is not finite."""
        return float(np.mean(self.held)) if self.finite else math.nan

    @property
    def finite(self) -> bool:
        """True if every loss is finite."""
        return bool(np.isfinite([*self.losses, *self.held]).all())


class Trials:
    """Trials of learning rates on one prepared model, which is restored after each.

    All trials train on the same batches and are scored on the same rows.

    Args:
        ready: right after `prepare`.
        held: number of training rows that score.
        blocks: number of blocks that the scores are means of.
    """

    def __init__(self, recipe: Recipe, ready: Prepared, held: int, blocks: int = 4) -> None:
        self._recipe, self._ready = recipe, ready
        rows, origin = ready.rows.train, ready.rows.origin(ready.rows.train)
        order = np.random.default_rng(recipe.training.seed).permutation(len(rows))
        parts = [np.sort(part).tolist() for part in np.array_split(order[:held], blocks)]
        others = np.sort(order[held:]).tolist()
        self.train: Encoded = encode(
            ready.task, ready.base, rows.select(others), origin.of(others), training=True
        )
        self.judges = [
            encode(ready.task, ready.base, rows.select(part), origin.of(part)) for part in parts
        ]
        self._begun = trained_tensors(ready.base.model, ready.method)

    def at(self, learning_rate: float, steps: int) -> Trial:
        """Train for a whole schedule of few steps, score, and restore the untrained model."""
        ready = self._ready
        recipe = _short(self._recipe, learning_rate, steps)
        with left_as_it_was(ready.base.model), tempfile.TemporaryDirectory() as scratch:
            trainer = build_trainer(recipe, ready.task, ready.base, Path(scratch), train=self.train)
            done = fit(trainer, ready.method, ready.layers, Path(scratch))
            scorer = build_scorer(recipe, ready.task, ready.base, Path(scratch))
            held = [ready.task.loss(scorer.predictions_of(part, [])) for part in self.judges]
        load_trained(ready.base.model, ready.method, self._begun)
        total = self._recipe.training.total_steps(len(ready.train.lengths))
        ready.method.begin(ready.layers, total_steps=total)
        losses = [one["loss"] for one in done.history if "loss" in one]
        if done.non_finite:
            losses.append(math.nan)
        return Trial(learning_rate, steps, tuple(losses), tuple(held))


def _short(recipe: Recipe, learning_rate: float, steps: int) -> Recipe:
    """Return the recipe at another rate, with few steps and without files."""
    warmup = recipe.training.warmup
    total = recipe.training.max_steps
    update = {
        **NO_FILES, "learning_rate": learning_rate, "max_steps": steps, "keep_best": False,
        "early_stopping": None, "logging_steps": 1, "non_finite": "skip", "compact_every": None,
        "compile": False,
    }  # fmt: skip
    if warmup >= 1 and total:
        update["warmup"] = warmup / total
    training = recipe.training.model_copy(update=update)
    return recipe.model_copy(update={"training": training})
