"""Everything on the rehearsal device, and an error where a training step waits for it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer
from transformers.trainer_callback import CallbackHandler

from tests.rehearsal import fake
from tests.shared_files import ROOT

MAY_WAIT = {
    "sora_cli/train/non_finite.py": "one bit in each step: a bad step must change nothing",
    "sora_cli/model/activation_offload.py": "copies, which CUDA makes without waiting",
    "sora_cli/train/compaction.py": "the step that removes components has new shapes",
    "methods/cut.py": "the step that cuts",
    "transformers/masking_utils.py": "each forward pass asks whether its rows have padding",
}
"""The files whose waits in a step are meant or another's, each with its reason."""


@dataclass
class Watch:
    """The waits of training steps for the device.

    Attributes:
        strict: a wait in a step raises an error, unless its file is in `MAY_WAIT`.
        waits: the library's line and ours, with the operation, for each wait in a step.
        excused: the same of the waits that are meant.
        steps: number of steps watched.
    """

    strict: bool = True
    waits: list[str] = field(default_factory=list)
    excused: list[str] = field(default_factory=list)
    steps: int = 0
    in_step: bool = False

    def __call__(self, operation: Any) -> None:
        if not self.in_step:
            return
        lines = _lines()
        place = f"{' in '.join(lines)}: {operation}"
        if any(line.rpartition(":")[0] in MAY_WAIT for line in lines):
            self.excused.append(place)
            return
        self.waits.append(place)
        if self.strict:
            raise RuntimeError(f"a step waits for the device: {place}")


def _lines() -> list[str]:
    """Return the innermost line on the stack that is not torch's, and ours if that is a library's.

    Autograd runs backward passes in a thread of its own, whose stack has lines of ours only in a
    backward function of ours.
    """
    frame: Any = sys._getframe(2)
    lines: list[str] = []
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        ours = path.is_relative_to(ROOT) and not path.is_relative_to(ROOT / "tests")
        if ours:
            return [*lines, f"{path.relative_to(ROOT)}:{frame.f_lineno}"]
        if not lines and "site-packages" in path.parts and "torch" not in path.parts:
            start = path.parts.index("site-packages") + 1
            lines = [f"{'/'.join(path.parts[start:])}:{frame.f_lineno}"]
        frame = frame.f_back
    return lines


@contextmanager
def rehearsing(patch: pytest.MonkeyPatch) -> Iterator[Watch]:
    """Name the rehearsal device to torch, accelerate and transformers, and watch the steps."""
    fake.register()
    watch = Watch()
    patch.setenv("ACCELERATE_TORCH_DEVICE", f"{fake.NAME}:0")
    # transformers knows by name the devices that have bf16
    patch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: True)
    patch.setattr(torch, "tensor", fake.tensor)
    _watch_steps(patch, watch)
    fake.STATE.on, fake.STATE.on_wait = True, watch
    try:
        yield watch
    finally:
        fake.STATE.on, fake.STATE.on_wait = False, lambda _: None


def _watch_steps(patch: pytest.MonkeyPatch, watch: Watch) -> None:
    """Watch from the first step's beginning to the last step's end, but for what is logged between.

    Evaluations and checkpoints are "logged", too: all that Trainer does if its control says so.
    """

    def begins(handler: Any, *args: Any, **kwargs: Any) -> Any:
        watch.in_step = fake.STATE.on
        watch.steps += watch.in_step
        return begin(handler, *args, **kwargs)

    def ends(handler: Any, *args: Any, **kwargs: Any) -> Any:
        control = end(handler, *args, **kwargs)
        watch.in_step = watch.in_step and not control.should_training_stop
        return control

    def logs(trainer: Any, *args: Any, **kwargs: Any) -> Any:
        before, watch.in_step = watch.in_step, False
        try:
            return log(trainer, *args, **kwargs)
        finally:
            watch.in_step = before

    def trains(trainer: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return train(trainer, *args, **kwargs)
        finally:  # also after a signal
            watch.in_step = False

    train, log = Trainer.train, Trainer._maybe_log_save_evaluate
    begin, end = CallbackHandler.on_step_begin, CallbackHandler.on_step_end
    patch.setattr(Trainer, "train", trains)
    patch.setattr(CallbackHandler, "on_step_begin", begins)
    patch.setattr(CallbackHandler, "on_step_end", ends)
    patch.setattr(Trainer, "_maybe_log_save_evaluate", logs)
