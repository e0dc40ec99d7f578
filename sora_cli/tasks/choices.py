"""Rows of multiple choice: a context, the choices, and the place of the right choice.

The choices are in columns of their own (`choice1`, `choice2`; `ending0` to `ending3`), in one
column of lists, or in a column of texts with keys (ARC: `{text: [...], label: [A, B, C, D]}`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset

from sora_cli.core.errors import SoraError
from sora_cli.core.words import listed, shown_value
from sora_cli.data.places import RowError
from sora_cli.tasks.texts import check_text, columns_in, require_column, texts_of

_NUMBERED = re.compile(r"(choice|ending|option|sol|answer)_?(\d+|[A-Z])")
_KEY = "data.text_columns"


@dataclass(frozen=True)
class Form:
    """The columns or templates of a row's texts.

    Attributes:
        context: column or template of the text before each choice; None: no such text.
        lead: column of the beginning of each choice, such as a question; None: no such text.
        choices: one column or template per choice; or a single column of lists.
    """

    context: str | None
    lead: str | None
    choices: tuple[str, ...]

    def columns(self, there: Sequence[str]) -> tuple[str, ...]:
        """Return the columns that the entries name, each once."""
        entries = [entry for entry in (self.context, self.lead, *self.choices) if entry is not None]
        return tuple(dict.fromkeys(c for entry in entries for c in columns_in(entry, there)))


@dataclass(frozen=True)
class Choices:
    """Texts of rows, each with the same number of choices.

    Attributes:
        contexts: (rows,) the text before each choice; None: no such text.
        texts: (rows, choices).
        keys: (rows, choices) the names of choices that labels use; None: labels are places.
        lead: (rows,) the beginning of each choice.
    """

    contexts: list[str] | None
    texts: list[list[str]]
    keys: list[list[str]] | None
    lead: list[str] | None = None

    @property
    def number(self) -> int:
        """Number of choices of each row."""
        return len(self.texts[0])

    def pairs(self) -> Dataset:
        """Return the tokenizer's input, (rows * choices), with a row's choices side by side."""
        leads = [""] * len(self.texts) if self.lead is None else [f"{lead} " for lead in self.lead]
        columns = {
            "choice": [f"{a}{b}" for a, row in zip(leads, self.texts, strict=True) for b in row]
        }
        if self.contexts is not None:
            repeated = [text for text in self.contexts for _ in range(self.number)]
            columns = {"context": repeated, **columns}
        return Dataset.from_dict(columns)


def find_form(
    columns: Sequence[str], parts: Mapping[str, str], entries: Sequence[str] | None
) -> Form:
    """Find the columns of context and choices.

    Args:
        parts: columns by part: context, question, choices.
        entries: the recipe's own columns or templates: the context, then each choice; None: search
            columns with usual names.
    """
    if entries is not None:
        return _own_form(columns, entries)
    context, question = parts.get("context"), parts.get("question")
    first, lead = (context, question) if context is not None else (question, None)
    if "choices" in parts:
        return Form(first, lead, (parts["choices"],))
    numbered = _numbered_columns(columns)
    if len(numbered) < 2:
        raise RowError(
            f"no choices found among the columns {listed(columns)}",
            hint="data.text_columns=[CONTEXT, CHOICE1, CHOICE2], or data.columns='{context: COLUMN,"
            " choices: COLUMN}'",
        )
    return Form(first, lead, numbered)


def read_choices(rows: Dataset, form: Form) -> Choices:
    """Read the texts of rows; all rows must have the same number of choices."""
    for column in form.columns(rows.column_names):
        require_column(column, rows.column_names)
    contexts = None if form.context is None else texts_of(rows, form.context, key=_KEY)
    lead = None if form.lead is None else texts_of(rows, form.lead, key=_KEY)
    if len(form.choices) > 1:
        columns = [texts_of(rows, entry, key=_KEY) for entry in form.choices]
        return Choices(contexts, [list(row) for row in zip(*columns, strict=True)], None, lead)
    column = form.choices[0]
    lists = [_choice_list(value, column, row) for row, value in enumerate(rows[column][:])]
    _check_numbers([len(texts) for texts, _ in lists], column)
    keys = [own for _, own in lists if own is not None]
    return Choices(contexts, [texts for texts, _ in lists], keys or None, lead)


def right_places(labels: Sequence[Any], choices: Choices, column: str) -> list[int]:
    """Return the place (rows,), from 0, of the choice that each label names.

    A label is the choice's key or text, its place, or the letter of its place.
    """
    places = []
    for row, (label, texts) in enumerate(zip(labels, choices.texts, strict=True)):
        keys = None if choices.keys is None else choices.keys[row]
        place = _place(label, texts, keys)
        if place is None:
            raise RowError(
                f"label {shown_value(label)} in column '{column}' is none of its row's choices",
                row,
                where=f"choices: {shown_value(keys or texts)}",
                hint="labels are places from 0, letters, or the right choice's text; name another "
                "column: data.label_column",
            )
        places.append(place)
    return places


def _own_form(columns: Sequence[str], entries: Sequence[str]) -> Form:
    if len(entries) < 3:
        raise SoraError(
            f"data.text_columns takes a context and two choices or more, not {len(entries)} texts",
            hint="choices in one column of lists: data.columns='{context: COLUMN, choices: "
            "COLUMN}', without text_columns",
            key=_KEY,
        )
    form = Form(entries[0], None, tuple(entries[1:]))
    for column in form.columns(columns):
        require_column(column, columns, key=_KEY)
    return form


def _numbered_columns(columns: Sequence[str]) -> tuple[str, ...]:
    """Return the columns whose names differ only in a number or letter, in that order."""
    groups: dict[str, list[tuple[int, str, str]]] = {}
    for column in columns:
        if match := _NUMBERED.fullmatch(column):
            number = int(match[2]) if match[2].isdigit() else 0
            groups.setdefault(match[1], []).append((number, match[2], column))
    most = max(groups.values(), key=lambda alike: len(alike), default=[])
    return tuple(name for _, _, name in sorted(most))


def _choice_list(value: Any, column: str, row: int) -> tuple[list[str], list[str] | None]:
    """Return the texts in a row's list, and their keys if there are any."""
    keys = None
    if isinstance(value, list) and value and isinstance(value[0], Mapping):
        value = {part: [item.get(part) for item in value] for part in ("text", "label")}
    if isinstance(value, Mapping):
        keys, value = value.get("label"), value.get("text")
    if not isinstance(value, list) or len(value) < 2 or len(keys or value) != len(value):
        raise RowError(
            f"column '{column}' holds {shown_value(value)}, which is no list of choices",
            row,
            hint="name a column of lists of two texts or more: data.columns='{choices: COLUMN}'",
        )
    for text in value:
        check_text(text, column, row, key=_KEY)
    return [str(text) for text in value], None if keys is None else [str(key) for key in keys]


def _check_numbers(numbers: Sequence[int], column: str) -> None:
    """Refuse rows with different numbers of choices: a batch has the shape (rows, choices)."""
    usual = int(np.bincount(numbers).argmax())
    row = next((row for row, number in enumerate(numbers) if number != usual), None)
    if row is not None:
        raise RowError(
            f"column '{column}' has {numbers[row]} choices here, {usual} in other rows",
            row,
            hint=f"keep rows with {usual} choices only",
        )


def _place(label: Any, texts: Sequence[str], keys: Sequence[str] | None) -> int | None:
    if isinstance(label, str):
        names = [*map(str.strip, keys or texts)]
        if names.count(label.strip()) == 1:
            return names.index(label.strip())
        label = _number(label.strip())
    # True is an int in Python, but no place
    if isinstance(label, bool) or not isinstance(label, int | np.integer):
        return None
    return int(label) if 0 <= label < len(texts) else None


def _number(label: str) -> int | None:
    """Return the place that a text denotes: '2' -> 2, 'C' -> 2."""
    if label.isdecimal():
        return int(label)
    return ord(label.upper()) - ord("A") if re.fullmatch("[A-Za-z]", label) else None
