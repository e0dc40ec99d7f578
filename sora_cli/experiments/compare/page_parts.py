"""The parts of the HTML page: tables that can be sorted, and what is told of each group."""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sora_cli.adapter.ranks import RankMap
from sora_cli.core.console import count, size
from sora_cli.experiments.compare.cells import Cell, Column, Raw
from sora_cli.experiments.compare.grouping import by_task, differing, frozen
from sora_cli.experiments.compare.plot_ranks import MeanRanks, rank_text
from sora_cli.experiments.compare.runs import Group, Run
from sora_cli.experiments.compare.table import Section, Table

_LEVELS = 10
"""Steps of the colour scale, that for 0 not counted."""


@dataclass(frozen=True)
class Line:
    """A line of YAML; marked where the value is not the same in all groups of the task."""

    text: str
    marked: bool


@dataclass(frozen=True)
class MapCell:
    """A rank and its colour, from 0 to 10; None: a total, which has none."""

    text: str
    level: int | None


@dataclass(frozen=True)
class RankTable:
    """A heat map: kinds of modules across, layers down; None where there is no such module."""

    summary: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[MapCell | None, ...]], ...]


@dataclass(frozen=True)
class RunPart:
    """A run, its values as text."""

    seed: str
    metric: str
    parameters: str
    components: str
    seconds: str
    memory: str
    started: str
    directory: str
    command: str


@dataclass(frozen=True)
class GroupPart:
    """A group: label, recipe and runs, and its ranks where some changed."""

    label: str
    anchor: str
    recipe: tuple[Line, ...]
    ranks: RankTable | None
    runs: tuple[RunPart, ...]


def group_part(group: Group, anchor: str, keys: set[str]) -> GroupPart:
    """Return all that is told of a group.

    Args:
        anchor: where on the page.
        keys: the settings that differ between the groups of its task.
    """
    ranks = MeanRanks.of(group)
    return GroupPart(
        label=group.label,
        anchor=anchor,
        recipe=recipe_lines(group.settings, keys),
        ranks=rank_table(ranks) if ranks else None,
        runs=tuple(_run_part(run) for run in group.runs),
    )


def recipe_lines(settings: Mapping[str, Any], marked: Iterable[str] = ()) -> tuple[Line, ...]:
    """Return settings as the YAML of a recipe, with the lines of some keys marked."""
    keys = set(marked)
    lines: list[Line] = []
    open_blocks: list[str] = []
    for key, value in settings.items():
        *blocks, name = key.split(".")
        same = 0
        while same < min(len(blocks), len(open_blocks)) and blocks[same] == open_blocks[same]:
            same += 1
        for depth in range(same, len(blocks)):
            lines.append(Line(f"{'  ' * depth}{blocks[depth]}:", False))
        open_blocks = blocks
        lines.append(Line(f"{'  ' * len(blocks)}{name}: {_yaml(frozen(value))}", key in keys))
    return tuple(lines)


def shared_settings(groups: Sequence[Group]) -> dict[str, Any]:
    """Return the settings that are the same in all groups."""
    differ = set(differing([group.settings for group in groups]))
    return {key: value for key, value in groups[0].settings.items() if key not in differ}


def rank_table(ranks: MeanRanks) -> RankTable:
    """Return a heat map of mean ranks."""
    return heat_table(ranks.shape, ranks.live, ranks.largest, ranks.summary())


def heat_table(
    shape: RankMap, live: Mapping[tuple[str, str], float], largest: int, summary: str
) -> RankTable:
    """Return a heat map of numbers by layer and kind of module.

    Args:
        shape: rows, columns and their names.
        live: (row, column) -> number.
        largest: the number of the darkest colour.
        summary: the last line of the caption.
    """
    rows = []
    for row, name in zip(shape.rows, shape.row_labels(), strict=True):
        numbers = [live.get((row, column)) for column in shape.columns]
        rows.append((name, tuple(None if n is None else map_cell(n, largest) for n in numbers)))
    return RankTable(summary, tuple(shape.column_labels()), tuple(rows))


def map_cell(live: float, largest: int) -> MapCell:
    """Return a number as a cell of a heat map whose darkest colour is that of `largest`."""
    level = 0 if live == 0 else max(1, round(_LEVELS * live / max(largest, 1)))
    return MapCell(rank_text(live), min(level, _LEVELS))


def environments(groups: Sequence[Group]) -> list[tuple[str, list[tuple[str, int]]]]:
    """Return each version, machine and commit with the number of its runs, most first."""
    found: dict[str, Counter[str]] = {}
    for group in groups:
        for run in group.runs:
            for name, value in run.report.environment.model_dump().items():
                found.setdefault(name, Counter())[_plain(value)] += 1
    return [(name, values.most_common()) for name, values in found.items()]


def summary_lines(groups: Sequence[Group], baseline: str | None) -> list[str]:
    """Return lines that say how many runs there are, of what, when, and the baseline."""
    runs = [run for group in groups for run in group.runs]
    tasks = by_task(groups)
    seeds = sorted({run.seed for run in runs})
    days = sorted(run.report.started[:10] for run in runs if run.report.started)
    models = dict.fromkeys(run.model for run in runs)
    lines = [
        f"{len(runs)} runs in {len(groups)} groups (equal but for the seed) on "
        f"{len(tasks)} task{'s' if len(tasks) > 1 else ''}",
        f"base model{'s' if len(models) > 1 else ''}: {', '.join(models)}",
        f"seeds: {', '.join(map(str, seeds))}",
    ]
    if days:
        lines.append(f"run {days[0]}" + (f" to {days[-1]}" if days[-1] != days[0] else ""))
    if baseline is not None:
        lines.append(f"differences are to: {baseline}")
    return lines


def _run_part(run: Run) -> RunPart:
    report, kept = run.report, run.components
    factor = 100 if run.percent else 1
    memory = report.peak_memory_bytes
    return RunPart(
        seed=str(run.seed),
        metric="not a number" if math.isnan(run.metric) else f"{factor * run.metric:.4g}",
        parameters=count(run.parameters),
        components=f"{kept.live} of {kept.start}" if kept.start else "",
        seconds=count(run.seconds),
        memory=size(memory) if memory is not None else "",
        started=report.started.replace("T", " ")[:16],
        directory=str(run.directory),
        command=shlex.join(report.command),
    )


@lru_cache(maxsize=4096)
def _yaml(value: str) -> str:
    """Return a value, given as JSON, as YAML on one line."""
    import json

    import yaml

    text: str = yaml.safe_dump(json.loads(value), default_flow_style=True, width=10**6)
    return text.strip().removesuffix("...").strip()


def _plain(value: Any) -> str:
    return "none" if value is None else str(value)


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

    section: str | None
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[RowPart, ...]


def table_parts(
    table: Table, groups: Sequence[Group], anchors: Mapping[tuple[str, str], str]
) -> list[TablePart]:
    """Return the tables of all sections: of tasks and the means over them, or of budgets.

    Args:
        groups: those of the table.
        anchors: task and label -> where on the page the group is described.
    """
    tasks = by_task(groups) if table.by == "task" else {}
    parts = []
    for section in table.sections():
        members = tasks.get(section.name or "", groups)
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
        anchor = anchors.get((row.section, row.label)) if row.section is not None else None
        rows.append(RowPart(row.label, anchor, row.label == table.baseline, tuple(cells)))
    label = next(column for column in table.columns if column.key == "label")
    return TablePart(section.name, section.caption, (label, *columns), tuple(rows))


def _cell_part(cell: Cell, key: str, best: float | None) -> CellPart:
    number = _number(cell.raw)
    sort = repr(number) if number is not None else cell.raw if isinstance(cell.raw, str) else ""
    return CellPart(cell.shown, sort, key == "metric" and number is not None and number == best)


def _number(raw: Raw) -> float | None:
    """Return a number; None for anything else, NaN included."""
    if not isinstance(raw, int | float) or math.isnan(raw):
        return None
    return float(raw)
