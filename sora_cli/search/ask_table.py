"""The table in which people label rows: written for spreadsheets, and read back.

Spreadsheets change texts: they take them for numbers, dates or formulas, and save in other
encodings. So a row is known by its id, which is letters alone, and only `id`, `label` and `label_2`
are read. The table holds raw rows: only its owner may read it.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

from sora_cli.core.atomic import write_bytes_atomic
from sora_cli.core.errors import SoraError
from sora_cli.core.words import first_few, listed, shown_path, shown_value
from sora_cli.data.csv_form import csv_records

if TYPE_CHECKING:
    from datasets import Dataset

ID, LABEL, SECOND, ALLOWED = "id", "label", "label_2", "allowed"
Given = tuple[str, str]
"""Two labels of a row; "": none."""
NONE: Given = ("", "")
_GUIDE = "Please label the rows of"
_LETTERS = "bcdfghjkmnpqrstvwxz"  # no vowels: no words; no digits: no numbers and no dates
_LENGTH = 10
_NAMED = 12  # allowed labels that are named in each row
_FORMULA = re.compile(r"[=+\-@\t\r\n']")
_NUMBER = re.compile(r"[\d\s.,:/eE+\-%]*\d[\d\s.,:/eE+\-%]*")


@dataclass(frozen=True)
class Question:
    """A row to be labelled.

    Attributes:
        shown: its texts by column.
        allowed: the labels to choose from.
    """

    id: str
    shown: Mapping[str, str]
    allowed: Sequence[str]


def id_of(shown: Sequence[str], salt: str) -> str:
    """Return the id of a row by what is shown of it: letters alone.

    Args:
        salt: names the run, so that the table of another run has other ids.
    """
    number = int.from_bytes(blake2b(repr((salt, *shown)).encode(), digest_size=8).digest())
    letters = []
    for _ in range(_LENGTH):
        number, letter = divmod(number, len(_LETTERS))
        letters.append(_LETTERS[letter])
    return "".join(letters)


def write_table(path: Path, rows: Sequence[Question], given: Mapping[str, Given]) -> None:
    """Write rows with the labels that are known of them."""
    names = list(rows[0].shown) if rows else []
    own = {ID, LABEL, SECOND, ALLOWED}
    file = io.StringIO(newline="")
    table = csv.writer(file, lineterminator="\r\n")
    heads = [f"row_{name}" if name.lower() in own else name for name in names]
    table.writerow([ID, *map(_cell, heads), LABEL, SECOND, ALLOWED])
    for row in rows:
        texts = [_cell(row.shown[name]) for name in names]
        few = len(row.allowed) <= _NAMED
        allowed = _cell(" | ".join(row.allowed)) if few else f"see {guide_of(path).name}"
        table.writerow([row.id, *texts, *map(_cell, given.get(row.id, NONE)), allowed])
    # with the mark by which spreadsheets know UTF-8
    write_bytes_atomic(path, file.getvalue().encode("utf-8-sig"), private=True)


def guide_of(path: Path) -> Path:
    """Return the place of the guide beside a table."""
    return path.with_suffix(".txt")


def unused_of(path: Path) -> Path:
    """Return the place of the rows that have not tested, beside a table."""
    return path.with_suffix(".unused.jsonl")


def write_unused(path: Path, rows: Dataset) -> None:
    """Write rows that have not tested, one JSON object a line."""
    lines = [json.dumps(row, ensure_ascii=False) for row in rows.to_list()]
    write_bytes_atomic(
        unused_of(path), "".join(f"{line}\n" for line in lines).encode(), private=True
    )


def is_guide(path: Path) -> bool:
    """Return True for the guide of a table, which may be replaced."""
    return path.is_file() and path.read_bytes().startswith(_GUIDE.encode())


def write_guide(path: Path, allowed: Sequence[str], command: str) -> None:
    """Write how to fill in a table.

    Args:
        path: of the table.
        allowed: all labels.
        command: reads the table.
    """
    text = f"""{_GUIDE} {path.name}: write the right label into the column
"{LABEL}".

- Allowed labels: {", ".join(allowed)}.
- If you cannot tell, leave the label empty. Such a row counts against the smaller adapter.
- A second person may fill in "{SECOND}", without a look at "{LABEL}". A row on which the two
  disagree counts against the smaller adapter.
- Keep every row, and leave the column "{ID}" as it is. Other columns are not read back: an
  apostrophe before a text only keeps the spreadsheet from taking it for a number or a formula.
- The models' answers are not in the table, on purpose.
- Save it as CSV, in any encoding and with any separator. A half-filled table is read, too.

Then type the same command again:

    {command}
"""
    write_bytes_atomic(guide_of(path), text.encode(), private=True)


def read_table(path: Path, rows: Mapping[str, Sequence[str]]) -> dict[str, Given]:
    """Read the labels of a table; every row must be there once, with labels that are allowed.

    Args:
        rows: by id: the allowed labels.
    """
    name, given, lines = shown_path(path), dict[str, Given](), dict[str, int]()
    for line, values in _records(path, name):
        key = values[ID]
        if not key and not values[LABEL] and not values[SECOND]:
            continue
        place = f"{name}:{line}"
        if key in lines:
            raise SoraError(
                f"{name} has the row {key} twice",
                where=f"{place}, and line {lines[key]}",
                hint="keep one of them, and type the same command again",
            )
        if key not in rows:
            raise _unknown(name, place, key)
        lines[key] = line
        labels = [_allowed(values[column], rows[key], column, place) for column in (LABEL, SECOND)]
        given[key] = (labels[0], labels[1])
    if missing := [key for key in rows if key not in given]:
        raise SoraError(
            f"{name} lacks {len(missing)} of {len(rows)} rows",
            where=first_few(missing),
            hint="put them back, their label may be empty; or move the file away, and the same "
            "command writes it again",
        )
    return given


def glance(path: Path) -> dict[str, Given]:
    """Return the labels of a table as they stand there, by id, without a check."""
    name = shown_path(path)
    return {v[ID]: (_bare(v[LABEL]), _bare(v[SECOND])) for _, v in _records(path, name)}


def _unknown(name: str, place: str, key: str) -> SoraError:
    what = f"{name} has a row {shown_value(key)} that this run has not asked for"
    return SoraError(
        what,
        where=f"{place}; is it the table of another run?",
        hint="give the table of this run, or another place: --ask FILE",
    )


def _records(path: Path, name: str) -> list[tuple[int, dict[str, str]]]:
    try:
        (line, header), *records = csv_records(path)
    except (csv.Error, UnicodeError, ValueError) as error:
        raise SoraError(f"{name} cannot be read as a table: {error}",
                        hint="save it as CSV") from error  # fmt: skip
    heads = [head.strip().lower() for head in header]
    for column in (ID, LABEL):
        if heads.count(column) != 1:
            raise SoraError(
                f"{name} has no column '{column}'" if column not in heads
                else f"{name} has two columns '{column}'",
                where=f"{name}:{line}: {listed(header)}",
                hint="name the columns as they were: id, label, label_2",
            )  # fmt: skip
    places = {column: heads.index(column) for column in (ID, LABEL, SECOND) if column in heads}
    found = []
    for number, fields in records:
        values = {c: fields[at].strip() for c, at in places.items() if at < len(fields)}
        found.append((number, {ID: "", LABEL: "", SECOND: "", **values}))
    return found


def _allowed(label: str, allowed: Sequence[str], column: str, place: str) -> str:
    """Return the allowed label that was meant; "": none is given."""
    label = _bare(label)
    if not label or label in allowed:
        return label
    # spreadsheets write TRUE for true, and 7 for 007
    alike = [one for one in allowed if _plain(one) == _plain(label)]
    if len(alike) == 1:
        return alike[0]
    raise SoraError(
        f"{shown_value(label)} in column '{column}' is none of the labels",
        where=f"{place}; labels: {first_few(allowed, _NAMED)}",
        hint="write one of them, or leave the label empty; then the same command",
    )


def alike(one: str, other: str) -> bool:
    """Return True if two labels are the same but for what spreadsheets change."""
    return one == other or _plain(one) == _plain(other)


def _bare(label: str) -> str:
    return label.strip().removeprefix("'").strip()


def _plain(label: str) -> str | float:
    try:
        return float(label)
    except ValueError:
        return " ".join(label.casefold().split())


def _cell(text: str) -> str:
    """Return a text that spreadsheets take for a text: neither a formula nor a number."""
    odd = _FORMULA.match(text) or (len(text) > 1 and _NUMBER.fullmatch(text))
    return f"'{text}" if odd else text
