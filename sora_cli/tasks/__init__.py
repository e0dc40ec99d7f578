"""Task families by name. One file per family; nothing about a family anywhere else."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
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


def task_target(name: str) -> str:
    """Where the class of a task family is, as "module:Class".

    Raises:
        SoraError: no such family (the message names the nearest).
    """
    if name not in _FAMILIES:
        raise SoraError(f"unknown task '{name}'{did_you_mean(name, _FAMILIES)}", key="task.name")
    return _FAMILIES[name]


def main_metric(names: Sequence[str], best: str | None) -> str:
    """The metric that chooses checkpoints: the first, or `best`.

    Raises:
        SoraError: `best` is not among them.
    """
    if best is not None and best not in names:
        raise SoraError(
            f"task.best_metric '{best}' is not among the metrics",
            where=f"task.metrics: {', '.join(names)}",
            key="task.best_metric",
        )
    return best or names[0]


def create_task(task: TaskBlock, data: DataBlock) -> Task:
    """The task family a recipe names.

    Raises:
        SoraError: no such family, or no such metric.
    """
    module, _, name = task_target(task.name).partition(":")
    family: type[Task] = getattr(importlib.import_module(module), name)
    return family(task, data)
