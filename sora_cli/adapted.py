"""A stored adapter on its base model, ready to be scored on a recipe's task."""

from __future__ import annotations

from collections.abc import Sequence

from methods.base import LowRankLinear
from sora_cli.adapter import Adapter
from sora_cli.errors import SoraError
from sora_cli.loading import apply_adapter
from sora_cli.model import Base, load_base
from sora_cli.recipe import Recipe
from sora_cli.tasks.base import Task


def load_adapted(
    adapter: Adapter, recipe: Recipe, task: Task
) -> tuple[Base, dict[str, LowRankLinear]]:
    """The base the adapter was trained on, with the adapter in it, and the adapted layers.

    Raises:
        SoraError: the adapter is for other classes, or does not fit its base.
    """
    check_classes("adapter", adapter.meta.labels, task)
    update = {"path": adapter.base.path, "revision": adapter.base.revision}
    model = recipe.model.model_copy(update=update)
    base = load_base(model, task, precision=recipe.training.precision)
    return base, apply_adapter(base.model, adapter)


def check_classes(what: str, known: Sequence[str] | None, task: Task) -> None:
    """The same names in the same order: else scores would be of the wrong classes."""
    if known is not None and list(known) != task.label_names:
        raise SoraError(
            f"the {what}'s classes are {', '.join(known)}",
            where=f"the recipe's: {', '.join(task.label_names or ['none'])}",
        )
