"""Texts of rows, by column or template, each checked to be one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from datasets import Dataset

from sora_cli.errors import SoraError
from sora_cli.plain_words import shown_value
from sora_cli.tasks.templates import columns_in, made_texts

COUNTED = "(counted from 0)"


def texts_of(rows: Dataset, entry: str, *, key: str) -> list[str]:
    """(rows,) what a column or template gives.

    Args:
        key: of the recipe, where another column can be named.

    Raises:
        SoraError: a column is missing, or a row has no text there.
    """
    for column in columns_in(entry, rows.column_names):
        require_column(column, rows.column_names, key="data")
        for row, value in enumerate(rows[column][:]):
            check_text(value, column, row, key=key)
    made = made_texts(rows, [entry])
    return [str(text) for text in made[made.column_names[0]][:]]


def require_column(column: str, columns: Sequence[str], *, key: str) -> None:
    """A column must be there.

    Raises:
        SoraError: it is not; it says which are.
    """
    if column not in columns:
        what = f"no column '{column}'" if key == "data" else f"{key}: no column '{column}'"
        raise SoraError(what, where=f"there are: {', '.join(columns)}", key=key)


def check_text(value: Any, column: str, row: int, *, key: str) -> None:
    """A value must be a text, or a number that can be written as one.

    Raises:
        SoraError: it is not, or empty.
    """
    if not isinstance(value, str | int | float) or value == "":
        holds = "has no text" if value in (None, "") else f"holds {shown_value(value)}, no text,"
        raise SoraError(
            f"column '{column}' {holds} in row {row} {COUNTED}",
            hint=f"take such rows out of the data, or name other columns: {key}",
            key=key,
        )
