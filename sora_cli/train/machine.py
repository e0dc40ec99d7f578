"""Requirements on the machine that trains, and repeatable results."""

from __future__ import annotations

import os

import torch

from sora_cli.core.errors import SoraError
from sora_cli.core.processes import launched_with
from sora_cli.recipe.recipe import TrainingBlock
from sora_cli.train.loggers import check_loggers

_WORKSPACE = ":4096:8"  # 8 buffers of 4,096 KiB; cuBLAS is repeatable only with this or :16:8


def check_machine(block: TrainingBlock) -> None:
    """Check loggers and launcher settings before anything is loaded."""
    check_loggers(block.loggers)
    # settings of `accelerate launch` that methods do not support
    if launched_with("ACCELERATE_USE_DEEPSPEED"):
        raise SoraError(
            "DeepSpeed is not supported: its optimisers hide the gradients that methods read",
            hint="use torchrun; if the model is too large for that, FSDP with fsdp_version: 2",
        )
    if launched_with("ACCELERATE_USE_FSDP") and os.environ.get("FSDP_VERSION", "1") == "1":
        raise SoraError(
            "FSDP1 is not supported: it flattens the adapters' factors",
            hint="set fsdp_version: 2 in accelerate's configuration",
        )


def set_deterministic(on: bool) -> None:
    """Restrict torch to deterministic algorithms, or allow all; call it before any work on a GPU.

    This is `training.deterministic`. On a CPU runs are repeatable without it. On a GPU some kernels
    add numbers in the order in which threads arrive (scatters, gradients of gathers and of
    attention), and cuBLAS may compute a product differently if several streams share its workspace.
    Different hardware, numbers of processes or CPU threads, and versions of torch, CUDA or the
    driver still give different bits.

    With `on`, torch raises RuntimeError at an operation without a deterministic algorithm.
    """
    if on:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", _WORKSPACE)  # cuBLAS reads it once
        os.environ.setdefault("FLASH_ATTENTION_DETERMINISTIC", "1")  # for the package flash-attn
        torch.backends.cudnn.benchmark = False  # it chooses algorithms by their time
    torch.use_deterministic_algorithms(on)
    # filling new memory costs time, and no code here reads unwritten memory
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
