"""Texts of rows, by column or template, each checked to be one.

Texts made of several columns: `data.text_columns: ["{word}: {sentence1}", "{sentence2}"]`.

An entry is a column's name, or else a template with columns in braces. Braces take names and
nothing more: no attributes, indices or formats, as a recipe may be anybody's.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from datasets import Dataset

from sora_cli.core.errors import SoraError
from sora_cli.core.words import shown_value

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


_FIELD = re.compile(r"\{([^{}]+)\}")
_PARTS = ("text", "pair")  # columns of what `made_texts` gives


def columns_in(entry: str, columns: Collection[str]) -> tuple[str, ...]:
    """The columns that an entry of `data.text_columns` names, whether they exist or not.

    Args:
        entry: a column, or a template.
        columns: of the data; one of them is never taken for a template.
    """
    if entry in columns:
        return (entry,)
    return tuple(_FIELD.findall(entry)) or (entry,)


def made_texts(rows: Dataset, entries: Sequence[str]) -> Dataset:
    """One text per entry and row: the columns themselves, or what templates make of them.

    Args:
        rows: with every column that the entries name.
        entries: one or two.
    """
    if all(entry in rows.column_names for entry in entries):
        return rows.select_columns(list(entries))
    return Dataset.from_dict(
        {
            part: [str(text) for text in rows[entry][:]]
            if entry in rows.column_names
            else _filled(entry, rows)
            for part, entry in zip(_PARTS, entries, strict=False)
        }
    )


def fill(template: str, row: Mapping[str, Any]) -> str:
    """A template with the values of one row."""
    return _FIELD.sub(lambda found: str(row[found[1]]), template)


def _filled(template: str, rows: Dataset) -> list[str]:
    names = _FIELD.findall(template)
    columns = [rows[name][:] for name in names]
    literals = _FIELD.split(template)[::2]  # what stands before, between and after the names
    return [
        literals[0] + "".join(f"{v}{after}" for v, after in zip(row, literals[1:], strict=True))
        for row in zip(*columns, strict=True)
    ]
