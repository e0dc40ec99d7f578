"""The finished parts of an unfinished output, kept beside it until the output is complete.

rows.csv.unfinished/   record.json   settings of the call, and the rows of each part
                       0, 1, ...     the parts, in the format of the output
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from sora_cli.core.atomic import remove_file, tidy, write_bytes_atomic, write_text_atomic
from sora_cli.core.errors import SoraError
from sora_cli.core.lock import locked
from sora_cli.core.records import read_record
from sora_cli.core.words import shown_path, shown_value

ENDING = ".unfinished"
_RECORD = "record.json"
_ELSEWHERE = "wait for it, stop it, or name another file: -o OUT"


class Part(BaseModel):
    """A finished part: the number of its rows, and the digest of the input rows."""

    rows: int
    digest: str


class Record(BaseModel):
    """The content of `record.json`."""

    made_with: dict[str, Any]
    parts: list[Part] = []


class Parts:
    """The finished parts of one output."""

    def __init__(self, folder: Path, record: Record) -> None:
        self.folder, self.record = folder, record

    @property
    def rows(self) -> int:
        """Number of finished rows."""
        return sum(part.rows for part in self.record.parts)

    @property
    def files(self) -> list[Path]:
        """Files of the parts, in order."""
        return [self.folder / str(number) for number in range(len(self.record.parts))]

    def add(self, content: bytes, rows: int, digest: str) -> None:
        """Write a further part and its entry in the record."""
        write_bytes_atomic(self.folder / str(len(self.record.parts)), content)
        parts = [*self.record.parts, Part(rows=rows, digest=digest)]
        record = self.record.model_copy(update={"parts": parts})
        write_text_atomic(self.folder / _RECORD, record.model_dump_json(indent=1) + "\n")
        self.record = record  # only after it is written: a signal may come at any moment

    def check(self, digest_of: Callable[[int, int], str | None]) -> None:
        """Check that the input rows of the finished parts have not changed.

        Args:
            digest_of: returns the digest of the rows from a first index up to (not including) a
                second; None if there are not that many rows.
        """
        first = 0
        for part in self.record.parts:
            if digest_of(first, first + part.rows) != part.digest:
                raise SoraError(
                    f"rows {first} to {first + part.rows - 1} (counted from 0) have changed since "
                    "they were answered",
                    where=shown_path(self.folder),
                    hint="restore the rows, or add --force to answer all rows again",
                )
            first += part.rows

    def delete(self) -> None:
        """Delete all parts and their record."""
        for file in (*self.files, self.folder / _RECORD):
            remove_file(file)


@contextmanager
def opened(output: Path, made_with: dict[str, Any], *, force: bool) -> Iterator[Parts]:
    """Open and lock the parts of an output; an error if existing parts have other settings.

    Args:
        made_with: all settings that influence the answers.
        force: delete existing parts first.
    """
    folder = unfinished(output)
    with locked(folder, elsewhere=_ELSEWHERE):
        tidy(folder)
        if force:
            _clear(folder)
        begun = _read(folder, made_with)
        parts = Parts(folder, begun or Record(made_with=made_with))
        yield parts
    with suppress(OSError):  # not empty: unfinished parts stay for the next call
        folder.rmdir()


def unfinished(output: Path) -> Path:
    """Return the directory for the parts of an output."""
    return output.with_name(f"{output.name}{ENDING}")


def _clear(folder: Path) -> None:
    for file in folder.iterdir():
        if file.name == _RECORD or file.name.isdecimal():
            remove_file(file)


def _read(folder: Path, made_with: dict[str, Any]) -> Record | None:
    hint = "add --force to answer all rows again"
    record = read_record(folder / _RECORD, Record, hint=hint)
    if record is None:
        return None
    before = record.made_with
    for key in dict.fromkeys([*made_with, *before]):
        if before.get(key) != made_with.get(key):
            raise SoraError(
                f"{shown_path(folder)} was started with another {key}",
                where=f"{shown_value(before.get(key))}, and now {shown_value(made_with.get(key))}",
                hint=hint,
            )
    missing = [part for part in Parts(folder, record).files if not part.is_file()]
    if missing:
        raise SoraError(f"{shown_path(missing[0])} is gone", hint=hint)
    return record
