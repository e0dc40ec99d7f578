"""The interface of a task family: columns to features, model class, loss, metrics, head."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from datasets import Dataset

from sora_cli.metrics import Scorer
from sora_cli.recipe import DataBlock, TaskBlock


@dataclass(frozen=True)
class Encoded:
    """Rows ready for the model: its inputs and `labels`, in the data set's order."""

    dataset: Dataset
    lengths: np.ndarray  # (rows,) tokens of each row
    truncated: int  # rows that were cut at max_length
    longest: int = 0  # tokens of the longest row before it was cut; 0: not known


class Task(ABC):
    """A family of tasks. `bind` is called once with the raw training rows, before all else."""

    name: ClassVar[str]
    peft_type: ClassVar[str]
    """PEFT's task_type, written into adapters."""
    default_metrics: ClassVar[tuple[str, ...]]
    trains_head: ClassVar[bool] = True
    """Whether the model's output head is new and trained in full."""
    text_columns: tuple[str, ...]
    """Columns of the raw rows that the model's input is made of; known once bound."""

    def __init__(self, task: TaskBlock, data: DataBlock) -> None:
        self.data = data
        self.scorer = Scorer(task.metrics or list(self.default_metrics), task.best_metric)

    @abstractmethod
    def bind(self, train: Dataset) -> None:
        """Find the columns and the label names in the training rows."""

    @abstractmethod
    def encode(self, rows: Dataset, tokenizer: Any) -> Encoded:
        """Tokenise rows and turn their labels into what the model's loss takes."""

    @abstractmethod
    def model_class(self) -> Any:
        """The transformers Auto class to load."""

    @abstractmethod
    def model_options(self) -> dict[str, Any]:
        """Configuration values of the head, such as num_labels and id2label."""

    @abstractmethod
    def collator(self, tokenizer: Any) -> Any:
        """What pads a list of rows into a batch."""

    @abstractmethod
    def loss_items(self, batch: Mapping[str, Any]) -> int:
        """Number of items the model's loss on this batch is the mean over."""

    @abstractmethod
    def loss(self, predictions: np.ndarray, labels: np.ndarray) -> float:
        """The exact mean loss over a whole split, from the model's outputs."""

    @abstractmethod
    def answers(self, predictions: np.ndarray) -> np.ndarray:
        """(rows,) what the model's outputs say: the number of a class, or a number."""

    @abstractmethod
    def metrics(self, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Scores of the model's outputs on a split."""

    def scores(self, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """The metrics of a split, and its exact loss."""
        return {**self.metrics(predictions, labels), "loss": self.loss(predictions, labels)}

    @abstractmethod
    def readable(self, predictions: np.ndarray, labels: np.ndarray) -> list[dict[str, Any]]:
        """One record per row for `sora eval --predictions`."""

    @property
    @abstractmethod
    def label_names(self) -> list[str] | None:
        """Names of the classes in label order; None where there are none."""
