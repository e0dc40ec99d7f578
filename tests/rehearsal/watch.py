"""Everything on the rehearsal device, and an error where a training step waits for it.

On a real accelerator the waits are counted only, by CUDA's own warnings, and results may differ
from the CPU's by `LOOSER` times as much, as the sums there have another order.
"""

from __future__ import annotations

import gc
import sys
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from transformers import Trainer
from transformers.trainer_callback import CallbackHandler

from sora_cli.core.device import device_module, is_accelerated, is_cuda
from tests.helpers_device import computing_on
from tests.rehearsal import fake
from tests.shared_files import ROOT

MAY_WAIT = {
    "sora_cli/train/non_finite.py:_all_finite": "one bit a step: a bad step must change nothing",
    "sora_cli/train/non_finite.py:_error": "the run ends",
    "accelerate/utils/operations.py:send_to_device": "rows, which CUDA copies without waiting",
    "sora_cli/model/activation_offload.py:to_host": "a copy, which CUDA makes without waiting",
    "sora_cli/train/compaction.py:on_step_end": "the steps that look for components to remove",
    "methods/cut.py:after_step": "the step that cuts",
    "transformers/masking_utils.py:sdpa_mask": "each forward pass asks whether rows are padded",
    "transformers/masking_utils.py:find_packed_sequence_indices": "... or packed",
}
"""The functions in which a step's waits are meant or another's, each with its reason."""


LOOSER = 10 if fake.REAL else 1
_CUDA_WAITS = "called a synchronizing CUDA operation"


@dataclass
class Watch:
    """The waits of training steps for the device.

    Attributes:
        strict: a wait in a step raises an error, unless a function in `MAY_WAIT` asked.
        waits: the library's line and ours, with the operation, for each wait in a step.
        excused: the step's number and the same of the waits that are meant.
        steps: number of steps watched.
        resumes: the first step after a resume, in which methods move their records to the device.
    """

    strict: bool = True
    waits: list[str] = field(default_factory=list)
    excused: list[tuple[int, str]] = field(default_factory=list)
    steps: int = 0
    in_step: bool = False
    resumes: bool = False

    def __call__(self, operation: Any) -> None:
        if not self.in_step:
            return
        place, functions = _callers()
        place = f"{place}: {operation}"
        if functions & MAY_WAIT.keys() or self.resumes:
            self.excused.append((self.steps, place))
            return
        self.waits.append(place)
        if self.strict:
            raise RuntimeError(f"a step waits for the device: {place}")


def _callers() -> tuple[str, set[str]]:
    """Return the innermost line on the stack that is not torch's, with ours, and all functions.

    Autograd runs backward passes in a thread of its own, whose stack has lines of ours only in a
    backward function of ours.
    """
    frame: Any = sys._getframe(2)
    lines: list[tuple[bool, str]] = []
    functions = set()
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        library = "site-packages" in path.parts  # may lie below the root: in .venv
        ours = path.is_relative_to(ROOT) and not (library or path.is_relative_to(ROOT / "tests"))
        if ours or "site-packages" in path.parts:
            start = len(ROOT.parts) if ours else path.parts.index("site-packages") + 1
            name = "/".join(path.parts[start:])
            functions.add(f"{name}:{frame.f_code.co_name}")
            lines.append((ours, f"{name}:{frame.f_lineno}"))
        frame = frame.f_back
    asked = [line for _, line in lines if not line.startswith("torch/")][:1]
    asked += [line for ours, line in lines if ours][:1]
    return " in ".join(dict.fromkeys(asked)), functions


@contextmanager
def rehearsing(patch: pytest.MonkeyPatch) -> Iterator[Watch]:
    """Name the rehearsal device to torch, accelerate and transformers, and watch the steps."""
    watch = Watch()
    # transformers knows by name the devices that have bf16
    patch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: True)
    patch.setattr(torch, "tensor", fake.tensor)
    # torch swaps no parameter that somebody watches, and on a GPU it does not swap
    patch.setattr(torch.utils, "weakref", SimpleNamespace(getweakrefs=lambda _: []))
    _watch_steps(patch, watch)
    fake.STATE.on_wait = watch
    with _named(True):
        yield watch
    fake.STATE.on_wait = lambda _: None


@contextmanager
def on_accelerator(patch: pytest.MonkeyPatch) -> Iterator[Watch]:
    """Count the waits of steps on a real accelerator, whose convolutions are exact meanwhile."""
    watch, show = Watch(strict=False), warnings.showwarning

    def shows(message: Any, *args: Any, **kwargs: Any) -> None:
        if _CUDA_WAITS in str(message):
            watch("operation")  # the stack is still that of the line that waits
        else:
            show(message, *args, **kwargs)

    _watch_steps(patch, watch)
    patch.setattr(warnings, "showwarning", shows)
    patch.setattr(torch.backends.cudnn, "allow_tf32", False)
    with warnings.catch_warnings():
        warnings.filterwarnings("always", _CUDA_WAITS)
        if is_cuda():
            torch.cuda.set_sync_debug_mode("warn")
        try:
            yield watch
        finally:
            if is_cuda():
                torch.cuda.set_sync_debug_mode("default")


watching = on_accelerator if fake.REAL else rehearsing


@contextmanager
def computing() -> Iterator[None]:
    """Refuse a block that puts no tensor on the device."""
    gc.collect()
    device_module().reset_peak_memory_stats()
    before = device_module().max_memory_allocated()
    yield
    assert device_module().max_memory_allocated() > before, "nothing was computed on the device"


def on_cpu() -> AbstractContextManager[None]:
    """Compute on the CPU inside the block."""
    return _named(False)


@contextmanager
def _named(on: bool) -> Iterator[None]:
    """Let torch and accelerate name the device, or the CPU."""
    if fake.REAL:
        with pytest.MonkeyPatch.context() as patch:
            computing_on("cpu", patch)
            patch.delenv("ACCELERATE_TORCH_DEVICE", raising=False)
            AcceleratorState._reset_state(reset_partial_state=True)
            yield
        AcceleratorState._reset_state(reset_partial_state=True)
        return
    before, fake.STATE.on = fake.STATE.on, on
    AcceleratorState._reset_state(reset_partial_state=True)  # it keeps the device that it found
    try:
        with pytest.MonkeyPatch.context() as patch:
            if on:
                patch.setenv("ACCELERATE_TORCH_DEVICE", f"{fake.NAME}:0")
            else:
                patch.delenv("ACCELERATE_TORCH_DEVICE", raising=False)
            yield
    finally:
        fake.STATE.on = before
        AcceleratorState._reset_state(reset_partial_state=True)


def _watch_steps(patch: pytest.MonkeyPatch, watch: Watch) -> None:
    """Watch from the first step's beginning to the last step's end, but for what is logged between.

    Evaluations and checkpoints are "logged", too: all that Trainer does if its control says so.
    """

    def begins(handler: Any, args: Any, state: Any, *more: Any, **kwargs: Any) -> Any:
        watch.resumes = not watch.in_step and state.global_step > 0
        watch.in_step = is_accelerated()
        watch.steps += watch.in_step
        return begin(handler, args, state, *more, **kwargs)

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
