"""The first broken line of a file of rows, looked for once a reader has failed.

Readers name the row of a block, or nothing; people look at lines.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from sora_cli.core.errors import SoraError
from sora_cli.core.words import shown_path, shown_value
from sora_cli.data.places import csv_records, separator_of

Fault = tuple[str, str]
"""The place ("rows.csv:7"), and what is wrong there."""


def find_fault(kind: str, paths: Sequence[Path], reason: str = "") -> Fault | None:
    """Return the first broken line of some files; None where all lines are sound.

    Args:
        kind: "csv", "json" or "parquet".
        reason: what the reader said, of values or columns that are not those of the lines before.
    """
    look = _CHECKS[kind]
    fault = next((fault for path in paths for fault in look(path)), None)
    return fault or _other_kind(kind, paths, reason) or _other_columns(kind, paths)


def _other_kind(kind: str, paths: Sequence[Path], reason: str) -> Fault | None:
    """Return the line of the value that the reader could not take for what stands before it."""
    said = _UNPARSED.search(reason)
    if said is None:
        return None
    value, before = said[1], "whole numbers" if said[2].startswith("int") else f"{said[2]} values"
    for path in paths:
        for place, fields in _VALUES[kind](path):
            if value in fields:
                return f"{path}:{place}", f"{shown_value(value)}, where there are {before} before"
    return None


def _other_columns(kind: str, paths: Sequence[Path]) -> Fault | None:
    """Return the first CSV file that has another header than the first."""
    if kind != "csv":
        return None
    headers = [next(csv_records(path), (1, []))[1] for path in paths]
    for path, header in zip(paths, headers, strict=True):
        if set(header) != set(headers[0]):
            other = sorted(set(header) ^ set(headers[0]))[0]
            return f"{path}:1", f"column {shown_value(other)} is not in all files of the split"
    return None


def check_header(path: Path, split: str) -> list[str]:
    """Check the first lines of a CSV file, which pandas would read otherwise than they look.

    Where the first row has more fields than the header, it takes the first column for an index.

    Returns:
        Remarks on columns that share a name: pandas gives the second another one.

    Raises:
        SoraError: more fields than the header has.
    """
    try:
        records = list(islice(csv_records(path), 2))
    except (csv.Error, UnicodeDecodeError):
        return []  # the reader says it
    if not records:
        return []
    line, header = records[0]
    if len(records) > 1 and len(records[1][1]) > len(header):
        raise SoraError(
            f"{len(records[1][1])} fields, where the header has {len(header)}",
            where=f"{shown_path(path)}:{records[1][0]}, split '{split}'",
            hint=_too_many_hint(header, records[1][1]),
        )
    places: dict[str, list[int]] = {}
    for place, name in enumerate(header, 1):
        places.setdefault(name, []).append(place)
    return [
        f"{shown_path(path)}:{line} has {len(own)} columns called {shown_value(name)} "
        f"({', '.join(map(str, own))}): the first one is read as that"
        for name, own in places.items()
        if len(own) > 1
    ]


def _too_many_hint(header: Sequence[str], fields: Sequence[str]) -> str:
    """Say what to do about a row that has more fields than the header."""
    if separator := separator_of(header):
        return f"there is {separator!r} between the names of the header: write commas"
    if not "".join(fields[len(header) :]).strip():
        return "take the commas at the ends of the lines away"
    return "put texts with commas in them into quotes, or name all columns in the header"


def _parquet(path: Path) -> Iterator[Fault]:
    with path.open("rb") as file:
        if file.read(4) != b"PAR1":
            yield str(path), "it is not a parquet file, whatever its name says"


def _csv(path: Path) -> Iterator[Fault]:
    yield from _not_utf8(path)
    width = 0
    try:
        for line, fields in csv_records(path, strict=True):
            width = width or len(fields)
            if len(fields) > width:
                yield f"{path}:{line}", f"{len(fields)} fields, where the header has {width}"
    except csv.Error as error:
        place, _, reason = str(error).partition(":")
        yield f"{path}:{place}", reason


def _json(path: Path) -> Iterator[Fault]:
    """Check JSON lines; or one document, where the file starts as a list."""
    yield from _not_utf8(path)
    with path.open(encoding="utf-8-sig") as file:
        if file.read(4096).lstrip().startswith("["):
            file.seek(0)
            try:
                json.load(file)
            except ValueError as error:
                yield f"{path}:{getattr(error, 'lineno', 1)}", f"no JSON: {error}"
            return
        file.seek(0)
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line, object_pairs_hook=_distinct)
            except (ValueError, RecursionError) as error:
                yield f"{path}:{number}", f"no JSON: {getattr(error, 'msg', error)}"
                continue
            if not isinstance(row, dict):
                yield f"{path}:{number}", 'no row: rows are like {"text": "...", "label": 0}'


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {shown_value(twice)} is there twice")
    return row


def _not_utf8(path: Path) -> Iterator[Fault]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                yield f"{path}:{number}", "it is not UTF-8 text"


_CHECKS: dict[str, Callable[[Path], Iterator[Fault]]] = {
    "csv": _csv,
    "json": _json,
    "parquet": _parquet,
}


def _json_values(path: Path) -> Iterator[tuple[int, list[Any]]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            row = json.loads(line) if line.strip().startswith("{") else {}
            yield number, list(row.values())


_UNPARSED = re.compile(r"Failed to parse string: '(.*)' as a scalar of type (\w+)")
_VALUES: dict[str, Callable[[Path], Iterator[tuple[int, list[Any]]]]] = {
    "csv": csv_records,
    "json": _json_values,
    "parquet": lambda _: iter(()),
}
