"""One progress bar for training and one line per evaluation, both on stderr (core.progress)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from tqdm import tqdm
from transformers import ProgressCallback, TrainerCallback

from sora_cli.core.verbosity import quiet
from sora_cli.train.callback import MethodCallback
from sora_cli.train.log import RunLog

_RECENT = 3  # logged losses whose mean is compared with the loss of a constant answer
_NEAR = 0.97
"""A loss above this share of a constant answer's is no better (docs/results/rates.md)."""


class RunProgress(ProgressCallback):  # type: ignore[misc]
    """Trainer's progress bar with the loss and the number of live components, on stderr.

    Args:
        constant: returns the loss of a constant answer, if there is one; half-way a warning is
            printed if the training loss is no better.
    """

    def __init__(
        self, hooks: MethodCallback, metric: str, constant: Callable[[], float | None]
    ) -> None:
        super().__init__()
        self.training_bar: Any = None
        self.prediction_bar: Any = None
        self.hooks, self.metric = hooks, metric
        self._constant: Callable[[], float | None] | None = constant

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Open the bar."""
        self.current_step = 0
        if state.is_world_process_zero:
            self.training_bar = tqdm(total=state.max_steps, desc="training", dynamic_ncols=True)

    def close(self) -> None:
        """Close the bars; the terminal's cursor is then at the start of a line."""
        for bar in (self.prediction_bar, self.training_bar):
            if bar is not None:
                bar.close()
        self.prediction_bar = self.training_bar = None

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Show the latest loss in the bar, and print a line for each evaluation."""
        if self.training_bar is None or not logs:
            return
        if "loss" in logs:
            postfix = {"loss": f"{logs['loss']:.3f}"}
            if self.hooks.method.config.adapts_rank and self.hooks.live:
                postfix["components"] = str(self.hooks.live[-1])
            self.training_bar.set_postfix(postfix, refresh=False)
            self._warn_of_constant(args, state)
        score = logs.get(f"eval_{self.metric}")
        if score is not None:
            live = f", {self.hooks.live[-1]} components alive" if self.hooks.live else ""
            line = f"epoch {state.epoch:.1f}: {self.metric} {score:.4f}{live}"
            write_line(line)

    def _warn_of_constant(self, args: Any, state: Any) -> None:
        """Warn once, at the first log of the second half, of a loss like a constant answer's."""
        if self._constant is None or 2 * state.global_step < state.max_steps:
            return
        constant, self._constant = self._constant(), None
        losses = [one["loss"] for one in state.log_history if "loss" in one]
        recent = float(np.mean(losses[-_RECENT:]))
        if len(losses) >= _RECENT and constant is not None and recent > _NEAR * constant:
            write_line(
                f"WARNING: after {state.global_step:,} of {state.max_steps:,} steps the loss "
                f"({recent:.3g}) is that of a constant answer ({constant:.3g}): the model is not "
                f"learning; another learning rate than {args.learning_rate:g} may help "
                "(training.learning_rate=auto: the rule of thumb)"
            )

    def on_prediction_step(
        self, args: Any, state: Any, control: Any, eval_dataloader: Any = None, **kwargs: Any
    ) -> None:
        """Advance the bar of an evaluation."""
        if self.prediction_bar is None and state.is_world_process_zero:
            self.prediction_bar = tqdm(
                total=len(eval_dataloader), desc="evaluating", leave=False, dynamic_ncols=True
            )
        if self.prediction_bar is not None:
            self.prediction_bar.update(1)


def write_line(line: str) -> None:
    """Print a line above the bars, unless the command is quiet."""
    if not quiet():
        tqdm.write(line, file=sys.stderr)  # a disabled bar has no file


class SavedHistory(TrainerCallback):  # type: ignore[misc]
    """Saves a run's report at each evaluation."""

    def __init__(self, log: RunLog) -> None:
        self.log = log

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note steps and history, and save the report."""
        self.log.note_progress(state)
        self.log.save()


@contextmanager
def following(log: RunLog, trainer: Any) -> Iterator[None]:
    """Copy a Trainer's steps and history into the report, even if training ends with an error.

    The report is also saved at each evaluation, so that the run can be watched.
    """
    trainer.add_callback(SavedHistory(log))
    try:
        yield
    finally:
        log.note_progress(trainer.state)
