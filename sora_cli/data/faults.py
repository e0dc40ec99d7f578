"""Finds the first broken line of a data file after a reader has failed.

Readers report a row within a block, or no place at all; people need the line of the file.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from sora_cli.core.errors import SoraError, first_line
from sora_cli.core.words import shown_path, shown_value
from sora_cli.data.csv_form import UTF8, csv_form, csv_records
from sora_cli.data.json_lines import DEEPEST, NO_ROW, TOO_DEEP, nesting
from sora_cli.data.places import is_json_list, json_texts
from sora_cli.data.source import file_kind

_LineFault = tuple[int, str] | tuple[int, str, str]


@dataclass(frozen=True)
class Fault:
    """A broken line of a file (line 0: the whole file), with the fault and its remedy."""

    path: Path
    line: int
    what: str
    hint: str | None = None

    @property
    def place(self) -> str:
        """The file and the line: "rows.csv:7"."""
        return f"{self.path}:{self.line}" if self.line else str(self.path)


def find_fault(paths: Sequence[Path], reason: str = "") -> Fault | None:
    """Return the first broken line of some files; None if no line is broken.

    Args:
        paths: in reading order; files other than csv, json and parquet are skipped.
        reason: the reader's message, which may name a value of another type than the values before
            it.
    """
    known = [path for path in paths if file_kind(path)]
    # Broken lines first: the other two checks parse each line and would fail on a broken one.
    own = (Fault(path, *fault) for path in known for fault in _CHECKS[file_kind(path)](path))
    return next(own, None) or _unexpected_type(known, reason) or _unexpected_columns(known)


def _unexpected_type(paths: Sequence[Path], reason: str) -> Fault | None:
    """Return the line of the first value with another type than its predecessors."""
    match = _UNPARSED.search(reason)
    if match is None:
        return None
    value, kind = match.groups()
    before = "whole numbers" if kind.startswith("int") else f"{kind} values"
    for path in paths:
        for line, values in _VALUES[file_kind(path)](path):
            if value in values:
                what = f"{shown_value(value)} stands in a column of {before}"
                return Fault(path, line, what)
    return None


def _unexpected_columns(paths: Sequence[Path]) -> Fault | None:
    """Return the first file with other columns than the first file, or with none."""
    columns = [_COLUMNS[file_kind(path)](path) for path in paths]
    if paths and not any(columns):
        line, _ = next(_VALUES[file_kind(paths[0])](paths[0]), (0, []))
        return Fault(paths[0], line, "its rows have no columns")
    for path, own in zip(paths, columns, strict=True):
        for verb, names in (("has no", columns[0] - own), ("has a", own - columns[0])):
            if names:
                what = f"it {verb} column {shown_value(min(names))}, unlike {paths[0]}"
                return Fault(path, 1 if file_kind(path) == "csv" else 0, what)
    return None


def check_header(path: Path, split: str) -> list[str]:
    """Check the header and the first row of a CSV file for mistakes that pandas accepts silently.

    A first row with more fields than the header is an error: pandas would use its first column as
    an index.

    Returns:
        Remarks on the form of the file, on a header that may be a title, and on each column name
        that occurs more than once: pandas renames the later columns.
    """
    try:
        records = list(islice(csv_records(path), 2))
    except (csv.Error, UnicodeDecodeError, OSError):
        return []  # the reader reports this fault later
    if not records:
        return []
    line, header = records[0]
    if len(records) > 1 and len(records[1][1]) > len(header):
        raise SoraError(
            f"{len(records[1][1])} fields, but the header has {len(header)}",
            where=f"{shown_path(path)}:{records[1][0]}" + (f", split '{split}'" if split else ""),
            hint=_too_many_hint(header, records[1][1]),
        )
    places: dict[str, list[int]] = {}
    for place, name in enumerate(header, 1):
        places.setdefault(name, []).append(place)
    titles = [f"{shown_path(path)}:{line} is taken as the header, {why}: if it is a title, "
              "take it out" for why in _like_a_title(records)]  # fmt: skip
    return [*csv_form(path).notes, *titles] + [
        f"{shown_path(path)}:{line} has {len(own)} columns called {shown_value(name)} "
        f"({', '.join(map(str, own))}): only the first keeps this name"
        for name, own in places.items()
        if len(own) > 1
    ]


def _like_a_title(records: Sequence[tuple[int, Sequence[str]]]) -> Iterator[str]:
    """Yield the reasons why a header may be a title, by the header and the first row."""
    (line, header), *rows = records
    for below, fields in rows:
        unnamed = sum(1 for name, field in zip(header, fields, strict=False) if field and not name)
        if unnamed > (not header[0]):  # an index has a column without a name in front
            yield f"though {unnamed} of its {len(header)} fields are empty"
        if len(header) == 1 and below > line + 1 + header[0].count("\n"):
            yield "though an empty line is below it"


def _too_many_hint(header: Sequence[str], fields: Sequence[str]) -> str:
    """Suggest a fix for a row with more fields than the header."""
    if not "".join(fields[len(header) :]).strip():
        return "remove the commas at the ends of the lines"
    if len(header) == 1:
        return "take out the lines above the header; put texts with separators into quotes"
    return "put texts that contain commas into quotes, or name all columns in the header"


def _parquet(path: Path) -> Iterator[_LineFault]:
    with path.open("rb") as file:
        if file.read(4) != b"PAR1":
            yield 0, "it is not a parquet file, despite its name"
            return
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    try:
        pq.read_metadata(path)
    except (OSError, ValueError) as error:
        yield 0, first_line(error)


def _csv(path: Path) -> Iterator[_LineFault]:
    if csv_form(path).encoding == UTF8:
        yield from ((line, what, _AS_UTF8) for line, what in _not_utf8(path))
    width = 0
    try:
        for line, fields in csv_records(path, strict=True):
            width = width or len(fields)
            if len(fields) > width:
                yield line, f"{len(fields)} fields, but the header has {width}"
    except csv.Error as error:
        place, _, reason = str(error).partition(":")
        yield int(place), reason


def _json(path: Path) -> Iterator[_LineFault]:
    """Check JSON lines, or a file that holds one JSON list of rows."""
    yield from _not_utf8(path)
    try:
        if is_json_list(path):
            with suppress(RecursionError):  # the loop below finds the row that is nested too deep
                json.loads(path.read_text(encoding="utf-8-sig"))
        for number, text in json_texts(path):
            if wrong := _wrong_row(text):
                yield number, wrong
    except json.JSONDecodeError as error:
        yield error.lineno, f"not valid JSON: {error}"


def _wrong_row(text: str) -> str:
    """Describe the fault in the text of one row; empty if there is none."""
    if nesting(text.encode()) > DEEPEST:
        return TOO_DEEP
    try:
        row = json.loads(text, object_pairs_hook=_distinct)
        json.dumps(row, ensure_ascii=False).encode()  # fails for half of a surrogate pair
    except ValueError as error:
        return f"not valid JSON: {getattr(error, 'msg', error)}"
    return "" if isinstance(row, dict) else NO_ROW


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {shown_value(twice)} occurs twice")
    return row


_AS_UTF8 = "save it as CSV UTF-8 in Excel, or: iconv -f ITS_ENCODING -t UTF-8 FILE > NEW_FILE"


def _not_utf8(path: Path) -> Iterator[tuple[int, str]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                yield number, "it is not UTF-8 text"


_CHECKS: dict[str, Callable[[Path], Iterator[_LineFault]]] = {
    "csv": _csv,
    "json": _json,
    "parquet": _parquet,
}


def _json_values(path: Path) -> Iterator[tuple[int, list[Any]]]:
    """Yield the line and all values of each row, including nested values."""
    for number, row in _json_rows(path):
        yield number, list(_flat(row))


def _json_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield the line and the parsed value of each row."""
    yield from ((number, json.loads(text)) for number, text in json_texts(path))


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _flat(inner)
    else:
        yield value


def _csv_columns(path: Path) -> set[str]:
    return set(next(csv_records(path), (1, []))[1])


def _json_columns(path: Path) -> set[str]:
    return {name for _, row in _json_rows(path) if isinstance(row, dict) for name in row}


def _parquet_columns(path: Path) -> set[str]:
    import pyarrow.parquet as pq

    return set(pq.read_schema(path).names)


_UNPARSED = re.compile(r"Failed to parse string: '(.*)' as a scalar of type (\w+)")
_VALUES: dict[str, Callable[[Path], Iterator[tuple[int, list[Any]]]]] = {
    "csv": csv_records,
    "json": _json_values,
    "parquet": lambda _: iter(()),
}
_COLUMNS: dict[str, Callable[[Path], set[str]]] = {
    "csv": _csv_columns,
    "json": _json_columns,
    "parquet": _parquet_columns,
}
