"""Families with one class or one number per row: shared head, loss and scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from datasets import Dataset

from sora_cli.recipe.recipe import DataBlock, TaskBlock
from sora_cli.tasks.base import Task
from sora_cli.tasks.encoded import Encoded, Predictions
from sora_cli.tasks.labels import Labels, encode_classes, find_class_names
from sora_cli.tasks.metrics import Scorer, number_parts
from sora_cli.tasks.questions import Questions
from sora_cli.tasks.stand_ins import check_finite, first_class, softmax, with_column


def class_options(names: Sequence[str]) -> dict[str, Any]:
    """Return the configuration values of a head for these classes."""
    return {
        "num_labels": len(names),
        "id2label": dict(enumerate(names)),
        "label2id": {name: i for i, name in enumerate(names)},
    }


def class_loss(predictions: Predictions) -> float:
    """Return the mean cross-entropy of logits (rows, classes)."""
    import torch

    logits = torch.from_numpy(np.asarray(predictions.outputs, dtype=np.float64))
    labels = torch.from_numpy(predictions.true_labels).long()
    return float(torch.nn.functional.cross_entropy(logits, labels))


def class_scores(scorer: Scorer, predictions: Predictions) -> dict[str, float]:
    """Return the metrics of the classes with the largest logits."""
    outputs = predictions.outputs
    if not np.isfinite(outputs).all():
        return scorer(outputs, predictions.true_labels)  # NaN scores: NaN logits predict no class
    return scorer(chosen_classes(predictions), predictions.true_labels)


def class_parts(metric: str, predictions: Predictions) -> tuple[Any, ...]:
    """Return the formula and the parts of a metric of classes (`Task.row_parts`)."""
    labels, outputs = predictions.true_labels, predictions.outputs
    broken = not np.isfinite(outputs).all()  # NaN logits predict no class
    given = np.full(len(labels), np.nan) if broken else chosen_classes(predictions)
    return number_parts(metric, given, labels)


def chosen_classes(predictions: Predictions) -> np.ndarray:
    """Return the classes (rows,) with the largest logits."""
    return np.asarray(predictions.outputs.argmax(axis=-1))


_RARE = 1e-9  # share of a class without rows: its logit stays finite


class OneNumber(Task):
    """A family that predicts one number per row: a class number or a value."""

    def __init__(self, task: TaskBlock, data: DataBlock) -> None:
        super().__init__(task, data)
        self.scorer = Scorer(self.metric_names)


class OneClass(OneNumber):
    """A family with one class per row, for texts or images."""

    _names: list[str]
    """Names of the classes in label order; set by `bind`."""
    _trained: Labels
    """The first label of the training rows; set by `bind`."""

    def stand_in(self, rows: Dataset) -> Dataset:
        return with_column(rows, self.data.label_column, [first_class(self.data)] * len(rows))

    def _bind_labels(self, train: Dataset, column: str) -> None:
        """Find the classes in the training rows."""
        labels = Labels.of(train, column)
        self._names = find_class_names(labels, self.data)
        self._trained = replace(labels, values=labels.values[:1], rows=[0])

    def _check_labels(self, rows: Dataset) -> None:
        """Check that a split's labels are classes of the training rows, written in the same way."""
        labels = Labels.of(rows, self._trained.column)
        labels.check_fits(self._trained)
        encode_classes(labels.values, self._names, column=labels.column)

    @property
    def label_names(self) -> list[str]:
        return self._names

    def questions(self, rows: Dataset, order: np.random.Generator) -> Questions | None:
        del order  # the classes have their own
        shown = {column: [str(value) for value in rows[column][:]] for column in self.input_columns}
        return Questions(shown, [{name: name for name in self._names}] * len(rows))

    def loss(self, predictions: Predictions) -> float:
        return class_loss(predictions)

    def metrics(self, predictions: Predictions) -> dict[str, float]:
        return class_scores(self.scorer, predictions)

    def row_parts(self, predictions: Predictions) -> tuple[Any, ...]:
        return class_parts(self.best, predictions)

    def constant_loss(self, rows: Encoded) -> float | None:
        """Return the loss of one answer to all rows, which knows how frequent each class is."""
        counts = self.class_counts(rows)
        assert counts is not None
        logits = np.log(np.maximum(counts / counts.sum(), _RARE))
        given = np.tile(logits, (counts.sum(), 1))
        return self.loss(Predictions(given, self.labels(rows), rows))

    def answers(self, predictions: Predictions) -> np.ndarray:
        return chosen_classes(predictions)

    def answer_columns(self, predictions: Predictions) -> list[Sequence[Any]]:
        chosen, shares = chosen_classes(predictions), self.probabilities(predictions)
        return [
            [self._names[number] for number in chosen],
            [float(row[number]) for row, number in zip(shares, chosen, strict=True)],
        ]

    def probabilities(self, predictions: Predictions) -> np.ndarray:
        check_finite(predictions.outputs)
        return softmax(predictions.outputs)

    def model_options(self) -> dict[str, Any]:
        return {**class_options(self._names), "problem_type": "single_label_classification"}

    def readable(self, predictions: Predictions) -> list[dict[str, Any]]:
        names, rows = self._names, predictions.outputs
        chosen = chosen_classes(predictions)
        return [
            {"prediction": names[int(p)], "label": names[int(y)], "logits": [float(x) for x in row]}
            for p, y, row in zip(chosen, predictions.true_labels, rows, strict=True)
        ]
