"""The table of rows to label, as a person fills it in."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

Row = dict[str, str]


def rows_of(table: Path) -> list[Row]:
    """Return the rows of a table."""
    with table.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def write(table: Path, rows: Sequence[Row]) -> None:
    """Write rows as a spreadsheet does."""
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def fill(
    table: Path, label: Callable[[Row], str], number: int | None = None, column: str = "label"
) -> None:
    """Fill in labels of the first rows, or of all."""
    rows = rows_of(table)
    for row in rows[:number]:
        row[column] = label(row)
    write(table, rows)


def truth(row: Row) -> str:
    """Return the label of a row of `helpers_runs.pair_rows`."""
    return str(int(row["sentence1"].split()[0] == row["sentence2"].split()[0]))
