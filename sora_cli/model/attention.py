"""`model.attention`: the implementation of attention that the base model runs with.

transformers checks such a name while it makes the model, and where the package flash-attn cannot be
used, but the package kernels is there, it fetches a kernel from the Hub and runs it. So what a
machine must have is checked here first, and what the model must have is told by its own class. Of
kernels from the Hub only the one that a recipe names is run (`hub_kernels`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from sora_cli.core.errors import SoraError, first_line
from sora_cli.model.hub_kernels import (
    KEY,
    check_trusted,
    check_usable,
    fetching,
    is_hub_kernel,
    kernel_options,
)
from sora_cli.model.transformers_internals import attention_of, flash_kernels
from sora_cli.recipe.recipe import ModelBlock

ON_GPUS = ("flash_attention_2", "flex_attention")
"""Those that have no backward pass on a CPU."""
_USUAL = f"{KEY}=null lets transformers choose"


def has_kernel(name: str | None) -> bool:
    """Tell whether an implementation runs on some devices only, and on tensors with data."""
    return name in ON_GPUS or is_hub_kernel(name)


def check_attention(block: ModelBlock) -> None:
    """Check what can be known before anything heavy loads.

    Raises:
        SoraError: the package that it needs is not installed, or it is code that is not trusted.
    """
    if is_hub_kernel(block.attention):
        check_trusted(block)
    if block.attention == "flash_attention_2" and find_spec("flash_attn") is None:
        raise SoraError(
            f"{KEY}=flash_attention_2 needs the package flash-attn, which is not installed",
            hint=f"pip install flash-attn --no-build-isolation, or {KEY}=sdpa",
            key=KEY,
        )


def check_device(block: ModelBlock, precision: str) -> None:
    """Check that this machine has what the implementation needs; loads torch.

    Args:
        precision: of the run, as in `training.precision`.

    Raises:
        SoraError: no GPU, no package that works, or numbers of 32 bits.
    """
    check_attention(block)
    if is_hub_kernel(block.attention):
        check_usable(block)
    if block.attention not in ON_GPUS:
        return
    import torch
    from transformers.utils import is_flash_attn_2_available

    if not torch.cuda.is_available():
        raise SoraError(
            f"{KEY}={block.attention} needs a GPU: there is no backward pass for it on a CPU",
            hint=f"{KEY}=sdpa",
            key=KEY,
        )
    if block.attention == "flex_attention":
        return
    if not is_flash_attn_2_available():
        raise SoraError(
            "the package flash-attn, as it is installed here, cannot be used by transformers",
            hint=f"pip install --upgrade flash-attn --no-build-isolation, or {KEY}=sdpa",
            key=KEY,
        )
    if precision == "fp32" and block.dtype == "float32":
        raise SoraError(
            f"{KEY}=flash_attention_2 computes in 16 bits, and this run in 32",
            hint="training.precision=bf16",
            key=KEY,
        )


def attention_options(block: ModelBlock) -> dict[str, Any]:
    """Return the options of `from_pretrained`."""
    name = block.attention
    kernel = kernel_options(block) if is_hub_kernel(name) else {}
    return {} if name is None else {"attn_implementation": name, **kernel}


def check_config(block: ModelBlock, config: Any, auto: Any) -> None:
    """Refuse code from the Hub that a model's files ask for in the place of attention.

    Args:
        auto: the class of transformers by which the model is going to be loaded.

    Raises:
        SoraError: they do.
    """
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
    """Say clearly, in place of what transformers raises, that a model lacks the implementation.

    Raises:
        SoraError: it does.
    """
    try:
        with fetching(block):
            yield
    except (ValueError, ImportError) as error:
        if block.attention is None or "ttention" not in str(error):
            raise
        sentence = first_line(error).split(". ")[0].removesuffix(" yet")
        raise SoraError(
            f"model '{block.path}' has no {block.attention}: {sentence}", hint=_USUAL, key=KEY
        ) from error


def check_dropout(block: ModelBlock, config: Any) -> None:
    """Raise `SoraError` where a model to be trained drops attention weights and cannot."""
    if block.attention != "flex_attention":
        return
    for name, value in config.to_dict().items():
        if "att" in name and ("drop" in name) and isinstance(value, float | int) and value > 0:
            raise SoraError(
                f"{KEY}=flex_attention drops no attention weights, and the model's {name} is "
                f"{value:g}",
                hint="training.model_dropout=0",
                key=KEY,
            )


@contextmanager
def usual_attention(model: Any, *, of_kernels: bool = False) -> Iterator[None]:
    """Let a model run for a while with the implementation that transformers chooses by itself.

    Args:
        of_kernels: do so only where the model has one that runs on some devices only.
    """
    now = attention_of(model.config)
    if now is None or (of_kernels and not has_kernel(now)):
        yield
        return
    try:
        model.set_attn_implementation("sdpa")
    except ValueError:  # it has none, and then the plain one is taken
        model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(now)
