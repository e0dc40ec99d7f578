"""Training from start to end: assemble the parts of a run, and run the loop."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from transformers import ProgressCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from methods.base import AdapterMethod, Layers
from sora_cli.core.interruption import deferred
from sora_cli.report import Compaction
from sora_cli.train.callback import MethodCallback, attach
from sora_cli.train.checkpoint.files import Checkpoint, load_parameters, with_prefix
from sora_cli.train.checkpoint.places import FOLDER
from sora_cli.train.checkpoint.trainer_internals import mean_loss
from sora_cli.train.checkpoint.writer import Checkpoints
from sora_cli.train.compaction import Compactor
from sora_cli.train.compiled import forget
from sora_cli.train.loggers import logged
from sora_cli.train.non_finite import guard_steps
from sora_cli.train.out_of_memory import in_steps
from sora_cli.train.pace import Pace
from sora_cli.train.progress import RunProgress, write_line
from sora_cli.train.switches import in_training
from sora_cli.train.trainer import AdapterTrainer


@dataclass(frozen=True)
class Fit:
    """The results of a finished training, apart from the trained model itself."""

    steps: int
    history: list[dict[str, Any]]  # losses, learning rates and evaluations by step
    live: list[int]  # components alive after each optimiser step
    skipped: int  # optimiser steps skipped by mixed precision, or as not finite
    non_finite: list[int]  # steps skipped as not finite, counted from 1
    best_step: int | None  # step of the model's present weights; None: the last step
    best_metric: float | None
    compaction: Compaction | None  # removals; None: `compact_every` is off
    first_step: int  # 0, or the step of the resumed checkpoint


def fit(
    trainer: AdapterTrainer,
    method: AdapterMethod,
    layers: Layers,
    output: Path,
    *,
    identity: Mapping[str, Any] | None = None,
    resumed: Checkpoint | None = None,
    forked: bool = False,
) -> Fit:
    """Train a model; it ends with the weights of the best checkpoint, or of the last step.

    Args:
        output: the run's directory.
        identity: stored in checkpoints; a run that resumes from them must have the same.
        resumed: the checkpoint to resume from.
        forked: `resumed` belongs to another run, which took its steps with other method options.

    Raises:
        Interrupted: a signal arrived; the last step has a checkpoint, unless the recipe wants none.
    """
    block = trainer.recipe.training
    # callbacks run in the order in which they are added: a checkpoint comes after the removals
    # of its step
    hooks: MethodCallback = attach(trainer, method, layers, head_lr=block.head_learning_rate)
    guard = guard_steps(
        trainer, hooks, policy=block.non_finite, last_checkpoint=lambda: checkpoints.last
    )
    compactor = _add_compactor(trainer, method, layers)
    with deferred() as deferral:
        checkpoints = Checkpoints(
            trainer,
            method,
            layers,
            output / FOLDER,
            identity=identity or {},
            deferral=deferral,
            resumed=resumed,
            forked=forked,
        )
        trainer.add_callback(checkpoints)
        trainer.checkpoints, trainer.resumed = checkpoints, resumed
        trainer.forked = hooks.forked = forked
        switched = in_training(trainer.recipe, trainer)
        with _progress(trainer, hooks), logged(trainer, hooks), switched as contexts:
            trainer.step_contexts = contexts
            _run(trainer, method, layers, hooks)
    best = checkpoints.restore_best()
    if best is not None and best.step != trainer.state.global_step:
        trainer.last = None
    return Fit(
        steps=trainer.state.global_step,
        history=trainer.state.log_history,
        live=hooks.live,
        skipped=hooks.skipped,
        non_finite=guard.skipped,
        best_step=best.step if best else None,
        best_metric=best.metric if best else None,
        compaction=compactor.record if compactor else None,
        first_step=resumed.step if resumed else 0,
    )


def _run(
    trainer: AdapterTrainer, method: AdapterMethod, layers: Layers, hooks: MethodCallback
) -> None:
    """Take all steps, or the steps that remain."""
    resumed = trainer.resumed
    if trainer.recipe.training.max_steps == 0:
        method.begin(layers, total_steps=0)
        return
    if resumed is None:
        with in_steps(trainer):
            trainer.train()
        return
    load_parameters(trainer.model, resumed.tensors)
    hooks.method_state = with_prefix(resumed.tensors, "method.")
    if not resumed.finished:
        with in_steps(trainer):
            trainer.train(resume_from_checkpoint=str(resumed.path))
        # Trainer divides all steps' loss by the number of steps since the resumption
        trainer.state.log_history[-1]["train_loss"] = mean_loss(trainer)
        return
    trainer.state = TrainerState.load_from_json(str(resumed.path / TRAINER_STATE_NAME))
    method.begin(layers, total_steps=trainer.state.max_steps)
    method.load_state_dict(hooks.method_state)
    trainer.checkpoints.restore_progress(resumed)


def _add_compactor(
    trainer: AdapterTrainer, method: AdapterMethod, layers: Layers
) -> Compactor | None:
    """Add the compactor ahead of the checkpoints, so that they omit removed components."""
    block = trainer.recipe.training
    if block.compact_every is None:
        return None
    only_count = block.compact_only_count
    compactor = Compactor(
        trainer,
        method,
        layers,
        every=block.compact_every,
        only_count=only_count,
        after_removal=forget if block.compile else lambda: None,
    )
    trainer.add_callback(compactor)
    return compactor


@contextmanager
def _progress(trainer: AdapterTrainer, hooks: MethodCallback) -> Iterator[None]:
    """Show our bar instead of Trainer's; after an error, close it before the message."""
    assert trainer.train_rows is not None
    constant = partial(trainer.task.constant_loss, trainer.train_rows)
    progress = RunProgress(hooks, trainer.task.best, constant)
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(progress)
    Pace(write_line).watch(trainer)
    try:
        yield
    finally:
        progress.close()
