"""Labels of raw rows: their kind, the names of the classes, and the class numbers.

The labels of two splits must be of one kind. An integer is a class's place and a text is its name,
so mixing both would leave the class of a number to guesswork.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset

from sora_cli.core.errors import SoraError
from sora_cli.core.words import listed, shown_value
from sora_cli.data.places import RowError
from sora_cli.recipe.recipe import DataBlock
from sora_cli.tasks.texts import row_error

_MOST_LISTED = 5  # most values to list in an error
_KEY = "data.label_column"
_FRACTIONS, _WHOLE, _BOOLS = "fractional numbers", "whole numbers", "true or false"
_TEXTS, _NAMED = "texts", "numbers of named classes"


@dataclass(frozen=True)
class Labels:
    """The labels in a column of raw rows.

    Attributes:
        column: its name.
        feature: the column's type in the data set.
        rows: the row of each label; with tags, a row has several labels.
    """

    column: str
    values: Sequence[Any]
    feature: Any
    rows: Sequence[int]

    @classmethod
    def of(cls, rows: Dataset, column: str) -> Labels:
        """Return the labels of a column with one label per row."""
        return cls(column, rows[column][:], rows.features[column], range(len(rows)))

    @property
    def kind(self) -> str:
        """The kind of all the labels, in words; mixed kinds and missing labels are errors."""
        self._check_values()
        if not self.values:
            raise RowError(f"column '{self.column}' has no labels")
        if isinstance(self.feature, ClassLabel):
            return _NAMED
        first = _kind(self.values[0])
        for value, row in zip(self.values, self.rows, strict=True):
            if _kind(value) != first:
                raise RowError(
                    f"the labels in column '{self.column}' are {_kind(value)} here "
                    f"({shown_value(value)}), but {first} before ({shown_value(self.values[0])})",
                    row,
                    hint="write all labels alike: as texts, or as whole numbers from 0",
                )
        if first == _FRACTIONS:
            values = [float(value) for value in self.values]
            place = next((i for i, value in enumerate(values) if not value.is_integer()), None)
            raise RowError(
                f"column '{self.column}' holds fractional numbers ({values[place or 0]}), which "
                "are no classes",
                self.rows[place or 0],
                hint="write 1 for 1.0" if place is None else "task.name=sequence-regression",
            )
        return first

    def check_fits(self, trained: Labels) -> None:
        """Check that these labels are of the training rows' kind and have the same class names."""
        own, other = self.kind, trained.kind
        named = other == _NAMED and own == _TEXTS  # texts are names of classes
        if own != other and not named:
            raise RowError(
                f"the labels in column '{self.column}' are {own} here "
                f"({shown_value(self.values[0])}), but {other} in the training rows "
                f"({shown_value(trained.values[0])})",
                self.rows[0],
                trained=trained.rows[0],
                hint="write the labels of all splits alike: the same texts, or the same numbers",
            )
        if isinstance(self.feature, ClassLabel) and self.feature.names != trained.feature.names:
            raise RowError(
                f"the classes are {listed(self.feature.names)} here, but "
                f"{listed(trained.feature.names)} in the training rows",
                hint="give all splits the same classes in the same order",
            )

    def _check_values(self) -> None:
        """Check that each row has a text or a number as its label."""
        for value, row in zip(self.values, self.rows, strict=True):
            if value is None or value == "" or value != value:  # NaN
                raise row_error(f"a row has no label in column '{self.column}'", row, key=_KEY)
            if not isinstance(value, str | int | float):
                what = f"column '{self.column}' holds {shown_value(value)}, which is no label"
                raise row_error(what, row, key=_KEY)


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return _BOOLS
    if isinstance(value, float):
        return _FRACTIONS
    return _TEXTS if isinstance(value, str) else _WHOLE


def find_class_names(labels: Labels, data: DataBlock) -> list[str]:
    """Return the class names in label order: from the data set, the recipe, or the labels.

    Args:
        labels: of the training rows.
    """
    kind = labels.kind
    if isinstance(labels.feature, ClassLabel):
        return _checked_names(list(labels.feature.names), data.label_names)
    if data.label_names is not None:
        if kind == _WHOLE:
            _checked_names(list(map(str, range(len(data.label_names)))), data.label_names)
        return data.label_names
    return _class_names(labels)


def encode_classes(
    values: Sequence[Any],
    names: Sequence[str],
    *,
    column: str,
    rows: Sequence[int] | None = None,
) -> list[int]:
    """Return class numbers for labels that are class numbers or names.

    A label that is none of the classes is an error.

    Args:
        rows: the row of each label, for errors; None: its place.
    """
    index, n = {name: i for i, name in enumerate(names)}, len(names)
    if any(isinstance(v, str) for v in values):
        labels = [index.get(v, -1) if isinstance(v, str) else -1 for v in values]
    else:
        labels = [int(v) if _is_index(v, n) else -1 for v in values]
    unseen = [place for place, label in enumerate(labels) if label < 0]
    if unseen:
        first = unseen[0]
        others = sorted({str(values[place]) for place in unseen} - {str(values[first])})
        more = f" (nor are {listed(others, _MOST_LISTED)})" if others else ""
        hidden = values[first] == -1  # GLUE's test sets have -1 for every label
        raise RowError(
            f"label {shown_value(values[first])} in column '{column}' is none of the {n} classes"
            f"{more}",
            first if rows is None else rows[first],
            where=f"classes: {listed(names)}",
            hint="a split without labels cannot be evaluated"
            if hidden
            else "correct it, or name all classes: data.label_names=[...]; if it was held out of "
            "the training rows: data.rare_classes=train",
        )
    return labels


def _is_index(value: Any, n: int) -> bool:
    return isinstance(value, int | np.integer) and bool(0 <= value < n)


def _checked_names(names: list[str], wanted: list[str] | None) -> list[str]:
    """Return the recipe's names for a data set's own classes; their number must be equal.

    The same names in another order are an error: they would exchange the classes.
    """
    if wanted is None or wanted == names:
        return names
    if len(wanted) != len(names) or sorted(wanted) == sorted(names):
        raise SoraError(
            f"data.label_names do not fit the data's classes: {listed(wanted)}",
            where=f"the data's classes, in order: {listed(names)}",
            hint="data.label_names=null",
            key="data.label_names",
        )
    return wanted


def _class_names(labels: Labels) -> list[str]:
    """Return the classes of a column of texts, of booleans, or of integers from 0."""
    column, values = labels.column, set(labels.values)
    shown = listed(sorted(map(str, values)), _MOST_LISTED)
    if len(values) == 1:
        raise RowError(
            f"column '{column}' holds one class only: {shown}",
            hint="name all classes: data.label_names=[...]",
        )
    if all(isinstance(value, str) for value in values):
        return sorted(values)
    if labels.kind == _BOOLS:
        return ["False", "True"]
    if min(values) < 0:
        raise RowError(
            f"column '{column}' holds negative numbers, but classes are counted from 0: {shown}",
            labels.rows[labels.values.index(min(values))],
            hint="name another column: data.label_column; or all classes: data.label_names",
        )
    # with more class numbers than rows, these are identifiers or measurements
    if max(values) >= max(len(labels.values), 2):
        raise RowError(
            f"column '{column}' holds numbers up to {max(values)} in {len(labels.values)} rows, "
            "too large for class numbers",
            labels.rows[labels.values.index(max(values))],
            hint="task.name=sequence-regression, or another data.label_column",
        )
    return [str(i) for i in range(max(values) + 1)]
