"""Texts of rows, from columns or templates, with checks; errors about rows and columns.

An entry is the name of a column, or else a template with columns in braces that combines several
texts: `data.text_columns: ["{word}: {sentence1}", "{sentence2}"]`. Braces contain names only, no
attributes, indices or formats, because a recipe may come from anybody.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from datasets import Dataset

from methods.words import closest
from sora_cli.core.errors import SoraError
from sora_cli.core.words import listed, shown_value
from sora_cli.data.places import RowError


def texts_of(rows: Dataset, entry: str, *, key: str) -> list[str]:
    """Return the texts (rows,) of a column or template; a row without a text is an error.

    Args:
        key: the recipe's key that names the column.
    """
    for column in columns_in(entry, rows.column_names):
        require_column(column, rows.column_names)
        for row, value in enumerate(rows[column][:]):
            check_text(value, column, row, key=key)
    made = made_texts(rows, [entry])
    return [str(text) for text in made[made.column_names[0]][:]]


def require_column(
    column: str, columns: Sequence[str], *, key: str | None = None, hint: str | None = None
) -> None:
    """Check that a column exists.

    Args:
        key: the recipe's key that names the column; None if the recipe names none.
    """
    if column not in columns:
        what = f"no column '{column}'" if key is None else f"{key}: no column '{column}'"
        near = closest(column, columns)
        hint = f"did you mean '{near}'?" if near else hint
        raise RowError(what, where=f"there are: {listed(columns)}", hint=hint, key=key)


def check_text(value: Any, column: str, row: int, *, key: str, empty: bool = False) -> None:
    """Check that a value is a text, or a number that can be written as a text.

    Args:
        empty: True if the text may be empty.
    """
    missing = value is None or value != value  # NaN
    if not missing and isinstance(value, str | int | float) and (empty or value != ""):
        return
    nothing = missing or value == ""
    holds = "has no text" if nothing else f"holds {shown_value(value)}, which is no text"
    raise row_error(f"column '{column}' {holds}", row, key=key)


def row_error(what: str, row: int, *, key: str, hint: str | None = None) -> RowError:
    """Make the error for one row with a missing or a wrong value.

    Args:
        key: the recipe's key that names the column.
        hint: None: advise to leave such rows out, or to name another column.
    """
    hint = hint or f"remove such rows from the data, or name another column: {key}=COLUMN"
    return RowError(what, row, hint=hint)


def require_offsets(tokenizer: Any) -> None:
    """Check that a tokenizer returns the places of its tokens in the text.

    Tokenizers written in Python do not.
    """
    if not tokenizer.is_fast:
        raise SoraError(
            "the tokenizer does not return the places of tokens in the text",
            hint="add the model's tokenizer.json to its directory",
            key="model.path",
        )


_FIELD = re.compile(r"\{([^{}]+)\}")
_PARTS = ("text", "pair")  # columns in the result of `made_texts`


def columns_in(entry: str, columns: Collection[str]) -> tuple[str, ...]:
    """Return the columns that an entry of `data.text_columns` names, even if they do not exist.

    Args:
        entry: a column, or a template.
        columns: of the data; the name of a column is never read as a template.
    """
    if entry in columns:
        return (entry,)
    return tuple(_FIELD.findall(entry)) or (entry,)


def made_texts(rows: Dataset, entries: Sequence[str]) -> Dataset:
    """Return one text per entry and row: a column's own text, or a filled template.

    Args:
        rows: must have every column that the entries name.
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
    """Fill a template with the values of one row."""
    return _FIELD.sub(lambda match: str(row[match[1]]), template)


def _filled(template: str, rows: Dataset) -> list[str]:
    names = _FIELD.findall(template)
    columns = [rows[name][:] for name in names]
    literals = _FIELD.split(template)[::2]  # the text before, between and after the names
    return [
        literals[0] + "".join(f"{v}{after}" for v, after in zip(row, literals[1:], strict=True))
        for row in zip(*columns, strict=True)
    ]
