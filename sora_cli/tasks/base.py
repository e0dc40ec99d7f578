"""The interface of a task family: columns to features, model class, loss, metrics, head."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from datasets import Dataset
from torch import Tensor, nn

from methods.words import did_you_mean
from sora_cli.core.words import listed
from sora_cli.data.places import RowError
from sora_cli.data.processor import set_padding
from sora_cli.recipe.families import TaskOptions, main_metric
from sora_cli.recipe.recipe import DataBlock, TaskBlock
from sora_cli.tasks.row_scores import RowScores, row_scores


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
        lacking: raw rows that have nothing to learn: what of them is to be said ("have no text"),
            and how many they are, each counted once.
        told: raw rows of which something else is to be said.
    """

    dataset: Dataset
    lengths: np.ndarray
    truncated: int
    longest: int = 0
    examples: Dataset | None = None
    lacking: Mapping[str, int] = field(default_factory=dict)
    told: Mapping[str, int] = field(default_factory=dict)

    @property
    def raw(self) -> Dataset:
        """The examples, for families that have some."""
        assert self.examples is not None
        return self.examples


@dataclass(frozen=True)
class Lengths:
    """Tokens of rows, before anything is cut.

    Attributes:
        tokens: (rows,) that the model reads.
        targets: (rows,) that it is to write, where these are cut on their own.
        window: tokens that rows need not be longer than, since the rest is read in another window.
    """

    tokens: np.ndarray
    targets: np.ndarray | None = None
    window: int | None = None


@dataclass(frozen=True)
class Predictions:
    """A model's outputs on encoded rows.

    Attributes:
        outputs: (rows, ...) what `Task.kept` kept of its outputs, in the data set's order.
        labels: (rows,) if each row has one label, else None.
        rows: the rows the model was given.
        texts: what it wrote, one text for each example; None if nothing was to be written.
    """

    outputs: np.ndarray
    labels: np.ndarray | None
    rows: Encoded | None = None
    texts: Sequence[str] | None = None

    @property
    def encoded(self) -> Encoded:
        """The rows, for the families whose scores need them."""
        assert self.rows is not None
        return self.rows

    @property
    def true_labels(self) -> np.ndarray:
        """The labels, for the families whose rows have one each."""
        assert self.labels is not None
        return self.labels


class Task(ABC):
    """A family of tasks. `bind` is called once with the raw training rows, before all else."""

    peft_type: ClassVar[str | None]
    """PEFT's task_type, written into adapters; None where PEFT has none."""
    unscored_inputs: ClassVar[tuple[str, ...]] = ()
    """Names in a batch that the model is not given when it is scored."""
    rows_apart: ClassVar[bool] = True
    """False if a row's loss depends on the other rows of its micro-batch."""
    one_label: ClassVar[bool] = True
    """True if each encoded row has a single label."""
    answered_by: ClassVar[tuple[str, ...]] = ("prediction",)
    """Names of the columns that say what a model answers to a row."""
    writes_answers: ClassVar[bool] = False
    """True if an answer is a text that the model writes, for which no outputs are needed."""
    answered_together: ClassVar[int] = 4096
    """Rows that are in memory together where each row is to be answered."""
    answers_numbers: ClassVar[bool] = False
    """True if an answer is a number, so that two models' answers are equal by chance alone."""
    trains_head: ClassVar[bool] = True
    """True if the model's output head is new and trained in full."""
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

    @classmethod
    def is_for(cls, config: Any) -> bool:
        """Tell whether a model of the family's class may be of the family, by its configuration."""
        del config
        return True

    @abstractmethod
    def bind(self, train: Dataset) -> None:
        """Find the columns and the label names in the training rows."""

    @abstractmethod
    def check(self, rows: Dataset) -> None:
        """Check the raw rows of a split, as far as that needs no model.

        Raises:
            RowError: a column is missing, or a row does not fit.
        """

    @abstractmethod
    def encode(self, rows: Dataset, processor: Any, *, training: bool = False) -> Encoded:
        """Turn checked rows into the model's inputs, and their labels into what its loss takes.

        `sora init` calls it without a model: `check_model` has then not been called.

        Args:
            training: the rows are trained on, and not scored.
        """

    def token_lengths(self, rows: Dataset, processor: Any) -> Lengths | None:
        """Count the tokens of checked rows; None for rows without any.

        The task has limits that no row reaches.
        """
        encoded = self.encode(rows, processor, training=True)
        return Lengths(encoded.lengths) if "input_ids" in encoded.dataset.column_names else None

    @abstractmethod
    def stand_in(self, rows: Dataset) -> Dataset:
        """Return raw rows with something in the place of what is to be predicted.

        They can then be bound, checked and encoded as rows that are scored; what a model is given
        to answer them does not depend on it. What stands in that place already is replaced.
        Classes have names by then: `data.label_names`.

        Raises:
            RowError: the columns of the inputs are not there.
        """

    def template(self, processor: Any) -> str | None:
        """Say what a row's text is made with; None: with nothing but the columns themselves."""
        return None

    def model_options(self) -> dict[str, Any]:
        """Return configuration values of the head, such as num_labels and id2label."""
        return {}

    def check_model(self, model: nn.Module, processor: Any) -> None:
        """Make a loaded model and its processor fit each other and the task, in place.

        Raises:
            SoraError: they cannot.
        """
        if self.options.PROCESSOR_CLASS == "AutoTokenizer":
            set_padding(model, processor)

    @abstractmethod
    def collator(self, processor: Any) -> Any:
        """Return the function that pads a list of rows into a batch."""

    def loss_items(self, batch: Mapping[str, Any]) -> int:
        """Return the number of items that the model's loss on this batch is the mean of."""
        return len(batch["labels"])

    def scored_inputs(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return what of a batch the model is given when it is scored."""
        return {name: value for name, value in batch.items() if name not in self.unscored_inputs}

    def kept(self, outputs: Any, batch: Mapping[str, Any]) -> Tensor:
        """Return what scores need of the outputs, (rows, ...).

        Rows of other batches may be longer; the shorter ones are then padded with -100.
        """
        kept: Tensor = outputs["logits"]
        return kept

    @abstractmethod
    def loss(self, predictions: Predictions) -> float:
        """Return the exact mean loss over a whole split, from the model's outputs."""

    @abstractmethod
    def metrics(self, predictions: Predictions) -> dict[str, float]:
        """Return the recipe's metrics on a split; those of texts only if texts were written."""

    def scores(self, predictions: Predictions) -> dict[str, float]:
        """Return the metrics of a split, and its exact loss."""
        return {**self.metrics(predictions), "loss": self.loss(predictions)}

    def row_scores(self, predictions: Predictions) -> RowScores:
        """Return the main metric, `best`, row by row: what it takes to compute it on any rows.

        `row_scores(p).value` is `metrics(p)[best]`; there is one row for each raw row, in order.

        Raises:
            SoraError: a metric that compares all rows with each other, so that no row has its own.
        """
        formula, *parts = self.row_parts(predictions)
        better = self.options.greater_is_better
        return row_scores(self.best, formula, *parts, greater_is_better=better)

    @abstractmethod
    def row_parts(self, predictions: Predictions) -> tuple[Any, ...]:
        """Return a formula's name (see `row_scores.FORMULAS`), and its parts, (rows,) each.

        They are NaN where the metric would be.
        """

    def write(self, model: Any, processor: Any, examples: Dataset) -> list[str] | None:
        """Let the model write a text for each example; None if the family writes nothing."""
        return None

    def needs_texts(self, metrics: Sequence[str]) -> bool:
        """Tell whether some of these metrics need texts written."""
        return any(name in self.options.TEXT_METRICS for name in metrics)

    def labels(self, rows: Encoded) -> np.ndarray | None:
        """Return the label of each row, (rows,); None if rows have no single one."""
        return np.asarray(rows.dataset["labels"][:]) if self.one_label else None

    def class_counts(self, rows: Encoded) -> np.ndarray | None:
        """Return how often each class is the label, (classes,); None if there are no classes."""
        names, labels = self.label_names, self.labels(rows)
        if names is None or labels is None:
            return None
        return np.bincount(labels, minlength=len(names))

    def answers(self, predictions: Predictions) -> np.ndarray | None:
        """Return each row's class number, or number, (rows,), from the outputs; None: neither."""
        return None

    @abstractmethod
    def answer_columns(self, predictions: Predictions) -> list[Sequence[Any]]:
        """Return what a model answers: a column for each of `answered_by`, (rows,) each.

        Raises:
            RowError: a row whose outputs are not finite.
        """

    def compared_answers(self, predictions: Predictions) -> Sequence[Any]:
        """Return the answer to each raw row in the form in which two models are compared.

        Scores and probabilities are left out: they differ where the answers are the same.
        """
        return self.answer_columns(predictions)[0]

    def probabilities(self, predictions: Predictions) -> np.ndarray | None:
        """Return the probability of each class, (rows, classes); None if there are no classes."""
        return None

    def remarks(self, parts: Mapping[str, Encoded]) -> list[str]:
        """Return further remarks on the encoded rows, for a person to read.

        Args:
            parts: by name: "train", and those that are scored.
        """
        return []

    @abstractmethod
    def readable(self, predictions: Predictions) -> list[dict[str, Any]]:
        """Return one record per raw row that is scored, for `sora eval --predictions`."""

    @property
    def label_names(self) -> list[str] | None:
        """Names of the classes in label order; None if there are none."""
        return None

    def find_columns(self, columns: Sequence[str], parts: Sequence[str]) -> dict[str, str]:
        """Return the columns that play these parts: `data.columns`, else those with a usual name.

        Raises:
            RowError: a column that was named is not there. A part without a column is left out.
        """
        found = {}
        for part in parts:
            named = self.data.columns.get(part)
            if named is not None and named not in columns:
                raise RowError(
                    f"data.columns.{part}: no column '{named}'; {did_you_mean(named, columns)}",
                    key=f"data.columns.{part}",
                )
            usual = (name for name in self.options.COLUMNS[part] if name in columns)
            column = named or next(usual, None)
            if column is not None:
                found[part] = column
        return found

    def part_column(self, columns: Sequence[str], part: str) -> str:
        """Return the column that plays a part, or would play it if it were there."""
        usual = self.options.COLUMNS[part]
        return self.data.columns.get(part) or next((n for n in usual if n in columns), usual[0])

    def require_columns(self, columns: Sequence[str], parts: Sequence[str]) -> dict[str, str]:
        """Return the same as `find_columns`, where each part must have a column.

        Raises:
            RowError: a part without a column; it says which there are.
        """
        found = self.find_columns(columns, parts)
        for part in parts:
            if part not in found:
                raise RowError(
                    f"no column for '{part}' among {listed(columns)}",
                    hint=f"data.columns.{part}=COLUMN",
                )
        return found
