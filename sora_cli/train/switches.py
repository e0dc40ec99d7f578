"""All switches of training, and the places of a run that walk them.

Precision, optimisers, gradient checkpointing and attention are transformers' own, and only checked
and passed on here, so that a mistake is told in our words before anything is loaded. Our own are:
compiled blocks, since transformers would compile evaluation and generation, too; Liger's kernels
and attention from the Hub, since their losses and gradients are compared before the first step;
and the offload of activations, which transformers does not have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

from sora_cli.core.device import is_accelerated
from sora_cli.core.errors import SoraError
from sora_cli.core.processes import check_alone
from sora_cli.model.attention import check_attention, check_dropout
from sora_cli.model.quantisation import check_quantise
from sora_cli.recipe.recipe import Recipe
from sora_cli.train.compiled import Compilation
from sora_cli.train.kernels import LigerKernels
from sora_cli.train.optimizers import OptimizerChoice
from sora_cli.train.precision import Precision
from sora_cli.train.switch import Context, Switch


class Quantisation(Switch):
    """Packed base weights. `load_base` checks the machine and packs them, for every command."""

    KEY = "model.quantise"
    OFF = None

    def check_recipe(self, recipe: Recipe) -> None:
        """Check the installed packages and the launcher."""
        check_quantise(recipe.model)


class Attention(Switch):
    """The attention that a recipe names. `load_base` checks the machine, for every command."""

    KEY = "model.attention"
    OFF = None

    def check_recipe(self, recipe: Recipe) -> None:
        """Check the installed packages."""
        check_attention(recipe.model)

    def check_model(self, recipe: Recipe, model: Any) -> None:
        """Check that the implementation does not ignore the model's dropout."""
        check_dropout(recipe.model, model.config)

    @contextmanager
    def in_training(self, trainer: Any) -> Iterator[Callable[[], Context]]:
        """Compare a kernel's loss and gradient with the usual attention's."""
        from sora_cli.train.sameness import check_attention_same

        check_attention_same(trainer)
        yield nullcontext


class ActivationOffload(Switch):
    """Tensors kept for the backward pass wait in the machine's memory."""

    KEY = "training.activation_offload"
    OFF = False

    def check_machine(self, recipe: Recipe) -> None:
        """Check that there is a GPU, and only one process."""
        check_alone(self.KEY, f"{self.KEY}=false")
        if not is_accelerated():
            raise SoraError(
                f"{self.KEY} moves tensors from a GPU to the machine's memory, and there is no GPU",
                hint=f"{self.KEY}=false; less memory: training.gradient_checkpointing=true",
                key=self.KEY,
            )

    def in_loss(self, model: Any, device: str) -> Context:
        """Offload tensors that the forward pass keeps, but not the model's own."""
        from sora_cli.model.activation_offload import offloaded

        return offloaded((*model.parameters(), *model.buffers()), device=device)


class GradientCheckpointing(Switch):
    """Recomputed activations. In a trainer the switch is transformers'."""

    KEY = "training.gradient_checkpointing"
    OFF = False

    def check_model(self, recipe: Recipe, model: Any) -> None:
        """Check that the model's code supports it."""
        with self.in_passes(model):
            pass

    def arguments(self, recipe: Recipe) -> dict[str, Any]:
        """Return Trainer's arguments of the switch."""
        from sora_cli.model.gradient_checkpointing import checkpointing_arguments

        return checkpointing_arguments()

    def in_passes(self, model: Any) -> Context:
        """Checkpoint the model's blocks."""
        from sora_cli.model.gradient_checkpointing import checkpointed

        return checkpointed(model)


SWITCHES: tuple[Switch, ...] = (
    Precision(), Quantisation(), Attention(), OptimizerChoice(), Compilation(), LigerKernels(),
    ActivationOffload(), GradientCheckpointing(),
)  # fmt: skip


def _on(recipe: Recipe) -> list[Switch]:
    return [switch for switch in SWITCHES if switch.is_on(recipe)]


def check_recipe(recipe: Recipe) -> None:
    """Check a recipe's switches before torch is imported."""
    for switch in _on(recipe):
        switch.check_recipe(recipe)


def check_machine(recipe: Recipe) -> None:
    """Check this machine for the needs of a recipe's switches; imports torch."""
    for switch in _on(recipe):
        switch.check_machine(recipe)


def check_model(recipe: Recipe, model: Any) -> None:
    """Check that a loaded base model can be trained with a recipe's switches."""
    for switch in _on(recipe):
        switch.check_model(recipe, model)


def arguments(recipe: Recipe) -> dict[str, Any]:
    """Return the arguments of `TrainingArguments` that turn transformers' own switches on."""
    return {k: v for switch in _on(recipe) for k, v in switch.arguments(recipe).items()}


@contextmanager
def in_passes(recipe: Recipe, model: Any) -> Iterator[None]:
    """Switch a model for forward and backward passes outside a trainer; it is restored."""
    with ExitStack() as stack:
        for switch in _on(recipe):
            stack.enter_context(switch.in_passes(model))
        yield


@contextmanager
def in_loss(recipe: Recipe, model: Any, device: str) -> Iterator[None]:
    """Switch the forward pass of a training step.

    Args:
        device: type of the device that computes.
    """
    with ExitStack() as stack:
        for switch in _on(recipe):
            stack.enter_context(switch.in_loss(model, device))
        yield


@contextmanager
def in_training(recipe: Recipe, trainer: Any) -> Iterator[list[Callable[[], Context]]]:
    """Set up a training with a recipe's switches, and restore the model afterwards.

    Yields:
        Functions that make the contexts of one micro-batch's loss and backward pass.
    """
    with ExitStack() as stack:
        yield [stack.enter_context(switch.in_training(trainer)) for switch in _on(recipe)]
