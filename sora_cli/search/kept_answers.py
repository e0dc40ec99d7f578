"""What a run keeps of its table: the rows as they were asked, and the labels as they were read.

Both are for the run's owner alone: the files are readable by nobody else, and no command prints,
copies or publishes them. `sora verify --certificate` reads the labels.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from sora_cli.core.atomic import remove_file, write_bytes_atomic
from sora_cli.core.errors import SoraError
from sora_cli.search.ask_table import ID, LABEL, SECOND, Given, Question, write_table

FOLDER = "asked"
"""In the run's directory."""
TABLE, ANSWERS = "rows.csv", "answers.csv"


def keep_rows(run: Path, rows: Sequence[Question]) -> None:
    """Keep the rows that were asked."""
    write_table(run / FOLDER / TABLE, rows, {})


def keep_answers(run: Path, given: Mapping[str, Given]) -> None:
    """Keep the labels that were read, by id."""
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow([ID, LABEL, SECOND])
    table.writerows([key, *labels] for key, labels in sorted(given.items()))
    write_bytes_atomic(run / FOLDER / ANSWERS, text.getvalue().encode(), private=True)


def kept_rows(run: Path) -> list[str]:
    """Return the ids of the rows that were asked; empty: none were."""
    return list(_read(run / FOLDER / TABLE))


def kept_answers(run: Path) -> dict[str, Given]:
    """Return the labels that were read, by id."""
    return _read(run / FOLDER / ANSWERS)


def forget_asked(run: Path) -> None:
    """Delete what a run keeps."""
    folder = run / FOLDER
    for name in (TABLE, ANSWERS):
        remove_file(folder / name)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _read(file: Path) -> dict[str, Given]:
    if not file.is_file():
        return {}
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:
            rows = list(csv.DictReader(text))
        return {row[ID]: (row[LABEL] or "", row[SECOND] or "") for row in rows}
    except (KeyError, csv.Error, UnicodeError) as error:
        raise SoraError(f"{file} is damaged: {error}", hint="restore it") from error
