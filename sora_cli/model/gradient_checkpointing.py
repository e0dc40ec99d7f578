"""Gradient checkpointing: recompute a block's activations instead of keeping them.

Source: Chen et al. (2016), arXiv 1604.06174. Of torch's two implementations this uses the
non-reentrant one: it accepts frozen weights and inputs without a gradient, and restores the random
generators for the second pass, so dropout drops the same numbers. The adapters' gradients are the
same up to rounding: under checkpointing, their layers keep x itself (`methods.kept`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from sora_cli.core.errors import SoraError, first_line

_OPTIONS = {"use_reentrant": False}


def checkpointing_arguments() -> dict[str, Any]:
    """Return the arguments of `TrainingArguments` for gradient checkpointing."""
    from transformers import TrainingArguments

    # the newer of two names in transformers 5
    # until: transformers 5.23
    name = "activation_checkpointing"
    if name not in TrainingArguments.__dataclass_fields__:
        name = "gradient_checkpointing"
    return {name: True, f"{name}_kwargs": dict(_OPTIONS)}


@contextlib.contextmanager
def checkpointed(model: Any, *, on: bool = True) -> Iterator[None]:
    """Switch a model's checkpointing on inside the block, with the trainer's arguments."""
    if not on:
        yield
        return
    # until: transformers 5.23
    name = "activation_checkpointing"
    if not callable(getattr(model, f"{name}_enable", None)):
        name = "gradient_checkpointing"
    try:
        getattr(model, f"{name}_enable")(**{f"{name}_kwargs": dict(_OPTIONS)})
    except ValueError as error:
        raise SoraError(
            f"{type(model).__name__} does not support gradient checkpointing: {first_line(error)}",
            hint="training.gradient_checkpointing=false; other ways to save memory: "
            "training.gradient_accumulation, data.max_length",
            key="training.gradient_checkpointing",
        ) from error
    try:
        yield
    finally:
        getattr(model, f"{name}_disable")()
        model.disable_input_require_grads()  # transformers' hooks on the inputs: not needed
