"""The interface of a task family: columns, encoding, loss, metrics and answers."""

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
from sora_cli.data.overlap import input_hashes
from sora_cli.data.places import RowError
from sora_cli.data.processor import set_padding
from sora_cli.data.repeats import list_hashes
from sora_cli.recipe.families import TaskOptions, main_metric
from sora_cli.recipe.recipe import DataBlock, TaskBlock
from sora_cli.tasks.questions import Questions
from sora_cli.tasks.row_scores import RowScores, row_scores


@dataclass(frozen=True)
class Encoded:
    """Rows as inputs of the model, with the labels that its loss needs.

    Attributes:
        dataset: the model's rows; usually one per raw row, but a long context is read in several
            windows, and packed texts share a row.
        lengths: (rows,) tokens of each row, by which rows are grouped into batches.
        truncated: number of rows cut at max_length.
        longest: tokens of the longest row before the cut; 0: unknown.
        examples: further data for scoring, one row per raw row.
        lacking: number of raw rows without anything to learn, by remark ("have no text"); each row
            is counted once.
        notes: number of raw rows by any other remark.
        tokens: (rows,) tokens of each row, which decide its memory, if rows are not grouped by
            them; None: `lengths`.
    """

    dataset: Dataset
    lengths: np.ndarray
    truncated: int
    longest: int = 0
    examples: Dataset | None = None
    lacking: Mapping[str, int] = field(default_factory=dict)
    notes: Mapping[str, int] = field(default_factory=dict)
    tokens: np.ndarray | None = None

    @property
    def sizes(self) -> np.ndarray:
        """The tokens of each row, which decide its memory, (rows,)."""
        return self.lengths if self.tokens is None else self.tokens

    @property
    def raw(self) -> Dataset:
        """The examples; only for families that define them."""
        assert self.examples is not None
        return self.examples


@dataclass(frozen=True)
class Lengths:
    """Numbers of tokens of rows before any cut.

    Attributes:
        tokens: (rows,) tokens that the model reads.
        targets: (rows,) tokens that the model is to write, if they have a limit of their own.
        window: number of tokens that is long enough for any row, because longer rows are read in
            several windows; None if rows are not read in windows.
    """

    tokens: np.ndarray
    targets: np.ndarray | None = None
    window: int | None = None


@dataclass(frozen=True)
class Predictions:
    """A model's outputs on encoded rows.

    Attributes:
        outputs: (rows, ...) the results of `Task.outputs_to_keep`, in the data set's order.
        labels: (rows,) if each row has one label, else None.
        rows: the model's input rows.
        texts: generated texts, one per example; None if nothing was generated.
        reference: (rows, ...) float64, the part of the reference model's outputs that rewards are
            measured against; None for families without one.
    """

    outputs: np.ndarray
    labels: np.ndarray | None
    rows: Encoded | None = None
    texts: Sequence[str] | None = None
    reference: np.ndarray | None = None

    @property
    def encoded(self) -> Encoded:
        """The model's input rows; only for families whose scores need these rows."""
        assert self.rows is not None
        return self.rows

    @property
    def true_labels(self) -> np.ndarray:
        """The labels, for families with one label per row."""
        assert self.labels is not None
        return self.labels


class ReferenceModel(ABC):
    """The model that a family's loss and scores compare the trained model with."""

    name: str
    """As in the recipe."""
    digest: str | None
    """Of its adapter's files; None: the base model alone."""

    @abstractmethod
    def outputs(self, rows: Encoded, trainer: Any) -> np.ndarray:
        """Return `Task.measured` of its outputs on rows, computed once.

        Args:
            trainer: of the model that is compared with it.
        """

    @abstractmethod
    def check_same(self, digest: str | None, name: str) -> None:
        """Refuse a reference other than the one that a trained adapter was compared with.

        Args:
            digest: as recorded with that adapter; None: the base model, or not known.
            name: of that reference at that time.
        """


class Task(ABC):
    """A family of tasks; call `bind` with the raw training rows before any other method."""

    OPTIONS: ClassVar[type[TaskOptions]]
    """The class of its options; only for families that are not ours."""
    peft_type: ClassVar[str | None]
    """PEFT's task_type, written into adapters; None if PEFT has none for this family."""
    unscored_inputs: ClassVar[tuple[str, ...]] = ()
    """Names in a batch that are removed before the model is scored."""
    rows_apart: ClassVar[bool] = True
    """False if a row's loss depends on the other rows of its micro-batch."""
    one_label: ClassVar[bool] = True
    """True if each encoded row has a single label."""
    answered_by: ClassVar[tuple[str, ...]] = ("prediction",)
    """Names of the columns that hold a model's answers."""
    writes_answers: ClassVar[bool] = False
    """True if the answers are generated texts, which need no outputs of the model."""
    can_speak: ClassVar[bool] = False
    """True if its models continue prompts, for `sora chat` and `sora generate`."""
    answered_together: ClassVar[int] = 4096
    """Number of rows in memory at a time for `sora predict`."""
    answers_numbers: ClassVar[bool] = False
    """True if an answer is a number, so that two models' answers are equal by chance alone."""
    trains_head: ClassVar[bool] = True
    """True if the model's output head is new and trained in full."""
    input_columns: tuple[str, ...]
    """Columns of the model's input in raw rows; set by `bind`."""
    label_column: str | None
    """The label's column; None if the label is part of the input. Set by `bind`."""
    reference: ReferenceModel | None = None
    """For tasks that need one; set where the recipe is known."""

    def __init__(self, task: TaskBlock, data: DataBlock) -> None:
        self.name = task.name
        self.data = data
        self.options: TaskOptions = task.options
        self.metric_names: list[str] = list(self.options.metrics)
        self.best = main_metric(self.metric_names, self.options.best_metric)

    @classmethod
    def is_for(cls, config: Any) -> bool:
        """Return True if a model with this configuration may be of this family."""
        del config
        return True

    @abstractmethod
    def bind(self, train: Dataset) -> None:
        """Find the columns and the label names in the training rows."""

    @abstractmethod
    def check(self, rows: Dataset) -> None:
        """Check the raw rows of a split: a missing column or a wrong value is a `RowError`.

        This needs no model.
        """

    @abstractmethod
    def encode(self, rows: Dataset, processor: Any, *, training: bool = False) -> Encoded:
        """Turn checked rows into the model's inputs and labels.

        `sora init` calls this without a model, and so without `check_model` before it.

        Args:
            training: True if the rows are trained on, False if they are scored.
        """

    def token_lengths(self, rows: Dataset, processor: Any) -> Lengths | None:
        """Count the tokens of checked rows; None for rows without tokens.

        Call it on a task whose limits are above the length of every row.
        """
        encoded = self.encode(rows, processor, training=True)
        return Lengths(encoded.lengths) if "input_ids" in encoded.dataset.column_names else None

    def find_inputs(self, train: Dataset) -> None:
        """Find the columns of the input only, for `raw_keys`: `bind` may look at every label."""
        self.bind(train)

    def raw_keys(self, rows: Dataset) -> list[np.ndarray]:
        """Return keys of raw rows, (rows,) each: rows that agree in any key have the same input."""
        return [input_hashes(rows, self.input_columns)]

    def input_keys(self, rows: Encoded, *, answers: bool = False) -> list[np.ndarray]:
        """Return keys of the rows as the model gets them, (rows,) each, as `raw_keys` does.

        Keys of rows that are trained on and of rows that are scored can be compared; the former may
        be fewer and in another order. Two rows that only differ beyond `data.max_length` are equal.

        Args:
            answers: of families that write texts: a row's given answer belongs to its input.
        """
        return [list_hashes(rows.dataset, "input_ids")]

    def shared_part(self, rows: Encoded) -> tuple[str, np.ndarray] | None:
        """Return the name and keys (rows,) of a part of the input that rows have in common.

        None: the family has no such part, and rows with different inputs count as independent.
        """
        return None

    @abstractmethod
    def stand_in(self, rows: Dataset) -> Dataset:
        """Return raw rows with a placeholder for each label or target, replacing existing values.

        The rows can then be bound, checked and encoded like rows with labels. The placeholder does
        not change the model's inputs. For families with classes, `data.label_names` must be set. A
        missing input column is a `RowError`.
        """

    def unlabelled(self, rows: Dataset) -> Dataset:
        """Return raw rows of which nobody has said the label, with the columns of the input."""
        return rows

    def template(self, processor: Any) -> str | None:
        """Describe the template of a row's text; None if the columns are used unchanged."""
        return None

    def model_options(self) -> dict[str, Any]:
        """Return configuration values of the head (num_labels, id2label, ...)."""
        return {}

    def check_model(self, model: nn.Module, processor: Any) -> None:
        """Adapt a loaded model and its processor to each other and to the task, in place.

        A model that cannot be used for the task is an error.
        """
        if self.options.PROCESSOR_CLASS == "AutoTokenizer":
            set_padding(model, processor)

    @abstractmethod
    def collator(self, processor: Any) -> Any:
        """Return the function that pads a list of rows into a batch."""

    def loss_items(self, batch: Mapping[str, Any]) -> int:
        """Return the number of items that the model's loss averages over in this batch."""
        return len(batch["labels"])

    def inputs_of(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the part of a batch that the model gets in training.

        A family with a loss of its own leaves the labels out, so that no second loss is computed.
        """
        return batch

    def loss_of(self, outputs: Any, batch: Mapping[str, Any]) -> Tensor:
        """Return the mean loss of a batch's `loss_items`, from the model's outputs on `inputs_of`.

        It may use outputs, batch and the family's own state, never the model's parameters.
        """
        loss: Tensor = outputs["loss"]
        return loss

    def batch_loss(self, model: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, Any]:
        """Return a batch's loss and the model's outputs, as training and its forecasts have it."""
        outputs = model(**self.inputs_of(batch))
        return self.loss_of(outputs, batch), outputs

    def scored_inputs(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the model's inputs for scoring: the batch without `unscored_inputs`."""
        return {name: value for name, value in batch.items() if name not in self.unscored_inputs}

    def outputs_to_keep(self, outputs: Any, batch: Mapping[str, Any]) -> Tensor:
        """Return the part of the outputs that scores need, (rows, ...).

        Rows of other batches may be longer; shorter rows are then padded with -100.
        """
        kept: Tensor = outputs["logits"]
        return kept

    @abstractmethod
    def loss(self, predictions: Predictions) -> float:
        """Return the exact mean loss over a whole split, from the model's outputs."""

    @abstractmethod
    def metrics(self, predictions: Predictions) -> dict[str, float]:
        """Return the recipe's metrics on a split; metrics of texts only if texts were generated."""

    def scores(self, predictions: Predictions) -> dict[str, float]:
        """Return the metrics of a split and its exact loss."""
        return {**self.metrics(predictions), "loss": self.loss(predictions)}

    def row_scores(self, predictions: Predictions) -> RowScores:
        """Return the main metric (`best`) by row, so that it can be computed on any subset of rows.

        `row_scores(p).value` equals `metrics(p)[best]`. There is one row per raw row, in order. A
        metric that compares all rows with each other has no scores by row and raises `SoraError`.
        """
        formula, *parts = self.row_parts(predictions)
        better, alone = self.options.greater_is_better, self.options.ROWS_ALONE
        return row_scores(self.best, formula, *parts, greater_is_better=better, rows_alone=alone)

    @abstractmethod
    def row_parts(self, predictions: Predictions) -> tuple[Any, ...]:
        """Return a formula's name (see `row_scores.FORMULAS`) and its parts, (rows,) each.

        Parts are NaN if the metric is NaN.
        """

    def write(self, model: Any, processor: Any, examples: Dataset) -> list[str] | None:
        """Generate a text for each example; None if the family generates no texts."""
        return None

    def needs_texts(self, metrics: Sequence[str]) -> bool:
        """Return True if any of these metrics needs generated texts."""
        return any(name in self.options.TEXT_METRICS for name in metrics)

    def labels(self, rows: Encoded) -> np.ndarray | None:
        """Return each row's label, (rows,); None for families without one label per row."""
        return np.asarray(rows.dataset["labels"][:]) if self.one_label else None

    def class_counts(self, rows: Encoded) -> np.ndarray | None:
        """Count the rows of each class, (classes,); None if there are no classes."""
        names, labels = self.label_names, self.labels(rows)
        if names is None or labels is None:
            return None
        return np.bincount(labels, minlength=len(names))

    def constant_loss(self, rows: Encoded) -> float | None:
        """Return the loss of the best constant answer to training rows; None: there is none.

        For classes that is the entropy of their shares (nats), for numbers their variance.
        """
        counts = self.class_counts(rows)
        if counts is not None:
            shares = counts[counts > 0] / counts.sum()
            return float(-(shares * np.log(shares)).sum())
        return float(np.var(rows.dataset["labels"][:])) if self.answers_numbers else None

    def answers(self, predictions: Predictions) -> np.ndarray | None:
        """Return each row's predicted class number or value, (rows,); None for other families."""
        return None

    @abstractmethod
    def answer_columns(self, predictions: Predictions) -> list[Sequence[Any]]:
        """Return the model's answers: one column per name in `answered_by`, (rows,) each.

        Outputs that are not finite are a `RowError`.
        """

    def questions(self, rows: Dataset, order: np.random.Generator) -> Questions | None:
        """Return raw rows as a person sees them to label them.

        Args:
            order: draws the order of what is shown, where that could tell the answer.

        Returns:
            None: the labels of this family are no short list.
        """
        del rows, order
        return None

    def compared_answers(self, predictions: Predictions) -> Sequence[Any]:
        """Return the answer to each raw row in the form in which two models are compared.

        Scores and probabilities are left out: they differ where the answers are the same.
        """
        return self.answer_columns(predictions)[0]

    def probabilities(self, predictions: Predictions) -> np.ndarray | None:
        """Return the probability of each class, (rows, classes); None if there are no classes."""
        return None

    def remarks(self, parts: Mapping[str, Encoded]) -> list[str]:
        """Return further remarks on the encoded rows, for the user.

        Args:
            parts: by name: "train", and the scored splits.
        """
        return []

    @abstractmethod
    def readable(self, predictions: Predictions) -> list[dict[str, Any]]:
        """Return one mapping per scored raw row, for `sora eval --predictions`."""

    @property
    def needs_reference(self) -> bool:
        """True if scores and loss compare the model with a reference model."""
        return False

    def measured(self, outputs: np.ndarray) -> np.ndarray:
        """Return the part of a reference model's kept outputs that is compared, float64."""
        return outputs

    def with_reference(self, rows: Encoded, reference: np.ndarray) -> Encoded:
        """Return training rows with the reference model's outputs."""
        del reference
        return rows

    @property
    def label_names(self) -> list[str] | None:
        """Names of the classes in label order; None if there are no classes."""
        return None

    def find_columns(self, columns: Sequence[str], parts: Sequence[str]) -> dict[str, str]:
        """Return the column of each part: from `data.columns`, else a column with a usual name.

        A part without a column is left out; a column that `data.columns` names must exist.
        """
        by_part = {}
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
                by_part[part] = column
        return by_part

    def part_column(self, columns: Sequence[str], part: str) -> str:
        """Return the column of a part; if it does not exist, the name that it would have."""
        usual = self.options.COLUMNS[part]
        return self.data.columns.get(part) or next((n for n in usual if n in columns), usual[0])

    def require_columns(self, columns: Sequence[str], parts: Sequence[str]) -> dict[str, str]:
        """Return the column of each part, as `find_columns` does, but require one for each part."""
        by_part = self.find_columns(columns, parts)
        for part in parts:
            if part not in by_part:
                raise RowError(
                    f"no column for '{part}' among {listed(columns)}",
                    hint=f"data.columns.{part}=COLUMN",
                )
        return by_part
