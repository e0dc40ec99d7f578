"""Write checkpoints during training, delete old ones, and restore the best.

A checkpoint is written after the log and the evaluation of its step. At an epoch's last step it is
written only when the epoch has ended, so the rest of the run is the same whether or not it was
stopped there. The best and the last checkpoint are kept, and the steps that
`training.keep_checkpoints` names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import Trainer, TrainerCallback

from methods.base import AdapterMethod, LowRankLinear
from sora_cli.core.atomic import remove_directory, tidy
from sora_cli.core.interruption import Deferral, Interrupted
from sora_cli.train.checkpoint.files import (
    Checkpoint,
    load_trained,
    read_checkpoint,
    trained_tensors,
    write_checkpoint,
)
from sora_cli.train.checkpoint.places import (
    checkpoint_path,
    checkpoint_paths,
    clear_checkpoints,
    is_own,
)
from sora_cli.train.checkpoint.resumable import Resumable
from sora_cli.train.checkpoint.trainer_internals import (
    per_process,
    restore_losses,
    run_state,
    state_tensors,
)


@dataclass(frozen=True)
class Best:
    """The best evaluation so far."""

    step: int
    metric: float


class Checkpoints(TrainerCallback, Resumable):  # type: ignore[misc]
    """Writes checkpoints at the recipe's intervals; keeps and restores the best.

    Only states that the method would deliver (`AdapterMethod.deliverable`) can be the best, and
    only these count for early stopping: AdaLoRA's early epochs score well with ranks above the
    budget.

    Args:
        folder: for the run's checkpoints; emptied, unless the run resumes from one of them.
        identity: stored in each checkpoint; a run that resumes from it must have the same.
        deferral: records a signal to stop.
        resumed: the checkpoint to resume from.
        forked: `resumed` belongs to another run, so nothing before it can be this run's best.
    """

    def __init__(
        self,
        trainer: Trainer,
        method: AdapterMethod,
        layers: Mapping[str, LowRankLinear],
        folder: Path,
        *,
        identity: Mapping[str, Any],
        deferral: Deferral,
        resumed: Checkpoint | None = None,
        forked: bool = False,
    ) -> None:
        self.trainer, self.method, self.layers, self.folder = trainer, method, layers, folder
        self.identity, self.deferral, self.resumed = identity, deferral, resumed
        self.forked = forked
        self.best: Best | None = None
        self.finished = False
        self.last: Path | None = resumed.path if resumed and not forked else None
        block = trainer.recipe.training
        self._cadence, self._keep_best = block.checkpoint, block.keep_best
        self._kept = block.kept_steps(block.total_steps(len(trainer.train_rows.lengths)))
        self._patience, self._worse = block.early_stopping, 0
        self._epoch_steps = block.steps_per_epoch(len(trainer.train_rows.lengths))
        self._due = self._epoch_over = False
        self._signal = 0  # number of the signal to stop, agreed by all processes; 0: none
        if trainer.is_world_process_zero():
            _clean(folder, everything=resumed is None or forked)
            if resumed is not None and not forked:  # a kill may have come before this
                self._delete_others(resumed.path, resumed.run["best_checkpoint"])

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Restore losses and counters if the run is resumed."""
        if self.resumed is None:
            return
        state.compute_steps(args, state.max_steps)  # `evaluate` or `logging_steps` may have changed
        processes = self.resumed.run["processes"]
        restore_losses(self.trainer, processes[min(args.process_index, len(processes) - 1)])
        self.restore_progress(self.resumed)

    def restore_progress(self, checkpoint: Checkpoint) -> None:
        """Set the counters of every part of the run from a checkpoint."""
        counters = checkpoint.run["progress"]
        for callback in self._resumables():
            own = callback is self and self.forked
            if type(callback).__name__ in counters and not own:
                callback.restore(counters[type(callback).__name__])

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note that the epoch has not ended."""
        self._epoch_over = False

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any
    ) -> None:
        """Note the best score, and stop early if the recipe asks for early stopping."""
        self._note_signal()
        self._request(state, control, due=False)
        score = (metrics or {}).get(f"eval_{args.metric_for_best_model}")
        if score is None or not self.method.deliverable(self.layers):
            return
        sign = 1 if args.greater_is_better else -1
        best = self.best
        if np.isfinite(score) and (best is None or sign * score > sign * best.metric):
            self.best, self._worse = Best(state.global_step, float(score)), 0
            self._request(state, control, due=self._keep_best)
            return
        self._worse += 1
        if self._patience is not None and self._worse >= self._patience:
            control.should_training_stop = self.finished = True
            self._request(state, control, due=self._cadence != "no")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Request a checkpoint if it is due; stop if a signal came and no checkpoint is due."""
        self._note_signal()
        cadence = self._cadence
        due = isinstance(cadence, int) and state.global_step % cadence == 0
        due = due or state.global_step in self._kept
        self._request(state, control, due=due)
        if self._signal and not self._due:
            raise Interrupted(self._signal)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Request the checkpoint of an epoch's last step."""
        self._epoch_over = True
        self._note_signal()
        over = state.global_step >= state.max_steps
        self.finished = self.finished or over
        due = self._cadence == "epoch" or (over and self._cadence != "no")
        self._request(state, control, due=due)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop if a signal came; the checkpoint is written by now."""
        self._due = False
        if self._signal:
            raise Interrupted(self._signal)

    def progress(self) -> dict[str, Any]:
        """Return the best evaluation, and the number of worse evaluations since."""
        return {"best": asdict(self.best) if self.best else None, "worse": self._worse}

    def restore(self, progress: dict[str, Any]) -> None:
        """Continue from the counters of `progress`."""
        self.best = Best(**progress["best"]) if progress["best"] else None
        self._worse = progress["worse"]

    def save(self) -> None:
        """Write a checkpoint of the current state, and delete checkpoints that need not be kept."""
        trainer = self.trainer
        # every process gathers its shards and its state here; only the main one writes, below
        tensors = {**trained_tensors(trainer.model, self.method), **state_tensors(trainer)}
        processes = per_process(trainer, tensors)
        step = trainer.state.global_step
        path = checkpoint_path(self.folder, step)
        best = self.best if self._keep_best else None
        run = {
            **self.identity,
            **run_state(trainer),
            "step": step,
            "scaling": {path: layer.scaling for path, layer in self.layers.items()},
            "finished": self.finished,
            "best_checkpoint": checkpoint_path(self.folder, best.step).name if best else None,
            "progress": {type(c).__name__: c.progress() for c in self._resumables()},
            "processes": processes,
        }
        if trainer.is_world_process_zero():
            write_checkpoint(path, tensors, run, trainer.state)
            self._delete_others(path, run["best_checkpoint"])
        self.last = path
        trainer.accelerator.wait_for_everyone()

    def restore_best(self) -> Best | None:
        """Load the best checkpoint's weights; return None if the last weights stay."""
        if not self._keep_best:
            return None
        if self.best is None or self.best.step == self.trainer.state.global_step:
            return self.best
        checkpoint = read_checkpoint(checkpoint_path(self.folder, self.best.step))
        load_trained(self.trainer.model, self.method, checkpoint.tensors)
        return self.best

    def _request(self, state: Any, control: Any, *, due: bool) -> None:
        """Request a checkpoint now, or at the epoch's end if this is the epoch's last step."""
        self._due = self._due or due or (self._signal > 0 and self._cadence != "no")
        last = state.global_step % self._epoch_steps == 0 or state.global_step >= state.max_steps
        if self._due and (self._epoch_over or not last):
            control.should_save = True

    def _note_signal(self) -> None:
        """Note a signal to stop that any of the processes received."""
        self._signal = self.trainer.largest(self.deferral.received or 0)

    def _resumables(self) -> list[Resumable]:
        return [c for c in self.trainer.callback_handler.callbacks if isinstance(c, Resumable)]

    def _delete_others(self, last: Path, best: str | None) -> None:
        """Delete the checkpoints before the last one that need not be kept."""
        kept = {checkpoint_path(self.folder, number).name for number in self._kept}
        for old in checkpoint_paths(self.folder):
            if old.name < last.name and old.name not in {best, *kept} and is_own(old):
                remove_directory(old)


def _clean(folder: Path, *, everything: bool) -> None:
    """Delete an earlier run's checkpoints; unless `everything`, only unfinished files."""
    if everything:
        clear_checkpoints(folder)
    elif folder.is_dir():
        tidy(folder)
