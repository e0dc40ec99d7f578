"""The first broken line of a file of rows, looked for once a reader has failed.

Readers name the row of a block, or nothing; people look at lines.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

Fault = tuple[str, str]
"""The place ("rows.csv:7"), and what is wrong there."""


def find_fault(kind: str, paths: Iterable[Path]) -> Fault | None:
    """Return the first broken line of some files; None where all lines are sound.

    Args:
        kind: "csv", "json" or "parquet".
    """
    look = _CHECKS[kind]
    return next((fault for path in paths for fault in look(path)), None)


def _parquet(path: Path) -> Iterator[Fault]:
    with path.open("rb") as file:
        if file.read(4) != b"PAR1":
            yield str(path), "it is not a parquet file, whatever its name says"


def _csv(path: Path) -> Iterator[Fault]:
    yield from _not_utf8(path)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        width, start = None, 1
        while True:
            try:
                row = next(reader, None)
            except csv.Error as error:
                yield f"{path}:{start}", f"{error}"
                return
            if row is None:
                return
            width = len(row) if width is None else width
            if len(row) > width:
                yield f"{path}:{start}", f"{len(row)} fields, where the header has {width}"
            start = reader.line_num + 1


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
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield f"{path}:{number}", f"no JSON: {getattr(error, 'msg', error)}"
                continue
            if not isinstance(row, dict):
                yield f"{path}:{number}", 'no row: rows are like {"text": "...", "label": 0}'


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
