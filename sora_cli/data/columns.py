"""Guesses of each column's kind (texts, classes, numbers, ...) from its values and its name."""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from datasets import ClassLabel, Dataset, Image, Value

LOOKED_AT = 20_000
"""Most rows that are read to guess the kinds of columns."""
_CLASSES, _WHOLE_CLASSES = 200, 20  # most different values of a column of classes: texts, integers
_ROWS_PER_CLASS = 4  # on average, at least: classes repeat
_WORDS, _CHARACTERS = 3.0, 12  # mean of a text, at least; shorter values are names or single words
_MOST = 0.95  # share of values that decides a column's kind; the others may be mistakes

_DATE = re.compile(
    r"\d{4}[-/.]\d{1,2}([-/.]\d{1,2})?([T ].*)?|\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4}( .*)?"
    r"|\d{1,2}:\d{2}(:\d{2})?"
)
_IDENTIFIER = re.compile(
    r"(id|idx|index|uuid|guid|key|nr|no|row|unnamed:? \d+)|.*[_ -](id|idx|uuid|guid|key)",
    re.IGNORECASE,
)
_COMMA_NUMBER = re.compile(r"[-+]?\d+(,\d+)?")
_CODE = re.compile(r"[0-9a-f]{8}-?([0-9a-f]{4}-?){3}[0-9a-f]{12}|[0-9a-f]{24,64}", re.IGNORECASE)

Kind = Literal[
    "text", "word", "class", "whole", "number", "identifier", "date", "constant", "empty",
    "words", "numbers", "chat", "answers", "choices", "image", "other",
]  # fmt: skip
"""The kinds of columns. A text has several words; a "word" is a name, an address or similar, with
many different values. "whole" are integers that are no classes. "words" and "numbers" are lists
with one item per word."""

_ABOUT: Mapping[Kind, str] = {
    "text": "texts",
    "word": "names or single words",
    "class": "classes",
    "whole": "whole numbers",
    "number": "numbers",
    "identifier": "an identifier",
    "date": "dates or times",
    "constant": "the same value in every row",
    "empty": "nothing in any row",
    "words": "lists of words",
    "numbers": "lists of whole numbers",
    "chat": "chats",
    "answers": "answers with their places",
    "choices": "choices",
    "image": "images",
    "other": "nested values",
}


@dataclass(frozen=True)
class Column:
    """A column of raw rows and its guessed kind.

    Attributes:
        distinct: number of different values among the rows that were read.
        words: mean number of words of a text; 0 for other kinds.
    """

    name: str
    kind: Kind
    distinct: int = 0
    words: float = 0.0

    @property
    def about(self) -> str:
        """A short description of its values: "3 classes", "texts of 12 words"."""
        if self.kind == "class":
            return f"{self.distinct} classes"
        if self.kind == "text":
            return f"texts of {self.words:.0f} words"
        return _ABOUT[self.kind]


def some_rows(rows: int) -> Sequence[int]:
    """Return the sorted places of a random sample of 20,000 out of `rows`; all places if fewer.

    A random sample is used because evenly spaced rows may miss a class: in data where every second
    row belongs to one class, an even stride sees only that class.
    """
    if rows <= LOOKED_AT:
        return range(rows)
    places: list[int] = np.random.default_rng(0).choice(rows, LOOKED_AT, replace=False).tolist()
    return sorted(places)


def read_columns(rows: Dataset) -> dict[str, Column]:
    """Guess the kind of each column, from at most 20,000 rows; returns them by name, in order."""
    seen = rows.select(some_rows(len(rows)))
    features = rows.features
    plain = [name for name, feature in features.items() if isinstance(feature, Value | ClassLabel)]
    # all plain columns at once: `datasets` scans the rows again for each column that is read
    table = seen.select_columns(plain).with_format("arrow")[:] if plain else {}
    columns = {}
    for name, feature in features.items():
        if isinstance(feature, Image):
            columns[name] = Column(name, "image")
        else:
            values = table[name].to_pylist() if name in plain else seen[name][:]
            columns[name] = _guess_column(name, values, named=isinstance(feature, ClassLabel))
    return columns


def _guess_column(name: str, values: Sequence[Any], *, named: bool) -> Column:
    """Guess the kind of a column from its values.

    Args:
        named: True if the values are class numbers and the data set stores the classes' names.
    """
    present = [v for v in values if v is not None and v != "" and v == v]  # NaN differs from itself
    if not present:
        return Column(name, "empty")
    nested = [isinstance(value, list | dict) for value in present]
    if any(nested):
        return Column(name, _kind_of_nested(present) if all(nested) else "other", len(present))
    distinct = len(set(present))
    # before the test for integers: Python's True is an int, too
    if named or isinstance(present[0], bool):
        return Column(name, "class", distinct)
    if distinct == 1 and len(present) > 1:
        return Column(name, "constant", 1)
    if all(isinstance(v, datetime.date | datetime.time) for v in present):
        return Column(name, "date", distinct)
    if all(isinstance(v, str) for v in present):
        words = float(np.mean([len(v.split()) for v in present]))
        return Column(name, _kind_of_texts(name, present, distinct, words), distinct, words)
    if all(isinstance(v, int) for v in present):
        return Column(name, _kind_of_whole_numbers(name, present, distinct), distinct)
    fractional = all(isinstance(v, float) for v in present)
    return Column(name, "number" if fractional else "other", distinct)


def _kind_of_texts(name: str, values: Sequence[str], distinct: int, words: float) -> Kind:
    if _share(_DATE, values) >= _MOST:
        return "date"
    if _are_numbers(values) or have_decimal_commas(values):
        return "number"
    if words < _WORDS and distinct <= max(2, min(_CLASSES, len(values) // _ROWS_PER_CLASS)):
        return "class"
    if _share(_CODE, values) >= _MOST or (_IDENTIFIER.fullmatch(name) and words < _WORDS):
        return "identifier"
    unspaced = words < 2 and np.mean([not v.isascii() for v in values]) > 0.5  # such as Chinese
    long = words >= _WORDS or (unspaced and np.mean([len(v) for v in values]) >= _CHARACTERS)
    return "text" if long else "word"


def _are_numbers(values: Sequence[str]) -> bool:
    """Return True if nearly all, but not all, of these texts are numbers.

    A reader turns a column of numbers into texts because of a few values such as "n/a".
    """
    numbers = [value for value in values if _is_finite(value)]
    few = _MOST * len(values) <= len(numbers) < len(values)
    return few and len(set(numbers)) > _WHOLE_CLASSES


def have_decimal_commas(values: Sequence[Any]) -> bool:
    """Return True if these values are texts of numbers with a decimal comma, such as 3,5.

    1,234 may be a whole number in groups of three digits, so at least one value has to tell.
    """
    texts = [value for value in values if value is not None and value != ""]
    alike = all(isinstance(text, str) and _COMMA_NUMBER.fullmatch(text) for text in texts)
    return alike and any("," in text and text[-4:-3] != "," for text in texts)


def _is_finite(value: str) -> bool:
    try:
        return math.isfinite(float(value))
    except ValueError:
        return False


def _kind_of_whole_numbers(name: str, values: Sequence[int], distinct: int) -> Kind:
    # consecutive numbers without repetition are row numbers, even in another order
    counted = distinct == len(values) > 2 and max(values) - min(values) == distinct - 1
    if counted or _IDENTIFIER.fullmatch(name):
        return "identifier"
    few = distinct <= max(2, min(_WHOLE_CLASSES, len(values) // _ROWS_PER_CLASS))
    # class numbers start at 0 and are small; larger numbers are years, codes or counts
    return "class" if few and min(values) >= 0 and max(values) < 10 * _WHOLE_CLASSES else "whole"


def _kind_of_nested(values: Sequence[Any]) -> Kind:
    """Guess the kind of a column of lists or mappings from its first value that is not empty."""
    first = next((value for value in values if value), None)
    items = first if isinstance(first, list) else [first]
    if all(isinstance(item, str) for item in items):
        return "words"
    if all(isinstance(item, int) and not isinstance(item, bool) for item in items):
        return "numbers"
    if not all(isinstance(item, dict) for item in items):
        return "other"
    keys = set(items[0] or ())
    return next(_kinds_of_mappings(keys, single=isinstance(first, dict)), "other")


def _kinds_of_mappings(keys: set[str], *, single: bool) -> Iterator[Kind]:
    if not single and {"role", "from"} & keys and {"content", "value"} & keys:
        yield "chat"
    if {"text", "answer_start"} <= keys:
        yield "answers"
    if {"text", "label"} <= keys:
        yield "choices"


def _share(pattern: re.Pattern[str], values: Sequence[str]) -> float:
    return sum(pattern.fullmatch(value.strip()) is not None for value in values) / len(values)
