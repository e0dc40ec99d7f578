"""Texts made of several columns: `data.text_columns: ["{word}: {sentence1}", "{sentence2}"]`.

An entry is a column's name, or else a template with columns in braces. Braces take names and
nothing more: no attributes, indices or formats, as a recipe may be anybody's.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from datasets import Dataset

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
