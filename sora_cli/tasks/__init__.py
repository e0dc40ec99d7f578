"""Task families by name. One file per family, and its options; nothing about a family elsewhere."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from sora_cli.recipe.families import FAMILIES, options_class

if TYPE_CHECKING:
    from sora_cli.recipe.recipe import DataBlock, TaskBlock
    from sora_cli.tasks.base import Task


def create_task(task: TaskBlock, data: DataBlock) -> Task:
    """The task family a recipe names.

    Raises:
        SoraError: no such family, or no such metric.
    """
    options_class(task.name)
    module, _, name = FAMILIES[task.name][0].partition(":")
    family: type[Task] = getattr(importlib.import_module(module), name)
    return family(task, data)
