"""The form of a CSV file: its encoding, its separator, and its lines that are no rows.

Excel alone saves a table in five ways: as UTF-8, in the code page of Western Europe, as UTF-16 with
tabs, with `sep=;` as the first line, and with whatever stands above the header and below the rows.
A form is taken only where it is plain to see, and told; otherwise the file is read as it stands.
"""

from __future__ import annotations

import codecs
import csv
import mmap
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from sora_cli.core.words import shown_path, shown_value

UTF8 = "utf-8-sig"  # with or without the byte order mark
_SEPARATORS = (",", ";", "\t", "|")
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?', re.IGNORECASE)
_HEAD = 50  # records that are looked at to tell a header from a title
_EMPTY_LINE = re.compile(rb'(?m)^[ "]*[,;\t|][,;\t| "]*\r?$')

# A file that is not UTF-8 may be in any code page: its bytes decode to letters in each of them.
# Texts of other languages look odd in the Western one, so an oddity refuses it.
_ACCENTED = "ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÑÒÓÔÕÖØÙÚÛÜßàáâãäåæçèéêëìíîïñòóôõöøùúûüÿŒœŠšŽžŸ"
_LETTERS, _OWN_LETTERS = re.compile(rf"[A-Za-z{_ACCENTED}]"), re.compile(f"[{_ACCENTED}]")
_ODD = re.compile(
    "[ðþýÐÞÝŸ]"  # Icelandic; mostly Czech, Turkish, Baltic, or a Mac's letters
    rf"|[{_ACCENTED}]{{3}}"  # Cyrillic, Greek, Hebrew, Chinese
    r"|[a-z][À-ÖØ-ÞŠŒŽŸ]"  # a Mac's umlauts
    rf"|{_LETTERS.pattern}[¡-¬®-³µ¶¸-¿‚ƒ„†‡ˆ‰‹•˜›]{_LETTERS.pattern}"  # noqa: RUF001 - Polish, DOS
)
_MOST_ACCENTED, _SOME = 0.1, 20
"""Largest share of accented letters, if there are so many: French has 4 %, Hungarian 12 %."""


@dataclass(frozen=True)
class CsvForm:
    """The form of a CSV file.

    Attributes:
        skipped: numbers of the records, from 0, that are no rows: above the header, or empty.
        notes: remarks for the user.
    """

    encoding: str = UTF8
    separator: str = ","
    skipped: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def options(self) -> dict[str, Any]:
        """The options with which pandas reads such a file; few for a usual file."""
        options: dict[str, Any] = {"sep": self.separator}
        if self.encoding != UTF8:
            options["encoding"] = self.encoding
        if self.skipped:  # pandas counts records as `csv` does, empty ones included
            options["skiprows"] = list(self.skipped)
        return options


def csv_form(path: Path) -> CsvForm:
    """Return the form of a CSV file; the usual form for a file that cannot be read."""
    try:
        state = path.stat()
        return _form(path, state.st_size, state.st_mtime_ns)
    except (csv.Error, UnicodeError, OSError):
        return CsvForm(separator=_usual_separator(path, []))  # the reader reports this fault later


def encoding_of_copy(path: Path) -> str:
    """Return the encoding of a CSV file's copy: the file's own, with its byte order mark if any."""
    encoding = csv_form(path).encoding
    if encoding != UTF8:
        return encoding
    with path.open("rb") as file:
        return UTF8 if file.read(3) == codecs.BOM_UTF8 else "utf-8"


@lru_cache(maxsize=64)
def _form(path: Path, size: int, changed: int) -> CsvForm:
    del changed  # of the key only
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # see `csv_records`
    encoding = _encoding(path)
    first = _head(path, encoding, "\n", 1)  # the line as a whole
    named = _SEPARATOR_LINE.fullmatch("".join(first[0])) if first else None
    separator, header = _layout(path, encoding, named[1] if named else None)
    empty = _empty_records(path, size, encoding, separator, header)
    notes = [f"read as {encoding}, {_WHY[encoding]}"] if encoding in _WHY else []
    if named:
        notes.append(f"{shown_value(separator)} separates the fields, as its first line says")
    titles = _texts_above(_head(path, encoding, separator, header)[bool(named) :])
    if titles:
        notes.append(f"the header is taken from below the title {shown_value(titles)}")
    if empty:
        notes.append(f"{len(empty):,} empty line{'s' * (len(empty) > 1)} left out")
    told = (f"{shown_path(path)}: {'; '.join(notes)}",) if notes else ()
    return CsvForm(encoding, separator, (*range(header), *empty), told)


_WHY = {
    "cp1252": "the code page of Western Europe, as it is not UTF-8; if letters look wrong, save it "
    "as CSV UTF-8",
    "utf-16": "as its first bytes say",
}


def _encoding(path: Path) -> str:
    """Return the encoding of a text file; UTF-8 also for a file in no encoding that is certain."""
    with path.open("rb") as file:
        if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            return "utf-16"
    try:
        with path.open(encoding=UTF8, newline="") as text:
            while text.read(2**20):
                pass
    except UnicodeDecodeError:
        return "cp1252" if _is_western(path) else UTF8
    return UTF8


def _is_western(path: Path) -> bool:
    """Return whether a file looks like a Western European text in Windows' code page 1252."""
    letters = accented = 0
    try:
        with path.open(encoding="cp1252", newline="") as text:
            for line in text:
                if _ODD.search(line):
                    return False
                letters += len(_LETTERS.findall(line))
                accented += len(_OWN_LETTERS.findall(line))
    except UnicodeDecodeError:
        return False
    return accented < _SOME or accented <= _MOST_ACCENTED * letters


def _head(path: Path, encoding: str, separator: str, number: int = _HEAD) -> list[list[str]]:
    """Return the first records, including empty ones."""
    with path.open(encoding=encoding, newline="") as file:
        if separator == "\n":
            return [[line.strip()] for line in islice(file, number)]
        return list(islice(csv.reader(file, delimiter=separator), number))


def _layout(path: Path, encoding: str, named: str | None) -> tuple[str, int]:
    """Return the separator and the number of records above the header.

    Args:
        named: separator that the first line names; None: it names none.
    """
    if named is not None:
        return named, 1 + (_header_below(_head(path, encoding, named)[1:]) or 0)
    usual = _usual_separator(path, _head(path, encoding, ","))
    records = [fields for fields in _head(path, encoding, usual) if _filled(fields)]
    if records and _filled(records[0]) > 1 and len({*map(len, records)}) == 1:
        return usual, 0
    tried = _SEPARATORS if path.suffix.lower() != ".tsv" else ("\t",)
    below = ((_header_below(_head(path, encoding, mark)), mark) for mark in tried)
    found = [(header, mark) for header, mark in below if header is not None]
    if found:  # the separator that finds the header first: texts below may hold another one
        header, separator = min(found)
        return separator, header
    if records and len(records[0]) == 1:
        # a title right above a table: its separator makes this an error, for want of fields above
        others = (mark for mark in _SEPARATORS[1:] if _header_below(_head(path, encoding, mark), 1))
        return next(others, usual), 0
    return usual, 0


def _usual_separator(path: Path, records: Sequence[Sequence[str]]) -> str:
    """Return the separator by the first line that is not empty.

    It is a tab in .tsv files. In others it is a comma, or the semicolon, tab or bar in a header
    without commas.

    Args:
        records: the first records, as if separated by commas.
    """
    if path.suffix.lower() == ".tsv":
        return "\t"
    header = next((fields for fields in records if "".join(fields).strip()), [])
    marks = (mark for mark in _SEPARATORS[1:] if len(header) == 1 and mark in header[0])
    return next(marks, ",")


def _header_below(records: Sequence[Sequence[str]], least: int = 0) -> int | None:
    """Return the place of a header below a title; None: it is not plain to see.

    It is if the records above hold a text in their first field at most, with two empty fields
    beside it or an empty record below; if the header fills its fields; and if all rows have as
    many, and outnumber the titles.

    Args:
        least: titles that need nothing beside or below them.
    """
    filled = list(map(_filled, records))
    header = next((place for place, number in enumerate(filled) if number > 1), 0)
    titles = [place for place in range(header) if filled[place]]
    if not titles or not all(records[place][0].strip() for place in titles):
        return None
    padded = any(len(records[place]) > 2 for place in titles)
    apart = not all(filled[titles[0] : header])
    names = records[header]
    below = [fields for fields in records[header:] if _filled(fields)]
    whole = filled[header] == len(names) == len(set(names)) and len(titles) < len(below)
    whole = whole and all(len(fields) == len(names) for fields in below)
    return header if (padded or apart or len(titles) <= least) and whole else None


def _filled(fields: Sequence[str]) -> int:
    return sum(1 for field in fields if field.strip())


def _texts_above(records: Sequence[Sequence[str]]) -> str:
    return " / ".join(text for fields in records for text in fields if text.strip())


def _empty_records(
    path: Path, size: int, encoding: str, separator: str, header: int
) -> tuple[int, ...]:
    """Return the numbers of the records below the header that hold separators only."""
    if encoding != "utf-16":  # a fast look at the bytes: most files have no such line
        if not size:
            return ()
        with path.open("rb") as raw, mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ) as text:
            if not _EMPTY_LINE.search(text):
                return ()
    with path.open(encoding=encoding, newline="") as file:
        records = enumerate(csv.reader(file, delimiter=separator))
        return tuple(n for n, r in records if n >= header and len(r) > 1 and not _filled(r))


def csv_records(path: Path, *, strict: bool = False) -> Iterator[tuple[int, list[str]]]:
    """Yield the first line and the fields of each record in a CSV file, the header first.

    Blank lines are skipped, as in pandas, which reads the rows.
    """
    # csv's own limit is 131,072 characters; a C long has 32 bits on Windows
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    form = csv_form(path)
    skipped = set(form.skipped)
    with path.open(encoding=form.encoding, newline="") as file:
        reader, start = csv.reader(file, strict=strict, delimiter=form.separator), 1
        try:
            for number, fields in enumerate(reader):
                blank = not fields or (len(fields) == 1 and fields[0].isspace())
                if number not in skipped and not blank:
                    yield start, fields
                start = reader.line_num + 1  # a quoted field may span several lines
        except csv.Error as error:
            raise csv.Error(f"{start}:{error}") from error
