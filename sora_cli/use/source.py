"""The rows to answer, read in spans to save memory, and their original text.

The model gets loaded values, as from the files of a recipe. If the output has the same format as
the input, the rows are copied from the text of the input: 007 stays 007, and 1.50 stays 1.50.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from datasets import Dataset
from datasets.table import InMemoryTable

from sora_cli.data.csv_form import csv_records
from sora_cli.data.loading import load_file
from sora_cli.data.places import Origin
from sora_cli.data.source import file_kind


class Source:
    """A file of rows.

    Attributes:
        path: the file.
        kind: "csv", "json" or "parquet".
        origin: gives the file and line of a row, for errors.
        header: column names as in the file.
    """

    def __init__(self, path: Path, scratch: Path) -> None:
        """Read the file; the loaded rows stay on the disk.

        Args:
            scratch: directory for the loaded rows.
        """
        part = load_file(path, scratch)
        self.path, self.kind, self.origin = path, file_kind(path), part.origin
        self._rows = part.rows
        self._as_is = _same(path, self.kind, len(part.rows))
        names: list[str] = part.rows.column_names
        self.header = names if self._as_is is None else self._as_is

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def columns(self) -> list[str]:
        """Column names of the loaded rows, where a repeated name of the header is changed."""
        names: list[str] = self._rows.column_names
        return names

    def rows(self, first: int, last: int) -> Dataset:
        """Load a span of rows into memory: from `first` up to, not including, `last`."""
        table = self._rows.with_format("arrow")[first:last]
        return Dataset(InMemoryTable(table.combine_chunks()), info=self._rows.info)

    def origin_of(self, first: int, last: int) -> Origin:
        """Return the origin (file and lines) of a span of rows."""
        return self.origin.of(range(first, last))

    def as_they_stand(self, kind: str, first: int) -> Iterator[Any] | None:
        """Return the original rows from index `first` on; None if they must be converted.

        Args:
            kind: format of the output; another format than the input's needs a conversion.
        """
        if kind != self.kind or self._as_is is None:
            return None
        return islice(_RECORDS[self.kind](self.path), first, None)


def _same(path: Path, kind: str, rows: int) -> list[str] | None:
    """Return the header of a file with one record per loaded row; None for any other file."""
    if kind not in _RECORDS:
        return None
    header: dict[str, None] = {}
    number = 0
    try:
        for record in _RECORDS[kind](path):
            number += 1
            if kind == "json":
                header.update(dict.fromkeys(record))
    except (ValueError, AttributeError):  # JSON as one document, not as a line per row
        return None
    names = next(csv_records(path))[1] if kind == "csv" else list(header)
    return names if number == rows else None


def _csv(path: Path) -> Iterator[list[str]]:
    records = csv_records(path)
    width = len(next(records)[1])
    for _, fields in records:
        yield [*fields, *[""] * (width - len(fields))]


def _json(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8-sig") as file:  # some editors write a byte-order mark
        for line in file:
            if line.strip():
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError("a line is no row")
                yield row


_RECORDS = {"csv": _csv, "json": _json}


def plain_rows(rows: Dataset) -> Sequence[dict[str, Any]]:
    """Return rows as plain Python values; images stay encoded."""
    values: list[dict[str, Any]] = rows.with_format("arrow")[:].to_pylist()
    return values
