"""Task families by name: a file here for each, its options and its line in `recipe.families`."""

from __future__ import annotations

from pkgutil import resolve_name
from typing import TYPE_CHECKING

from sora_cli.recipe.families import implementation

if TYPE_CHECKING:
    from sora_cli.recipe.recipe import DataBlock, TaskBlock
    from sora_cli.tasks.base import Task


def create_task(task: TaskBlock, data: DataBlock) -> Task:
    """Make the task that a recipe names.

    Raises:
        SoraError: no such family, or no such metric.
    """
    return task_class(task.name)(task, data)


def task_class(name: str) -> type[Task]:
    """Return a family's class.

    Raises:
        SoraError: no such family.
    """
    family: type[Task] = resolve_name(implementation(name))
    return family
