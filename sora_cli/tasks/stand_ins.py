"""Placeholders for the labels of rows that have none, and checks of a model's outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset, Features, concatenate_datasets

from sora_cli.core.errors import SoraError
from sora_cli.data.places import RowError
from sora_cli.recipe.recipe import DataBlock

TEXT = "-"
"""Placeholder for a text to be generated."""
OUTPUTS = "the model's outputs"
NOT_FINITE = f"{OUTPUTS} are not finite"
OVERFLOW = "try model.dtype=float32: 16 bits may overflow, here or in training"


def with_column(
    rows: Dataset, column: str, values: Sequence[Any], *, feature: Any = None
) -> Dataset:
    """Return rows with a column of these values, replacing a column of this name.

    Args:
        feature: type of the values, for `datasets`; None: found in them.
    """
    features = None if feature is None else Features({column: feature})
    made = Dataset.from_dict({column: list(values)}, features)
    if rows.column_names == [column]:  # a data set without columns has no rows
        return made
    if column in rows.column_names:
        rows = rows.remove_columns(column)
    return concatenate_datasets([rows, made], axis=1)


def first_class(data: DataBlock) -> str:
    """Return the name of the first class; a recipe without class names is an error."""
    if not data.label_names:
        raise SoraError(
            "the model's files do not name its classes",
            hint="name them in the model's order: 'data.label_names=[...]'",
            key="data.label_names",
        )
    return data.label_names[0]


def finite_rows(outputs: np.ndarray) -> np.ndarray:
    """Return True for each row whose outputs (rows, ...) are all finite, (rows,)."""
    return np.asarray(np.isfinite(outputs.reshape(len(outputs), -1)).all(axis=1))


def check_finite(outputs: np.ndarray) -> None:
    """Check that a model's outputs are finite: NaN and infinite values predict nothing.

    Args:
        outputs: (rows, ...).
    """
    finite = finite_rows(outputs)
    if not finite.all():
        raise RowError(NOT_FINITE, int(finite.argmin()), hint=OVERFLOW)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return the probabilities (rows, classes) of logits (rows, classes)."""
    from scipy.special import softmax as of_rows

    return np.asarray(of_rows(logits.astype(np.float64), axis=-1))
