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
}
"""The files whose waits in a step are meant, each with its reason."""


@dataclass
class Watch:
    """The waits of training steps for the device.

    Attributes:
        strict: a wait in a step raises an error, unless its file is in `MAY_WAIT`.
        waits: our line, or the library's, with the operation, for each wait in a step.
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
        ours, place = _callers()
        if ours in MAY_WAIT:
            self.excused.append(f"{place}: {operation}")
            return
        self.waits.append(f"{place}: {operation}")
        if self.strict:
            raise RuntimeError(f"a step waits for the device: {place}: {operation}")


def _callers() -> tuple[str, str]:
    """Return our innermost file on the stack, and the innermost line outside torch and tests."""
    frame: Any = sys._getframe(1)
    ours, line = "", ""
    while frame is not None and not ours:
        path = Path(frame.f_code.co_filename)
        at = f"{path.name}:{frame.f_lineno}"
        if path.is_relative_to(ROOT) and not path.is_relative_to(ROOT / "tests"):
            ours = str(path.relative_to(ROOT))
            line = f"{ours}:{frame.f_lineno}" + (f" ({line})" if line else "")
        elif not line and not {"torch", "tests", "rehearsal"} & set(path.parts[-6:]):
            line = at
        frame = frame.f_back
    return ours, line


@contextmanager
def rehearsing(patch: pytest.MonkeyPatch) -> Iterator[Watch]:
    """Name the rehearsal device to torch, accelerate and transformers, and watch the steps."""
    fake.register()
    watch = Watch()
    patch.setenv("ACCELERATE_TORCH_DEVICE", f"{fake.NAME}:0")
    # transformers knows by name the devices that have bf16
    patch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: True)
    patch.setattr(torch, "tensor", _made(torch.tensor))
    _watch_steps(patch, watch)
    swap = torch.__future__.get_swap_module_params_on_conversion()
    # a parameter stays the same object on its way to a GPU
    torch.__future__.set_swap_module_params_on_conversion(True)
    fake.STATE.on, fake.STATE.on_wait = True, watch
    try:
        yield watch
    finally:
        fake.STATE.on, fake.STATE.on_wait = False, lambda _: None
        torch.__future__.set_swap_module_params_on_conversion(swap)


def _made(tensor: Any) -> Any:
    """Return `torch.tensor` that moves: torch fills the new tensor's memory itself."""

    def on_device(data: Any, *, device: Any = None, **options: Any) -> Any:
        made = tensor(data, **options)
        return made if device is None else made.to(device)

    return on_device


def _watch_steps(patch: pytest.MonkeyPatch, watch: Watch) -> None:
    """Watch from the first step's beginning to the last step's end, but for what is logged between.

    Evaluations and checkpoints are "logged", too: all that Trainer does if its control says so.
    """

    def begins(handler: Any, *args: Any, **kwargs: Any) -> Any:
        watch.in_step = True
        watch.steps += 1
        return begin(handler, *args, **kwargs)

    def ends(handler: Any, *args: Any, **kwargs: Any) -> Any:
        control = end(handler, *args, **kwargs)
        watch.in_step = not control.should_training_stop
        return control

    def logs(trainer: Any, *args: Any, **kwargs: Any) -> Any:
        before, watch.in_step = watch.in_step, False
        try:
            return log(trainer, *args, **kwargs)
        finally:
            watch.in_step = before

    begin, end = CallbackHandler.on_step_begin, CallbackHandler.on_step_end
    log = Trainer._maybe_log_save_evaluate
    patch.setattr(CallbackHandler, "on_step_begin", begins)
    patch.setattr(CallbackHandler, "on_step_end", ends)
    patch.setattr(Trainer, "_maybe_log_save_evaluate", logs)
