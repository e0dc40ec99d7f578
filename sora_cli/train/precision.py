"""`training.precision`: products in 16 bits by torch's autocast; parameters stay as they are."""

from __future__ import annotations

from typing import Any

from sora_cli.core.device import is_cuda
from sora_cli.core.errors import SoraError
from sora_cli.recipe.recipe import Recipe
from sora_cli.train.switch import Context, Switch


class Precision(Switch):
    """Autocast to bf16 or fp16; in a trainer it is accelerate's."""

    KEY = "training.precision"
    OFF = "fp32"

    def check_machine(self, recipe: Recipe) -> None:
        """Check that fp16, whose small range needs a gradient scaler, has a GPU."""
        if recipe.training.precision == "fp16" and not is_cuda():
            raise SoraError(
                "precision fp16 needs a GPU", hint="training.precision=bf16", key=self.KEY
            )

    def arguments(self, recipe: Recipe) -> dict[str, Any]:
        """Return Trainer's flag of the precision."""
        return {recipe.training.precision: True}


def autocast(precision: str, device: str) -> Context:
    """Return autocast's context for passes outside a trainer.

    Args:
        precision: as in `training.precision`, settled.
        device: type of the device.
    """
    import torch

    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    return torch.autocast(device, dtype=dtype, enabled=dtype is not None)
