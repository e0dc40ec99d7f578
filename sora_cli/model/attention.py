"""`model.attention`: the attention implementation of the base model.

transformers checks this name while it builds the model. If the package flash-attn is unusable but
the package kernels is installed, transformers would fetch a kernel from the Hub and run it. So the
machine's requirements are checked here first; the model's own class then reports its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from sora_cli.core.device import is_cuda
from sora_cli.core.errors import SoraError, first_line
from sora_cli.model.transformers_internals import attention_of, flash_kernels
from sora_cli.recipe.recipe import ModelBlock

KEY = "model.attention"
ON_GPUS = ("flash_attention_2", "flex_attention")
"""Implementations that run only on GPUs, and only on tensors with data."""
_USUAL = f"{KEY}=null lets transformers choose"


def check_attention(block: ModelBlock) -> None:
    """Check the installed packages before torch is imported."""
    if block.attention == "flash_attention_2" and find_spec("flash_attn") is None:
        raise SoraError(
            f"{KEY}=flash_attention_2 needs the package flash-attn, which is not installed",
            hint=f"pip install flash-attn --no-build-isolation, or {KEY}=sdpa",
            key=KEY,
        )


def check_device(block: ModelBlock, precision: str) -> None:
    """Check this machine's GPU, packages and precision for the implementation; imports torch.

    Args:
        precision: of the run, as in `training.precision`.
    """
    check_attention(block)
    if block.attention not in ON_GPUS:
        return
    from transformers.utils import is_flash_attn_2_available

    if not is_cuda():
        raise SoraError(
            f"{KEY}={block.attention} needs a GPU: it has no backward pass on a CPU",
            hint=f"{KEY}=sdpa",
            key=KEY,
        )
    if block.attention == "flex_attention":
        return
    if not is_flash_attn_2_available():
        raise SoraError(
            "transformers cannot use the installed version of the package flash-attn",
            hint=f"pip install --upgrade flash-attn --no-build-isolation, or {KEY}=sdpa",
            key=KEY,
        )
    if precision == "fp32" and block.dtype == "float32":
        raise SoraError(
            f"{KEY}=flash_attention_2 computes in 16 bits, but this run in 32",
            hint="training.precision=bf16",
            key=KEY,
        )


def attention_options(block: ModelBlock) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` that select the implementation."""
    return {} if block.attention is None else {"attn_implementation": block.attention}


def check_config(block: ModelBlock, config: Any, auto: Any) -> None:
    """Refuse Hub code that a model's files request as their attention.

    Args:
        auto: the class of transformers that will load the model.
    """
    # a name with "/" in a model's files would make transformers fetch and run that kernel
    parts = [config, *(getattr(config, name, None) for name in config.sub_configs)]
    stored = next((name for name in map(attention_of, parts) if "/" in (name or "")), None)
    if stored is not None and block.attention is None:
        raise SoraError(
            f"the configuration of '{block.path}' asks for {stored}: compiled code from the Hub, "
            "which is not run",
            hint=f"{KEY}=sdpa",
            key=KEY,
        )
    own = flash_kernels(auto, config)
    if "flash" in (block.attention or "") and own and block.attention not in own:
        raise SoraError(
            f"'{block.path}' runs with {own[0]} instead of {block.attention}: compiled code from "
            "the Hub, which is not run",
            hint=_USUAL,
            key=KEY,
        )


@contextmanager
def asking_for(block: ModelBlock) -> Iterator[None]:
    """Report clearly that a model lacks the implementation, in place of transformers' error."""
    try:
        yield
    except (ValueError, ImportError) as error:
        if block.attention is None or "ttention" not in str(error):
            raise
        sentence = first_line(error).split(". ")[0].removesuffix(" yet")
        raise SoraError(
            f"model '{block.path}' has no {block.attention}: {sentence}", hint=_USUAL, key=KEY
        ) from error


def check_dropout(block: ModelBlock, config: Any) -> None:
    """Refuse flex_attention for a model with attention dropout, which it would not apply."""
    if block.attention != "flex_attention":
        return
    for name, value in config.to_dict().items():
        if "att" in name and ("drop" in name) and isinstance(value, float | int) and value > 0:
            raise SoraError(
                f"{KEY}=flex_attention has no attention dropout, but the model's {name} is "
                f"{value:g}",
                hint="training.model_dropout=0",
                key=KEY,
            )


@contextmanager
def usual_attention(model: Any, *, on_gpus: bool = False) -> Iterator[None]:
    """Run a model with transformers' default attention inside the block.

    Args:
        on_gpus: only if the model's implementation runs only on GPUs.
    """
    now = attention_of(model.config)
    if now is None or (on_gpus and now not in ON_GPUS):
        yield
        return
    try:
        model.set_attn_implementation("sdpa")
    except ValueError:  # the model has no sdpa: transformers takes "eager"
        model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(now)
