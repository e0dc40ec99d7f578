"""Task families: one file for each, with options and a table entry in `recipe.families`."""

from __future__ import annotations

from pkgutil import resolve_name
from typing import TYPE_CHECKING

from sora_cli.recipe.families import implementation

if TYPE_CHECKING:
    from sora_cli.recipe.recipe import DataBlock, TaskBlock
    from sora_cli.tasks.base import Task


def create_task(task: TaskBlock, data: DataBlock) -> Task:
    """Make the task that a recipe names."""
    return task_class(task.name)(task, data)


def task_class(name: str) -> type[Task]:
    """Return a family's class."""
    named = implementation(name)
    family: type[Task] = resolve_name(named) if isinstance(named, str) else named
    return family
