"""The same bits each time, also on a GPU: `training.deterministic`.

On a CPU a run repeats itself without it. On a GPU some kernels add in whatever order their threads
come (scatters, gradients of gathers, of attention), and cuBLAS may choose another way for the same
product where several streams share its workspace. Other hardware, another number of processes or of
CPU threads, and other versions of torch, CUDA or a driver still give other bits.
"""

from __future__ import annotations

import os

import torch

_WORKSPACE = ":4096:8"  # 8 buffers of 4,096 KiB, one of the two values that cuBLAS promises it for


def set_deterministic(on: bool) -> None:
    """Allow deterministic algorithms only, or all again; before the first work on a GPU.

    With `on`, torch raises RuntimeError at an operation that has no such algorithm.
    """
    if on:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", _WORKSPACE)  # read once, by cuBLAS
        os.environ.setdefault("FLASH_ATTENTION_DETERMINISTIC", "1")  # of the flash-attn package
        torch.backends.cudnn.benchmark = False  # it times algorithms, and may choose another
    torch.use_deterministic_algorithms(on)
    # nothing here reads memory that was not written
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
