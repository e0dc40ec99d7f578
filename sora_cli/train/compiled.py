"""`training.compile`: run the model's repeated blocks through torch.compile while it trains.

Each block is compiled in place, so module and parameter names stay. Only the passes of training
steps run compiled; evaluation, generation and the search for a non-finite number run uncompiled.
The operation of adapted layers (`methods.fused`) is traced into each block's graph, layer by layer:
siblings are not computed together there. Gates are tensors, so a gate that dies changes no graph.
Removed components change shapes, so the blocks are then compiled once more.
"""

from __future__ import annotations

import gc
import os
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING, Any

from sora_cli.core.device import is_cuda
from sora_cli.core.errors import SoraError
from sora_cli.core.processes import check_alone
from sora_cli.recipe.recipe import Recipe

if TYPE_CHECKING:
    from torch import nn
    from transformers import Trainer

KEY = "training.compile"
BACKEND = "inductor"
"""Backend of torch.compile; tests replace it."""
_OFF = f"{KEY}=false"
_PER_BLOCK = 8  # compilations per block: with and without padding, one or several rows, ...


def check_compile(recipe: Recipe) -> None:
    """Check a recipe's compilation settings before torch is imported.

    Compilation works on one process only, and conflicts with the keys that are checked here.
    """
    if not recipe.training.compile:
        return
    model, training = recipe.model, recipe.training
    if model.quantise is not None:
        raise _conflict(
            f"model.quantise={model.quantise}",
            "the compiler cannot trace products with packed weights",
            "model.quantise=null",
        )
    if model.attention == "flex_attention":
        raise _conflict(
            "model.attention=flex_attention",
            "it compiles itself, in evaluation too",
            "model.attention=sdpa",
        )
    if training.gradient_checkpointing:
        raise _conflict(
            "training.gradient_checkpointing",
            "the compiler decides itself what a block keeps",
            "training.gradient_checkpointing=false",
        )
    if training.activation_offload:
        raise _conflict(
            "training.activation_offload",
            "the compiler decides itself what a block keeps",
            "training.activation_offload=false",
        )
    check_alone(KEY, _OFF)


def _conflict(other: str, why: str, hint: str) -> SoraError:
    return SoraError(f"{KEY} does not go with {other}: {why}", hint=f"{_OFF}, or {hint}", key=KEY)


def check_compiler(recipe: Recipe) -> None:
    """Check this machine for the tools that torch.compile calls; imports torch.

    On a CPU these are a C++ compiler and Python's headers, on a GPU Triton. Windows is refused.
    """
    check_compile(recipe)
    if not recipe.training.compile:
        return
    if sys.platform == "win32":
        raise SoraError(f"{KEY} is not supported on Windows", hint=_OFF, key=KEY)
    if is_cuda():
        if find_spec("triton") is None:
            raise _missing("the package triton", f"pip install triton, or {_OFF}")
        return
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if which(compiler) is None:
        raise _missing(
            f"the C++ compiler {compiler}",
            f"install it, name another in CXX, or {_OFF}",
        )
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.is_file():
        raise _missing(f"Python's C headers: {header}", f"install python3-dev, or {_OFF}")


def _missing(what: str, hint: str) -> SoraError:
    return SoraError(f"{KEY} needs {what}, which is missing", hint=hint, key=KEY)


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """Return the model's repeated blocks: the outermost lists of modules of one class.

    A list of plain layers (of heads, say) does not count. A model without blocks is refused.
    """
    blocks = list(_blocks_in(model))
    if not blocks:
        raise SoraError(
            f"{KEY} compiles repeated blocks, but {type(model).__name__} has none",
            hint=_OFF,
            key=KEY,
        )
    return blocks


def _blocks_in(module: nn.Module) -> Iterator[nn.Module]:
    from torch import nn

    for child in module.children():
        blocks = list(child) if isinstance(child, nn.ModuleList) else []
        same = len(blocks) > 1 and len({type(block) for block in blocks}) == 1
        if same and all(any(block.children()) for block in blocks):
            yield from blocks
        else:
            yield from _blocks_in(child)


@contextmanager
def compiled(trainer: Trainer, *, on: bool) -> Iterator[None]:
    """Run a trainer's steps with compiled blocks; the model is restored afterwards."""
    if not on:
        yield
        return
    import torch

    step = trainer.training_step

    def training_step(*args: Any, **kwargs: Any) -> Any:
        with torch.compiler.set_stance("default"):
            return step(*args, **kwargs)

    trainer.training_step = training_step
    try:
        with compiled_blocks(trainer.model), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        trainer.training_step = step


@contextmanager
def compiled_blocks(model: nn.Module) -> Iterator[None]:
    """Run a model's repeated blocks compiled; the model is restored afterwards."""
    from methods.torch_internals import compilations, uncompile

    blocks = repeated_blocks(model)
    try:
        with compilations(_PER_BLOCK * len(blocks)):
            for block in blocks:
                block.compile(backend=BACKEND, dynamic=True)
            yield
    finally:
        for block in blocks:
            uncompile(block)
        forget()


def forget() -> None:
    """Drop all compiled code, so that the next pass compiles anew and the count restarts at zero.

    The compiler leaves reference cycles to the inputs that it traced. Their backward graph would
    keep the former shapes of parameters, so the cycles are collected here.
    """
    import torch

    torch.compiler.reset()
    gc.collect()
