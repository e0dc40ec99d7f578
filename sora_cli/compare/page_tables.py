"""Tables of the HTML page: cells with what is shown and what they are sorted by."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sora_cli.compare.cells import Cell, Column, Raw
from sora_cli.compare.plot_style import by_task
from sora_cli.compare.runs import Group
from sora_cli.compare.table import Section, Table


@dataclass(frozen=True)
class CellPart:
    """A cell.

    Attributes:
        shown: for people.
        sort: a number or text to sort by; "" sorts last, whichever way.
        is_best: the best metric of its table.
    """

    shown: str
    sort: str
    is_best: bool = False


@dataclass(frozen=True)
class RowPart:
    """A row: its label, where on the page its group is (None: nowhere), and the other cells."""

    label: str
    anchor: str | None
    is_baseline: bool
    cells: tuple[CellPart, ...]


@dataclass(frozen=True)
class TablePart:
    """A table; the first of its columns is that of the labels."""

    task: str | None
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[RowPart, ...]


def table_parts(
    table: Table, groups: Sequence[Group], anchors: Mapping[tuple[str, str], str]
) -> list[TablePart]:
    """The tables of all tasks, and of the means over them where there are any.

    Args:
        groups: those of the table.
        anchors: task and label -> where on the page the group is described.
    """
    tasks = by_task(groups)
    parts = []
    for section in table.sections():
        members = groups if section.task is None else tasks[section.task]
        better = members[0].first.greater_is_better
        parts.append(_table_part(section, table, anchors, greater_is_better=better))
    return parts


def _table_part(
    section: Section,
    table: Table,
    anchors: Mapping[tuple[str, str], str],
    *,
    greater_is_better: bool,
) -> TablePart:
    columns = tuple(column for column in table.shown_columns if column.key != "label")
    scores = [_number(row.cells["metric"].raw) for row in section.rows]
    known = [score for score in scores if score is not None]
    best = (max if greater_is_better else min)(known, default=None)
    rows = []
    for row in section.rows:
        cells = [_cell_part(row.cells[column.key], column.key, best) for column in columns]
        anchor = anchors.get((row.task, row.label)) if row.task is not None else None
        rows.append(RowPart(row.label, anchor, row.label == table.baseline, tuple(cells)))
    label = next(column for column in table.columns if column.key == "label")
    return TablePart(section.task, section.caption, (label, *columns), tuple(rows))


def _cell_part(cell: Cell, key: str, best: float | None) -> CellPart:
    number = _number(cell.raw)
    sort = repr(number) if number is not None else cell.raw if isinstance(cell.raw, str) else ""
    return CellPart(cell.shown, sort, key == "metric" and number is not None and number == best)


def _number(raw: Raw) -> float | None:
    """None for what is no number, NaN too."""
    if not isinstance(raw, int | float) or math.isnan(raw):
        return None
    return float(raw)
