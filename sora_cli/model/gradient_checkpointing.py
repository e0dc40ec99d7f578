"""Gradient checkpointing: a block's activations computed again, not kept for the backward pass.

Source: Chen et al. (2016), arXiv 1604.06174. Of torch's two ways the one that is not reentrant:
frozen weights and inputs without a gradient are all right, and the state of the random generators
is put back for the second pass, so that dropout drops the same. The adapters' gradients are the
same up to rounding: while checkpointing decides what is kept, their layers keep x itself
(`methods.kept`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn

from sora_cli.core.errors import SoraError, first_line

_OPTIONS = {"use_reentrant": False}


def checkpointing_arguments() -> dict[str, Any]:
    """Return the arguments of `TrainingArguments` that switch it on."""
    from transformers import TrainingArguments

    name = "activation_checkpointing"  # the newer of its two names in transformers 5
    if name not in TrainingArguments.__dataclass_fields__:
        name = "gradient_checkpointing"
    return {name: True, f"{name}_kwargs": dict(_OPTIONS)}


def check_checkpointing(model: nn.Module) -> None:
    """Raise `SoraError` where a model's code cannot do it."""
    with checkpointed(model):
        pass


@contextlib.contextmanager
def checkpointed(model: Any, *, on: bool = True) -> Iterator[None]:
    """Give a transformers model with checkpointing switched on, as the trainer does, then off.

    Raises:
        SoraError: the model's code cannot do it.
    """
    if not on:
        yield
        return
    new = callable(getattr(model, "activation_checkpointing_enable", None))
    try:
        if new:
            model.activation_checkpointing_enable(activation_checkpointing_kwargs=dict(_OPTIONS))
        else:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=dict(_OPTIONS))
    except ValueError as error:
        raise SoraError(
            f"{type(model).__name__} cannot do gradient checkpointing: {first_line(error)}",
            hint="training.gradient_checkpointing=false; less memory also takes "
            "training.gradient_accumulation, or fewer tokens: data.max_length",
            key="training.gradient_checkpointing",
        ) from error
    try:
        yield
    finally:
        if new:
            model.activation_checkpointing_disable()
        else:
            model.gradient_checkpointing_disable()
        model.disable_input_require_grads()  # hooks that transformers adds, and needs not
