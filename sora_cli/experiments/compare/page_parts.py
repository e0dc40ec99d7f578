"""The parts of the HTML page: sortable tables, and the description of each group."""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sora_cli.core.console import count, size
from sora_cli.core.table import Cell, Column, Table
from sora_cli.experiments.compare.grouping import by_task, differing
from sora_cli.experiments.compare.plot_ranks import MeanRanks
from sora_cli.experiments.compare.runs import Group, Run
from sora_cli.experiments.page.parts import Line, RankTable, heat_table, recipe_lines


@dataclass(frozen=True)
class GroupPart:
    """Description of a group: label, recipe, runs, and its ranks if some changed."""

    label: str
    anchor: str
    recipe: tuple[Line, ...]
    ranks: RankTable | None
    runs: Table


def group_part(group: Group, anchor: str, keys: set[str]) -> GroupPart:
    """Return the description of a group.

    Args:
        anchor: of the description on the page.
        keys: settings to mark: they differ between the groups of its task.
    """
    ranks = MeanRanks.of(group)
    return GroupPart(
        label=group.label,
        anchor=anchor,
        recipe=recipe_lines(group.settings, keys),
        ranks=heat_table(ranks.shape, ranks.live, ranks.largest, ranks.summary())
        if ranks
        else None,
        runs=_run_table(group.runs),
    )


def shared_settings(groups: Sequence[Group]) -> dict[str, Any]:
    """Return the settings that all groups share."""
    differ = set(differing([group.settings for group in groups]))
    return {key: value for key, value in groups[0].settings.items() if key not in differ}


def environments(groups: Sequence[Group]) -> list[tuple[str, list[tuple[str, int]]]]:
    """Count the runs by each part of their environment (versions, machine, commit), most first."""
    counts: dict[str, Counter[str]] = {}
    for group in groups:
        for run in group.runs:
            for name, value in run.report.environment.model_dump().items():
                counts.setdefault(name, Counter())[_environment_text(value)] += 1
    return [(name, values.most_common()) for name, values in counts.items()]


def summary_lines(groups: Sequence[Group], baseline: str | None) -> list[str]:
    """Return lines with the number of runs, base models, seeds, dates and the baseline."""
    runs = [run for group in groups for run in group.runs]
    tasks = by_task(groups)
    seeds = sorted({run.seed for run in runs})
    days = sorted(run.report.started[:10] for run in runs if run.report.started)
    models = dict.fromkeys(run.model for run in runs)
    lines = [
        f"{len(runs)} runs in {len(groups)} groups (the runs of a group differ in the seed) on "
        f"{len(tasks)} task{'s' if len(tasks) > 1 else ''}",
        f"base model{'s' if len(models) > 1 else ''}: {', '.join(models)}",
        f"seeds: {', '.join(map(str, seeds))}",
    ]
    if days:
        lines.append(f"run {days[0]}" + (f" to {days[-1]}" if days[-1] != days[0] else ""))
    if baseline is not None:
        lines.append(f"baseline of all differences: {baseline}")
    return lines


def _run_table(runs: Sequence[Run]) -> Table:
    from markupsafe import Markup

    columns = ("seed", "metric", Column("parameters", count), "alive", Column("seconds", count),
               Column("memory", size), "started", "directory and command")  # fmt: skip
    rows = []
    for run in runs:
        report, kept = run.report, run.components
        factor = 100 if run.percent else 1
        place = Markup("<code>{}</code>").format(run.directory)
        if report.command:
            place += Markup("<br><code>{}</code>").format(shlex.join(report.command))
        rows.append((
            run.seed,
            "not a number" if math.isnan(run.metric) else f"{factor * run.metric:.4g}",
            run.parameters,
            f"{kept.live} of {kept.start}" if kept.start else None,
            run.seconds,
            report.peak_memory_bytes,
            report.started.replace("T", " ")[:16],
            Cell(None, place),
        ))  # fmt: skip
    return Table(None, columns, rows)


def _environment_text(value: Any) -> str:
    return "none" if value is None else str(value)


def sortable(
    table: Table, *, baseline: str | None, anchors: Mapping[str, str], greater_is_better: bool
) -> dict[str, Any]:
    """Return the template's values of a sortable table; its first column holds the labels.

    Cells are sorted by number or text; empty cells come last in both directions.

    Args:
        baseline: label of the row to mark.
        anchors: label -> anchor of the group's description on the page.
    """
    rows = []
    records = table.records()
    known = [n for record in records if (n := _number(record["metric"])) is not None]
    best = (max if greater_is_better else min)(known, default=None)
    for record, row in zip(records, table.rows, strict=True):
        label, *texts = table.shown(row)
        cells = [
            {
                "shown": text,
                "sort": _sort_key(record[column.key]),
                "is_best": column.key == "metric"
                and best is not None
                and _number(record["metric"]) == best,
            }
            for column, text in zip(table.shown_columns[1:], texts, strict=True)
        ]
        rows.append({"label": label, "anchor": anchors.get(label),
                     "is_baseline": label == baseline, "cells": cells})  # fmt: skip
    return {"caption": table.title, "columns": table.shown_columns, "rows": rows}


def _sort_key(raw: Any) -> str:
    number = _number(raw)
    return repr(number) if number is not None else raw if isinstance(raw, str) else ""


def _number(raw: Any) -> float | None:
    """Return a number as float; None for NaN and for anything else."""
    if not isinstance(raw, int | float) or math.isnan(raw):
        return None
    return float(raw)
