"""A switch of training: a setting of a recipe that changes how a step is computed.

A switch changes time, memory or rounding, but not the objective. Each one is an object with its
checks, in the order of a run, and the part that it plays in the passes. `switches.py` has the list.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ClassVar

from sora_cli.recipe.recipe import Recipe

Context = AbstractContextManager[None]


class Switch:
    """A switch; its hooks are called only if it is on.

    Attributes:
        KEY: the recipe's key that turns it on.
        OFF: the key's value that does not.
    """

    KEY: ClassVar[str]
    OFF: ClassVar[Any]

    def is_on(self, recipe: Recipe) -> bool:
        """Return True if a recipe turns this switch on."""
        block, name = self.KEY.split(".")
        return bool(getattr(getattr(recipe, block), name) != self.OFF)

    def check_recipe(self, recipe: Recipe) -> None:
        """Check the recipe and the installed packages, before torch is imported."""

    def check_machine(self, recipe: Recipe) -> None:
        """Check devices, compilers and versions, before the data are loaded; may import torch."""

    def check_model(self, recipe: Recipe, model: Any) -> None:
        """Check the loaded base model, before it gets adapters."""

    def arguments(self, recipe: Recipe) -> dict[str, Any]:
        """Return arguments of `TrainingArguments`, where transformers has the switch itself."""
        return {}

    def in_passes(self, model: Any) -> Context:
        """Return a context for forward and backward passes outside a trainer."""
        return nullcontext()

    def in_loss(self, model: Any, device: str) -> Context:
        """Return a context for the forward pass of a training step.

        Args:
            device: type of the device that computes.
        """
        return nullcontext()

    @contextmanager
    def in_training(self, trainer: Any) -> Iterator[Callable[[], Context]]:
        """Set up a training, and restore the model afterwards.

        Yields:
            A function that makes the context of one micro-batch's loss and backward pass.
        """
        yield nullcontext
