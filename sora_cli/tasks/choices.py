"""Rows of multiple choice: a context, the texts to choose from, and the place of the right one.

The choices stand in columns of their own (`choice1`, `choice2`; `ending0` to `ending3`), in one
column of lists, or in one of texts with keys (ARC: `{text: [...], label: [A, B, C, D]}`).
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
    """The places of a row's texts.

    Attributes:
        context: column or template of what is read before each choice; None: nothing is.
        lead: column of what each choice begins with, such as a question; None: nothing.
        choices: columns or templates, one for each choice; or the only column, of lists.
    """

    context: str | None
    lead: str | None
    choices: tuple[str, ...]

    def columns(self, there: Sequence[str]) -> tuple[str, ...]:
        """Return the columns it names, each once."""
        entries = [entry for entry in (self.context, self.lead, *self.choices) if entry is not None]
        return tuple(dict.fromkeys(c for entry in entries for c in columns_in(entry, there)))


@dataclass(frozen=True)
class Choices:
    """Texts of rows, each with the same number of choices.

    Attributes:
        contexts: (rows,) what is read before each choice; None: nothing is.
        texts: (rows, choices).
        keys: (rows, choices) what labels call them; None: their places.
        lead: (rows,) what each choice begins with.
    """

    contexts: list[str] | None
    texts: list[list[str]]
    keys: list[list[str]] | None
    lead: list[str] | None = None

    @property
    def number(self) -> int:
        """Choices of each row."""
        return len(self.texts[0])

    def pairs(self) -> Dataset:
        """Return what the tokenizer gets, (rows * choices), a row's choices one after the other."""
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
    """Find where the texts of rows with these columns stand.

    Args:
        parts: columns by the part they play: context, question, choices.
        entries: the recipe's own columns or templates: the context, and then each choice.

    Raises:
        SoraError: no choices, or columns that are not there.
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
    """Read the texts of rows.

    Raises:
        SoraError: a column is missing, a text is, or rows have different numbers of choices.
    """
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
    """Return the places (rows,), from 0, of the choices that labels name.

    A label is a choice's key or text, its place, or the letter of its place.

    Raises:
        SoraError: a label that is none of the row's choices.
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
    """Return columns whose names differ in a number or a letter, in its order."""
    found: dict[str, list[tuple[int, str, str]]] = {}
    for column in columns:
        if match := _NUMBERED.fullmatch(column):
            number = int(match[2]) if match[2].isdigit() else 0
            found.setdefault(match[1], []).append((number, match[2], column))
    most = max(found.values(), key=lambda alike: len(alike), default=[])
    return tuple(name for _, _, name in sorted(most))


def _choice_list(value: Any, column: str, row: int) -> tuple[list[str], list[str] | None]:
    """Return the texts in a row's list, and their keys, if they have some."""
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
    """Refuse rows with different numbers of choices: a batch is a block of rows x choices."""
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
    if isinstance(label, bool) or not isinstance(label, int | np.integer):
        return None
    return int(label) if 0 <= label < len(texts) else None


def _number(label: str) -> int | None:
    """Return the place that a text stands for: '2' -> 2, 'C' -> 2."""
    if label.isdecimal():
        return int(label)
    return ord(label.upper()) - ord("A") if re.fullmatch("[A-Za-z]", label) else None
