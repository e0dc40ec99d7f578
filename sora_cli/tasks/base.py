"""The interface of a task family: columns to features, model class, loss, metrics, head."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from datasets import Dataset
from torch import Tensor, nn

from methods.words import did_you_mean
from sora_cli.core.errors import SoraError
from sora_cli.data.processor import set_padding
from sora_cli.recipe.families import TaskOptions, main_metric
from sora_cli.recipe.recipe import DataBlock, TaskBlock


@dataclass(frozen=True)
class Encoded:
    """Rows ready for the model: its inputs, among them what its loss needs.

    Attributes:
        dataset: one row for each of the model's; usually, but not always, one for each raw row
            (a long context is read in windows, short texts may share a row).
        lengths: (rows,) tokens of each row.
        truncated: rows that were cut at max_length.
        longest: tokens of the longest row before it was cut; 0: not known.
        examples: what scoring needs beside the model's outputs, one row for each raw row.
    """

    dataset: Dataset
    lengths: np.ndarray
    truncated: int
    longest: int = 0
    examples: Dataset | None = None

    @property
    def raw(self) -> Dataset:
        """The examples of a family that has some."""
        assert self.examples is not None
        return self.examples


@dataclass(frozen=True)
class Predictions:
    """What a model says of encoded rows.

    Attributes:
        outputs: (rows, ...) what `Task.kept` kept of its outputs, in the data set's order.
        labels: (rows,) where each row has one label; else None.
        rows: what it was asked.
        texts: what it wrote, one text for each example; None where nothing was to be written.
    """

    outputs: np.ndarray
    labels: np.ndarray | None
    rows: Encoded | None = None
    texts: Sequence[str] | None = None

    @property
    def asked(self) -> Encoded:
        """The rows, for the families whose scores need them."""
        assert self.rows is not None
        return self.rows

    @property
    def known(self) -> np.ndarray:
        """The labels, for the families whose rows have one each."""
        assert self.labels is not None
        return self.labels


class Task(ABC):
    """A family of tasks. `bind` is called once with the raw training rows, before all else."""

    peft_type: ClassVar[str | None]
    """PEFT's task_type, written into adapters; None where PEFT has none."""
    model_class: ClassVar[str]
    """transformers' Auto class of the model."""
    processor_class: ClassVar[str] = "AutoTokenizer"
    """transformers' Auto class of what makes the model's inputs from raw rows."""
    unscored_inputs: ClassVar[tuple[str, ...]] = ()
    """What of a batch the model is not given when it is scored."""
    one_label: ClassVar[bool] = True
    """Whether each encoded row has a single label."""
    trains_head: ClassVar[bool] = True
    """Whether the model's output head is new and trained in full."""
    input_columns: tuple[str, ...]
    """Columns of the raw rows that the model's input is made of; known once bound."""
    label_column: str | None
    """The column of what is to be predicted; None where it is among the inputs."""

    def __init__(self, task: TaskBlock, data: DataBlock) -> None:
        self.name = task.name
        self.data = data
        self.options: TaskOptions = task.options
        self.metric_names: list[str] = list(self.options.metrics)
        self.best = main_metric(self.metric_names, self.options.best_metric)

    @abstractmethod
    def bind(self, train: Dataset) -> None:
        """Find the columns and the label names in the training rows."""

    @abstractmethod
    def encode(self, rows: Dataset, processor: Any, *, training: bool = False) -> Encoded:
        """Turn raw rows into the model's inputs, and their labels into what its loss takes.

        Args:
            training: the rows are trained on, and not scored.
        """

    def model_options(self) -> dict[str, Any]:
        """Configuration values of the head, such as num_labels and id2label."""
        return {}

    def check_model(self, model: nn.Module, processor: Any) -> None:
        """Make a loaded model and its processor fit each other and the task, in place.

        Raises:
            SoraError: they can not.
        """
        if self.processor_class == "AutoTokenizer":
            set_padding(model, processor)

    @abstractmethod
    def collator(self, processor: Any) -> Any:
        """What pads a list of rows into a batch."""

    def loss_items(self, batch: Mapping[str, Any]) -> int:
        """Number of items the model's loss on this batch is the mean over."""
        return len(batch["labels"])

    def scored_inputs(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return what of a batch the model is given when it is scored."""
        return {name: value for name, value in batch.items() if name not in self.unscored_inputs}

    def kept(self, outputs: Any, batch: Mapping[str, Any]) -> Tensor:
        """(rows, ...) what scores are computed from; rows of other batches may be longer (-100)."""
        kept: Tensor = outputs["logits"]
        return kept

    @abstractmethod
    def loss(self, predictions: Predictions) -> float:
        """The exact mean loss over a whole split, from the model's outputs."""

    @abstractmethod
    def metrics(self, predictions: Predictions) -> dict[str, float]:
        """The recipe's metrics on a split; those of texts only where texts were written."""

    def scores(self, predictions: Predictions) -> dict[str, float]:
        """The metrics of a split, and its exact loss."""
        return {**self.metrics(predictions), "loss": self.loss(predictions)}

    def write(self, model: Any, processor: Any, examples: Dataset) -> list[str] | None:
        """What the model writes for each example; None: the family writes nothing."""
        return None

    def needs_texts(self, metrics: Sequence[str]) -> bool:
        """Whether some of these metrics need texts written."""
        return any(name in self.options.TEXT_METRICS for name in metrics)

    def labels(self, rows: Encoded) -> np.ndarray | None:
        """Return the label of each row, (rows,); None if rows have no single one."""
        return np.asarray(rows.dataset["labels"][:]) if self.one_label else None

    def answers(self, predictions: Predictions) -> np.ndarray | None:
        """(rows,) what the outputs say: the number of a class, or a number; None: neither."""
        return None

    def remarks(self, parts: Mapping[str, Encoded]) -> list[str]:
        """What else a person should hear of the encoded rows.

        Args:
            parts: by name: "train", and those that are scored.
        """
        return []

    @abstractmethod
    def readable(self, predictions: Predictions) -> list[dict[str, Any]]:
        """One record per raw row for `sora eval --predictions`."""

    @property
    def label_names(self) -> list[str] | None:
        """Names of the classes in label order; None where there are none."""
        return None

    def find_columns(self, columns: Sequence[str], parts: Sequence[str]) -> dict[str, str]:
        """The columns that play these parts: `data.columns`, else those with a usual name.

        Raises:
            SoraError: a column that was named is not there. A part without a column is left out.
        """
        found = {}
        for part in parts:
            named = self.data.columns.get(part)
            if named is not None and named not in columns:
                raise SoraError(
                    f"data.columns.{part}: no column '{named}'; {did_you_mean(named, columns)}",
                    key=f"data.columns.{part}",
                )
            usual = (name for name in self.options.COLUMNS[part] if name in columns)
            column = named or next(usual, None)
            if column is not None:
                found[part] = column
        return found

    def require_columns(self, columns: Sequence[str], parts: Sequence[str]) -> dict[str, str]:
        """Like `find_columns`, where each part must have one.

        Raises:
            SoraError: a part without a column; it says which there are.
        """
        found = self.find_columns(columns, parts)
        for part in parts:
            if part not in found:
                raise SoraError(
                    f"no column for '{part}' among {', '.join(columns)}",
                    hint=f"data.columns.{part}=COLUMN",
                    key=f"data.columns.{part}",
                )
        return found
