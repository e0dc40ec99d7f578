"""Task families by name. One file per family; nothing about a family anywhere else."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from methods.registry import did_you_mean
from sora_cli.errors import SoraError

if TYPE_CHECKING:
    from sora_cli.recipe import DataBlock, TaskBlock
    from sora_cli.tasks.base import Task

_FAMILIES = {
    "sequence-classification": "sora_cli.tasks.sequence:SequenceClassification",
    "sequence-regression": "sora_cli.tasks.sequence:SequenceRegression",
}


def task_names() -> list[str]:
    """All task families."""
    return list(_FAMILIES)


def create_task(task: TaskBlock, data: DataBlock) -> Task:
    """The task family a recipe names.

    Raises:
        SoraError: no such family (the message names the nearest).
    """
    target = _FAMILIES.get(task.name)
    if target is None:
        raise SoraError(
            f"unknown task '{task.name}'{did_you_mean(task.name, _FAMILIES)}", where="in task.name"
        )
    module, _, name = target.partition(":")
    family: type[Task] = getattr(importlib.import_module(module), name)
    return family(task, data)
