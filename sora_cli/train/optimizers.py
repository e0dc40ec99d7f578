"""The optimisers of `training.optimizer`: requirements, and the memory of their moments.

The 8-bit optimisers come from bitsandbytes (Dettmers et al. 2022, arXiv 2110.02861). Both moments
of a tensor are stored as one-byte codes, with one scale for every block of 256 codes. Small
tensors, such as gates and many factors, and embeddings keep 32 bits. `moments` removes the moments
of removed components.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sora_cli.core.device import is_cuda
from sora_cli.core.errors import SoraError, first_line
from sora_cli.model.quantisation import check_bitsandbytes
from sora_cli.recipe.recipe import Recipe
from sora_cli.recipe.types import Optimizer
from sora_cli.train.switch import Switch

if TYPE_CHECKING:
    from torch import nn

KEY = "training.optimizer"
TRAINER_NAMES: dict[Optimizer, str] = {
    "adamw": "adamw_torch_fused",
    "adamw_unfused": "adamw_torch",
    "adamw_8bit": "adamw_bnb_8bit",
    "paged_adamw_8bit": "paged_adamw_8bit",
}
"""Our name -> transformers' name, for `TrainingArguments(optim=...)`."""
BLOCK = 256
"""Codes that share a scale (`Optimizer2State.init_state` in bitsandbytes)."""
_SMALLEST = 4096  # tensors of at least this many numbers have coded moments (`min_8bit_size`)
_PAGED = 100_000  # tensors of at least this many numbers have paged moments (`get_state_buffer`)


class OptimizerChoice(Switch):
    """The optimiser, by transformers' name; 8-bit moments have requirements."""

    KEY = KEY
    OFF = None  # every run has an optimiser

    def check_recipe(self, recipe: Recipe) -> None:
        """Check that 8-bit moments have their package, and a method that does not rotate them."""
        name = recipe.training.optimizer
        if not in_8_bits(name):
            return
        if recipe.method.config.turns_basis:
            raise SoraError(
                f"{KEY}={name} does not go with method {recipe.method.name}, which rotates the "
                "moments",
                where="8-bit moments do not keep exact zeros, so components that were cut would "
                "return",
                hint=f"{KEY}=adamw",
                key=KEY,
            )
        check_bitsandbytes(KEY, name, plain=f"{KEY}=adamw", unsharded="blocks of codes")

    def check_machine(self, recipe: Recipe) -> None:
        """Check that this machine's device can run the optimiser."""
        name = recipe.training.optimizer
        if not in_8_bits(name) or is_cuda():
            return
        if name == "paged_adamw_8bit":
            raise SoraError(
                f"{KEY}={name} needs a GPU: it moves pages out of the GPU's memory",
                hint=f"{KEY}=adamw_8bit",
                key=KEY,
            )
        try:
            _take_step()
        except Exception as error:  # builds without the operation raise different errors
            raise SoraError(
                f"this version of bitsandbytes cannot take 8-bit steps on a CPU: "
                f"{first_line(error)}",
                hint=f"pip install --upgrade bitsandbytes, or {KEY}=adamw",
                key=KEY,
            ) from error

    def arguments(self, recipe: Recipe) -> dict[str, Any]:
        """Return Trainer's name of the optimiser."""
        return {"optim": TRAINER_NAMES[recipe.training.optimizer]}


def _take_step() -> None:
    """Take one 8-bit step on the CPU: versions of bitsandbytes differ in their CPU operations."""
    import torch
    from bitsandbytes.optim import AdamW8bit

    parameter = torch.nn.Parameter(torch.zeros(_SMALLEST))
    parameter.grad = torch.ones(_SMALLEST)
    AdamW8bit([parameter]).step()


def in_8_bits(name: Optimizer) -> bool:
    """Return True if an optimiser stores its moments as 8-bit codes."""
    return name.endswith("_8bit")


def keep_embeddings(optimizer: Any, model: nn.Module) -> None:
    """Keep 32-bit moments for trained embeddings, like transformers' Trainer.

    Their gradients are zero except for a batch's tokens, so a scale shared by a block fits badly.
    """
    for module, name in _trained_embeddings(model):
        optimizer.mng.register_module_override(module, name, {"optim_bits": 32})


def moment_bytes(name: Optimizer, model: nn.Module, device: str) -> int:
    """Return the bytes of both moments of all trained parameters that stay in the device's memory.

    Args:
        device: "cpu" or "cuda"; paged moments can leave a GPU, so they are not counted there.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    if not in_8_bits(name):
        return sum(2 * p.numel() * p.element_size() for p in trained)
    plain = {id(getattr(module, name)) for module, name in _trained_embeddings(model)}
    paged = name == "paged_adamw_8bit" and device == "cuda"
    total = 0
    for p in trained:
        n = p.numel()
        coded = n >= _SMALLEST and id(p) not in plain
        # two moments, for each a float32 scale (4 bytes) per block
        scales = 2 * 4 * -(-n // BLOCK) if coded else 0
        moments = 0 if paged and n >= _PAGED else 2 * n * (1 if coded else 4)
        total += moments + scales
    return total


def _trained_embeddings(model: nn.Module) -> list[tuple[nn.Module, str]]:
    """Return the modules with trained rows of tokens, and the name of the rows."""
    from torch import nn

    from sora_cli.model.new_tokens import trained_rows

    rows = trained_rows(model)
    whole = (m for path, m in model.named_modules() if path not in rows)
    embeddings = [m for m in whole if isinstance(m, nn.Embedding) and m.weight.requires_grad]
    return [*((m, "rows") for m in rows.values()), *((m, "weight") for m in embeddings)]
