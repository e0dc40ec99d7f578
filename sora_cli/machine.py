"""What a recipe asks of the machine and its installed packages."""

from __future__ import annotations

import os

from sora_cli.errors import SoraError
from sora_cli.plain_words import nearest
from sora_cli.recipe import TrainingBlock


def check_machine(block: TrainingBlock) -> None:
    """Tell what is missing before anything is loaded for the run.

    Raises:
        SoraError: a precision that needs a GPU, a logger that is not installed.
    """
    import torch

    if block.precision == "fp16" and not torch.cuda.is_available():
        raise SoraError(
            "precision fp16 needs a GPU",
            hint="training.precision=bf16",
            key="training.precision",
        )
    _check_loggers(block.loggers)
    _check_launcher()


def _check_launcher() -> None:
    """What `accelerate launch` asks for, through the environment, that the methods can not do."""
    if _asked_for("ACCELERATE_USE_DEEPSPEED"):
        raise SoraError(
            "DeepSpeed is not supported: its optimisers keep the gradients that methods look at",
            hint="torchrun; where the model is too large for that, FSDP with fsdp_version: 2",
        )
    if _asked_for("ACCELERATE_USE_FSDP") and os.environ.get("FSDP_VERSION", "1") == "1":
        raise SoraError(
            "FSDP1 is not supported: it flattens the factors",
            hint="in accelerate's configuration: fsdp_version: 2",
        )


def _asked_for(name: str) -> bool:
    return os.environ.get(name, "").lower() == "true"


def _check_loggers(names: list[str]) -> None:
    if not names:
        return
    from transformers.integrations import get_available_reporting_integrations

    known = get_available_reporting_integrations()
    for name in names:
        if name not in known:
            raise SoraError(
                f"logger '{name}' is unknown or not installed",
                hint=nearest(name, known)
                if known
                else "none is installed: pip install tensorboard",
                key="training.loggers",
            )
