"""Stop the run at a loss or gradient that is not finite, or leave out and count its step.

`guard_steps(trainer, hooks, ...)` looks once per optimiser step at the losses of its micro-batches
and at the gradient norm, which the trainer has computed anyway, and synchronises one bit with the
device. All processes get the same answer. Infinite gradients under a gradient scaler (fp16) are
left to the scaler, as long as its scale causes them.

A step left out changes no parameter, no optimiser moment and nothing in the method. Learning rate
and step count go on, and logged losses are means over the steps that were taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, final

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from methods.torch_internals import foreach_norm
from sora_cli.core.errors import SoraError
from sora_cli.train.callback import MethodCallback
from sora_cli.train.checkpoint.resumable import Resumable
from sora_cli.train.checkpoint.trainer_internals import first_step, running_loss
from sora_cli.train.diagnosis import Pass, find_origin

IN_A_ROW = 10
"""Bad steps in a row that stop a run even if it leaves out bad steps."""

Policy = Literal["stop", "skip"]


def guard_steps(
    trainer: Trainer,
    hooks: MethodCallback,
    *,
    policy: Policy,
    last_checkpoint: Callable[[], Path | None] = lambda: None,
) -> FiniteGuard:
    """Watch a trainer's steps; call it after `attach` and before `trainer.train()`.

    Args:
        hooks: the result of `attach`; it counts the steps left out.
        policy: "stop" the run at a bad step, or leave the step out ("skip").
        last_checkpoint: returns the directory of the last checkpoint, for the message of a stop.
    """
    guard = FiniteGuard(trainer, hooks, policy=policy, last_checkpoint=last_checkpoint)
    trainer.add_callback(guard)
    guard.wrap()
    return guard


@final
class FiniteGuard(TrainerCallback, Resumable):  # type: ignore[misc]
    """The callback that checks every step's losses and gradient norm.

    Attributes:
        skipped: steps left out, counted from 1 as in the history.
    """

    def __init__(
        self,
        trainer: Trainer,
        hooks: MethodCallback,
        *,
        policy: Policy,
        last_checkpoint: Callable[[], Path | None],
    ) -> None:
        self.trainer, self.hooks, self.policy = trainer, hooks, policy
        self.skipped: list[int] = []
        self._last_checkpoint = last_checkpoint
        self._in_a_row = 0
        self._batches: list[Pass] = []  # of the current step
        self._norm: Any = None  # of the current step's gradient, before clipping
        self._sum = torch.zeros(())  # of the losses not yet logged, before the current step
        self._logged = 0  # step of the last logged loss

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Forget the previous step; save the sum of losses in case this step is left out."""
        self._batches, self._norm = [], None
        # Trainer adds each micro-batch's loss to its sum before the step is checked
        if self.policy == "skip":
            self._sum = running_loss(self.trainer).clone()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check the step's losses and gradient; stop the run or leave the step out."""
        losses = [batch.loss for batch in self._batches]
        norm = _norm_of(self.trainer.model) if self._norm is None else self._norm
        finite = self._all_finite([*losses, torch.as_tensor(norm)])
        if finite or (self._scales() and self._all_finite(losses)):
            self._in_a_row = 0
            return
        step = state.global_step + 1
        self._in_a_row += 1
        if self.policy == "stop" or self._in_a_row >= IN_A_ROW:
            raise self._error(step)
        self.skipped.append(step)
        self._leave_out()

    def progress(self) -> dict[str, Any]:
        """Return the steps left out so far, and the length of the current series of bad steps."""
        return {
            "skipped": list(self.skipped),
            "in_a_row": self._in_a_row,
            "logged": self._logged,
        }

    def restore(self, progress: dict[str, Any]) -> None:
        """Continue from the counts of `progress`."""
        self.skipped, self._in_a_row = list(progress["skipped"]), progress["in_a_row"]
        self._logged = progress["logged"]

    def wrap(self) -> None:
        """Record the trainer's passes; wrap its functions that see the norm and the mean losses."""
        trainer = self.trainer
        clip, log = trainer.accelerator.clip_grad_norm_, trainer.log

        def clip_grad_norm_(*args: Any, **kwargs: Any) -> Any:
            self._norm = clip(*args, **kwargs)
            return self._norm

        def log_taken(logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
            self._correct(logs)
            log(logs, *args, **kwargs)

        trainer.note_pass = lambda batch: self._batches.append(batch)
        trainer.log = log_taken
        trainer.accelerator.clip_grad_norm_ = clip_grad_norm_

    def _all_finite(self, numbers: list[Tensor]) -> bool:
        """Return True if the numbers of all processes are finite; this call waits for the GPU."""
        device = self.trainer.args.device
        finite = torch.stack([n.detach().isfinite().to(device) for n in numbers]).all()
        if self.trainer.args.world_size > 1:
            finite = self.trainer.accelerator.gather(finite.int()).min()
        return bool(finite)

    def _scales(self) -> bool:
        """Return True if a gradient scaler may have made a gradient infinite.

        The scaler then skips the step by itself and lowers its scale.
        """
        scaler = self.trainer.accelerator.scaler
        # below 1 the scale has been halved many times, so the gradient itself is infinite
        return scaler is not None and scaler.is_enabled() and scaler.get_scale() >= 1

    def _leave_out(self) -> None:
        self.trainer.model.zero_grad()  # optimisers leave parameters without a gradient alone
        running_loss(self.trainer).copy_(self._sum)
        self.hooks.skip_step()

    def _correct(self, logs: dict[str, float]) -> None:
        """Correct the mean losses: Trainer divides by all steps, including those left out."""
        now, begun = self.trainer.state.global_step, first_step(self.trainer)
        for key, since in (("loss", self._logged), ("train_loss", begun)):
            left_out = sum(step > since for step in self.skipped)
            if key in logs and left_out:
                taken = now - since - left_out
                # Trainer's mean is sum / (now - since), and the sum lacks the steps left out
                logs[key] = logs[key] * (now - since) / taken if taken else math.nan
        if "loss" in logs:
            self._logged = now

    def _error(self, step: int) -> SoraError:
        origin = find_origin(self.trainer, self._batches)
        rate = self.trainer.args.learning_rate
        what, hint = f"step {step}: {origin.text}", f"training.learning_rate={rate / 2:g}"
        if origin.frozen is not None:
            hint = (
                f"the base model itself is damaged: {origin.frozen} is not finite; see model.path"
            )
        elif self.policy == "stop":
            hint += ", or leave such steps out: training.non_finite=skip"
        if self._in_a_row >= IN_A_ROW:
            what = f"step {step} is the {IN_A_ROW}th bad step in a row: {origin.text}"
        folder = self._last_checkpoint()
        where = "there is no earlier checkpoint" if folder is None else f"last checkpoint: {folder}"
        return SoraError(what, where=where, hint=hint)


def _norm_of(model: nn.Module) -> Tensor:
    """Return the gradient's norm, if the trainer did not call accelerate's clip_grad_norm_."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norm: Tensor = torch.stack(foreach_norm(gradients)).norm()
    return norm
