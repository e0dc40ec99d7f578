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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING, Any

from sora_cli.core.device import is_cuda
from sora_cli.core.errors import SoraError
from sora_cli.core.processes import check_alone
from sora_cli.recipe.recipe import Recipe
from sora_cli.train.switch import Context, Switch

if TYPE_CHECKING:
    from torch import nn

KEY = "training.compile"
BACKEND = "inductor"
"""Backend of torch.compile; tests replace it."""
_OFF = f"{KEY}=false"
_PER_BLOCK = 8  # compilations per block: with and without padding, one or several rows, ...


class Compilation(Switch):
    """Compiled blocks in training steps, uncompiled ones everywhere else."""

    KEY = KEY
    OFF = False

    def check_recipe(self, recipe: Recipe) -> None:
        """Check for one process, and for no settings that conflict with compilation."""
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
        for name in ("gradient_checkpointing", "activation_offload"):
            if getattr(training, name):
                why = "the compiler decides itself what a block keeps"
                raise _conflict(f"training.{name}", why, f"training.{name}=false")
        check_alone(KEY, _OFF)

    def check_machine(self, recipe: Recipe) -> None:
        """Check for the tools that torch.compile calls.

        On a CPU these are a C++ compiler and Python's headers, on a GPU Triton. Windows is refused.
        """
        if sys.platform == "win32":
            raise SoraError(f"{KEY} is not supported on Windows", hint=_OFF, key=KEY)
        if is_cuda():
            if find_spec("triton") is None:
                raise _missing("the package triton", f"pip install triton, or {_OFF}")
            return
        compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
        if which(compiler) is None:
            raise _missing(
                f"the C++ compiler {compiler}", f"install it, name another in CXX, or {_OFF}"
            )
        header = Path(sysconfig.get_path("include")) / "Python.h"
        if not header.is_file():
            raise _missing(f"Python's C headers: {header}", f"install python3-dev, or {_OFF}")

    def check_model(self, recipe: Recipe, model: nn.Module) -> None:
        """Check that the model has repeated blocks."""
        repeated_blocks(model)

    @contextmanager
    def in_training(self, trainer: Any) -> Iterator[Callable[[], Context]]:
        """Compile the blocks; only micro-batches run compiled."""
        import torch

        with compiled_blocks(trainer.model), torch.compiler.set_stance("force_eager"):
            yield partial(torch.compiler.set_stance, "default")


def _conflict(other: str, why: str, hint: str) -> SoraError:
    return SoraError(f"{KEY} does not go with {other}: {why}", hint=f"{_OFF}, or {hint}", key=KEY)


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
