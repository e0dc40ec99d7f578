"""Rows of one class each: names of classes, labels, loss and scores, shared by several families."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Value

from sora_cli.core.errors import SoraError
from sora_cli.core.words import shown_value
from sora_cli.recipe.recipe import DataBlock
from sora_cli.tasks.base import Predictions
from sora_cli.tasks.metrics import Scored, Scorer
from sora_cli.tasks.texts import row_error

_SHOWN = 5  # values listed in an error


def find_class_names(train: Dataset, data: DataBlock) -> list[str]:
    """Return the classes' names in label order: the data set's, the recipe's, or the labels' own.

    Args:
        train: raw rows with the column `data.label_column`.

    Raises:
        SoraError: labels that are no classes, or names that do not fit them.
    """
    column = data.label_column
    feature = train.features[column]
    if isinstance(feature, ClassLabel):
        return _checked_names(list(feature.names), data.label_names)
    if data.label_names is not None:
        return data.label_names
    values = train[column][:]
    _check_labels(column, values)
    if isinstance(feature, Value) and feature.dtype.startswith("float"):
        raise SoraError(
            f"column '{column}' holds fractional numbers, which are no classes",
            hint="task.name=sequence-regression",
            key="data.label_column",
        )
    return _class_names(column, set(values), len(values))


def class_options(names: Sequence[str]) -> dict[str, Any]:
    """Return the configuration values of a head for these classes."""
    return {
        "num_labels": len(names),
        "id2label": dict(enumerate(names)),
        "label2id": {name: i for i, name in enumerate(names)},
    }


def encode_classes(values: Sequence[Any], names: Sequence[str], *, column: str) -> list[int]:
    """Return the numbers of classes, from their numbers or names.

    Raises:
        SoraError: labels that are none of the classes.
    """
    index, n = {name: i for i, name in enumerate(names)}, len(names)
    if any(isinstance(v, str) for v in values):
        labels = [index.get(v, -1) if isinstance(v, str) else -1 for v in values]
    else:
        labels = [int(v) if _is_index(v, n) else -1 for v in values]
    unseen = sorted({str(v) for v, label in zip(values, labels, strict=True) if label < 0})
    if unseen:
        raise SoraError(
            f"labels that are none of the {n} classes: {', '.join(unseen[:_SHOWN])}",
            where=f"column '{column}'; classes: {', '.join(names)}",
            hint="a split without labels cannot be evaluated; see data.label_names",
            key="data.label_names",
        )
    return labels


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


def chosen_classes(predictions: Predictions) -> np.ndarray:
    """Return the classes (rows,) with the largest logits."""
    return np.asarray(predictions.outputs.argmax(axis=-1))


class OneClass(Scored):
    """A family whose rows have one class each, whatever it is that they hold."""

    _names: list[str]
    """Names of the classes in label order; known once bound."""

    @property
    def label_names(self) -> list[str]:
        return self._names

    def loss(self, predictions: Predictions) -> float:
        return class_loss(predictions)

    def metrics(self, predictions: Predictions) -> dict[str, float]:
        return class_scores(self.scorer, predictions)

    def answers(self, predictions: Predictions) -> np.ndarray:
        return chosen_classes(predictions)

    def model_options(self) -> dict[str, Any]:
        return {**class_options(self._names), "problem_type": "single_label_classification"}

    def readable(self, predictions: Predictions) -> list[dict[str, Any]]:
        names, rows = self._names, predictions.outputs
        chosen = chosen_classes(predictions)
        return [
            {"prediction": names[int(p)], "label": names[int(y)], "logits": [float(x) for x in row]}
            for p, y, row in zip(chosen, predictions.true_labels, rows, strict=True)
        ]


def _is_index(value: Any, n: int) -> bool:
    return isinstance(value, int | np.integer) and bool(0 <= value < n)


def _check_labels(column: str, values: Iterable[Any]) -> None:
    """Check that each row has a label, and a plain one."""
    for row, value in enumerate(values):
        if value is None or value != value:  # NaN
            raise row_error(f"column '{column}' has no label", row, key="data.label_column")
        if not isinstance(value, str | int | float):
            what = f"column '{column}' holds {shown_value(value)}, which is no label,"
            raise row_error(what, row, key="data.label_column")


def _checked_names(names: list[str], wanted: list[str] | None) -> list[str]:
    """Return other names for a data set's own classes: as many, and not in another order.

    Raises:
        SoraError: they would be other classes.
    """
    if wanted is None or wanted == names:
        return names
    if len(wanted) != len(names) or sorted(wanted) == sorted(names):
        raise SoraError(
            f"data.label_names do not fit the data's classes: {', '.join(wanted[:_SHOWN])}",
            where=f"the data's, in their order: {', '.join(names[:_SHOWN])}",
            hint="data.label_names=null",
            key="data.label_names",
        )
    return wanted


def _class_names(column: str, values: set[Any], rows: int) -> list[str]:
    """Return the classes of a column of texts, or of numbers from 0."""
    shown = ", ".join(sorted(map(str, values))[:_SHOWN])
    if len(values) == 1:
        raise SoraError(
            f"column '{column}' holds one class only: {shown}",
            hint="name all classes there are: data.label_names=[...]",
            key="data.label_column",
        )
    if all(isinstance(v, str) for v in values):
        return sorted(values)
    if not all(isinstance(v, int) for v in values) or min(values) < 0:
        raise SoraError(
            f"column '{column}' holds no classes from 0 upwards: {shown}",
            hint="name another column: data.label_column; or all classes: data.label_names",
            key="data.label_column",
        )
    if max(values) >= max(rows, 2):
        raise SoraError(
            f"column '{column}' holds numbers up to {max(values)} in {rows} rows, which are no "
            "classes",
            hint="task.name=sequence-regression, or another data.label_column",
            key="data.label_column",
        )
    return [str(i) for i in range(max(values) + 1)]
