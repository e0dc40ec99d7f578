"""What all sides of a task family share: the recipe's options and data."""

from __future__ import annotations

from abc import ABC
from typing import TYPE_CHECKING, ClassVar

from sora_cli.recipe.families import main_metric
from sora_cli.recipe.recipe import DataBlock, TaskBlock
from sora_cli.recipe.task_options import TaskOptions

if TYPE_CHECKING:
    from sora_cli.tasks.corpus import Corpus


class Bound(ABC):
    """A family with a recipe's options for one set of data."""

    OPTIONS: ClassVar[type[TaskOptions]]
    """The class of its options; only for families that are not ours."""

    def __init__(self, task: TaskBlock, data: DataBlock) -> None:
        self.name = task.name
        self.data = data
        self.options: TaskOptions = task.options
        self.metric_names: list[str] = list(self.options.metrics)
        self.best = main_metric(self.metric_names, self.options.best_metric)

    @property
    def corpus(self) -> Corpus | None:
        """The fixed corpus in which queries are searched; None: there is none."""
        return None
