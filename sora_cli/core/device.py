"""The device that computes, and the questions that depend on it.

No other module asks for an accelerator, so that a test replaces the answer in one place. Torch and
accelerate are imported late: they take seconds. What is asked of the device goes through its module
(`torch.cuda`, `torch.xpu`, ...).
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any


def device_type() -> str:
    """Return the type of the device that computes: "cpu", or the accelerator's, such as "cuda"."""
    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    # Apple's GPU reports neither the peak of its memory nor its name, and nothing was tried on it
    return "cpu" if accelerator is None or accelerator.type == "mps" else accelerator.type


def is_accelerated() -> bool:
    """Return True if an accelerator computes, and not the CPU."""
    return device_type() != "cpu"


def is_cuda() -> bool:
    """Return True if the accelerator runs kernels written for CUDA (NVIDIA's, and AMD's by ROCm).

    `docs/design.md` lists the features that ask this.
    """
    return device_type() == "cuda"


def device_module() -> Any:
    """Return torch's module for the device; `torch.cpu` has few of its functions."""
    import torch

    return torch.get_device_module(device_type())


def has_bf16() -> bool:
    """Return True if the accelerator has instructions for bf16."""
    # by default torch also says yes to a GPU that only emulates bf16
    return bool(device_module().is_bf16_supported(including_emulation=False))


def process_state() -> Any:
    """Return accelerate's state of this process; opens the process group if there are several.

    Before a trainer exists, nothing else has opened it.
    """
    from accelerate import PartialState

    return PartialState(cpu=not is_accelerated())


def forked_random() -> AbstractContextManager[None]:
    """Restore torch's random numbers after the block: the CPU's and this process's device's."""
    import torch

    devices = [device_module().current_device()] if is_accelerated() else []
    return torch.random.fork_rng(devices, device_type=device_type())


def empty_cache() -> None:
    """Give the accelerator's unused memory back; a CPU's allocator keeps none for torch."""
    if is_accelerated():
        device_module().empty_cache()
