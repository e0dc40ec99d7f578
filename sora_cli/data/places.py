"""Places of rows (split, file and line), for error messages about rows."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from sora_cli.core.errors import SoraError
from sora_cli.core.words import first_few, shown_path
from sora_cli.data.csv_form import csv_records
from sora_cli.data.json_lines import TOO_DEEP
from sora_cli.data.source import file_kind

COUNTED = "(counted from 0)"
_BETWEEN = re.compile(r"[\s,]*")  # between the rows of a JSON list


class RowError(SoraError):
    """An error about rows of the data.

    Args:
        row: its place, from 0, among the checked rows; None if the error concerns all rows, such as
            a missing column.
        trained: place, from 0, of a training row that contradicts the row.
        where: the valid alternatives.
        key: the recipe's key that can be changed to fix the error.
    """

    def __init__(
        self,
        what: str,
        row: int | None = None,
        *,
        trained: int | None = None,
        where: str | None = None,
        hint: str | None = None,
        key: str | None = None,
    ) -> None:
        super().__init__(what, where=where, hint=hint, key=key)
        self.trained = trained
        self.places: list[str]
        self.set_row(row)

    def renamed(self, old: str, new: str) -> None:
        """Replace a name in all lines, and in the places of rows."""
        super().renamed(old, new)
        self.places = [place.replace(old, new) for place in self.places]

    def set_row(self, row: int | None) -> None:
        """Set the row of this error."""
        self.row = row
        self.places = [f"row {row} {COUNTED}"] if row is not None else []

    def placed(self, place: str | None) -> None:
        """Add the place of the error's key after the place of the row."""
        if place is not None and self.key is not None:
            self.places.append(place)
        self.key = None

    @property
    def shown_where(self) -> str:
        """The second line: the places, then the valid alternatives."""
        return "; ".join([*self.places, *([self.where] if self.where else [])])


@dataclass(frozen=True)
class Origin:
    """The split, the files and the row numbers of a part of a run.

    Attributes:
        split: the split's name; empty for rows that belong to no split.
        files: all files of the split, in order; empty if they are unknown.
        total: number of rows in the split.
        numbers: (rows,) the place of each row in its split; None: the split's first rows.
        notes: remarks on the files.
    """

    split: str
    files: tuple[Path, ...] = ()
    total: int = 0
    numbers: Sequence[int] | None = None
    notes: tuple[str, ...] = ()

    def of(self, rows: Sequence[int]) -> Origin:
        """Return the origin of a subset of these rows.

        Args:
            rows: places of the subset among these rows, from 0.
        """
        known = self.numbers
        return replace(self, numbers=rows if known is None else [known[row] for row in rows])

    def place(self, row: int | None) -> str:
        """Return a row's place ("train.csv:8, split 'train'"); None: the place of all rows."""
        places = [f"split '{self.split}'"] if self.split else []
        if row is None:
            headers = (f"{shown_path(p)}{':1' * (file_kind(p) == 'csv')}" for p in self.files)
            return ", ".join([*([first_few(headers)] if self.files else []), *places])
        number = row if self.numbers is None else int(self.numbers[row])
        line = self._line(number)
        if line is None:
            file = f"{shown_path(self.files[0])}, " if len(self.files) == 1 else ""
            line = f"{file}row {number} {COUNTED}"
        return ", ".join([line, *places])

    def _line(self, number: int) -> str | None:
        """Return the file and line of a row of the split; None if they cannot be determined."""
        try:
            starts = [list(_STARTS[file_kind(path)](path)) for path in self.files]
        except (OSError, ValueError, KeyError, csv.Error):
            return None
        # a reader that skipped or joined lines would make every later line wrong: name no line
        if sum(map(len, starts)) != self.total:
            return None
        for path, own in zip(self.files, starts, strict=True):
            if number < len(own):
                return f"{shown_path(path)}{own[number]}"
            number -= len(own)
        return None


def holds_rows(paths: Sequence[Path]) -> bool:
    """Return True if any of these files has a row; True for files that cannot be read."""
    try:
        return any(True for path in paths for _ in _STARTS[file_kind(path)](path))
    except (OSError, ValueError, KeyError, csv.Error):
        return True


@contextmanager
def locating(rows: Origin, trained: Origin | None = None) -> Iterator[None]:
    """Within this context, add split, file and line to errors about rows.

    Args:
        rows: origin of the checked rows.
        trained: origin of the training rows.
    """
    try:
        yield
    except RowError as error:
        error.places = [rows.place(error.row)]
        if error.trained is not None and trained is not None:
            error.places.append(trained.place(error.trained))
        raise


def line_end_in(path: Path) -> str:
    """Return the line ending of a text file, from its first line."""
    with path.open("rb") as file:
        first = file.readline(2**20).replace(b"\0", b"")  # of UTF-16
    return "\r\n" if first.endswith(b"\r\n") else "\n"


def _csv_starts(path: Path) -> Iterator[str]:
    records = csv_records(path)
    next(records, None)
    yield from (f":{line}" for line, _ in records)


def json_texts(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the first line and the text of each row in a JSON file.

    Raises:
        JSONDecodeError: a list of rows has invalid JSON, or is nested too deep to be decoded.
    """
    if is_json_list(path):
        yield from _in_list(path.read_text(encoding="utf-8-sig"))
        return
    with path.open(encoding="utf-8-sig") as file:
        yield from ((number, line) for number, line in enumerate(file, 1) if line.strip())


def is_json_list(path: Path) -> bool:
    """Return True if a JSON file begins as one list of rows, not with one row per line."""
    with path.open(encoding="utf-8-sig") as file:
        return file.read(4096).lstrip().startswith("[")


def _in_list(text: str) -> Iterator[tuple[int, str]]:
    decoder, at, line, counted = json.JSONDecoder(), text.index("[") + 1, 1, 0
    while True:
        at = _BETWEEN.match(text, at).end()  # type: ignore[union-attr]
        if text[at : at + 1] in ("]", ""):
            return
        line, counted = line + text.count("\n", counted, at), at
        try:
            _, at = decoder.raw_decode(text, at)
        except RecursionError as error:
            raise json.JSONDecodeError(TOO_DEEP, text, at) from error
        yield line, text[counted:at]


def _json_starts(path: Path) -> Iterator[str]:
    shared = is_json_list(path)  # a line may hold several rows of a list
    for row, (line, _) in enumerate(json_texts(path)):
        yield f":{line}, row {row} {COUNTED}" if shared else f":{line}"


def _parquet_starts(path: Path) -> Iterator[str]:
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    with pq.ParquetFile(path) as file:
        yield from (f", row {row} {COUNTED}" for row in range(file.metadata.num_rows))


_STARTS: dict[str, Callable[[Path], Iterator[str]]] = {
    "csv": _csv_starts,
    "json": _json_starts,
    "parquet": _parquet_starts,
}
