"""The tables of a comparison: one per task with a row per group, then the means over the tasks.

comparison = comparison_tables(groups, baseline="lora r=8")
for table in comparison.parts.values():
    emit_table(table)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from methods.words import did_you_mean
from sora_cli.core.errors import SoraError
from sora_cli.core.table import Column, Table
from sora_cli.experiments.compare.cells import (
    COST,
    METRIC,
    PAPER,
    Raw,
    average_values,
    difference_columns,
    difference_values,
    group_values,
    row_of,
)
from sora_cli.experiments.compare.notes import Papers, remarks_of
from sora_cli.experiments.compare.runs import Group
from sora_cli.experiments.compare.stats import Difference, difference, pairs


@dataclass(frozen=True)
class Tables:
    """The tables of a comparison.

    Attributes:
        parts: tables by task or by budget, all with the same columns. The key None, the last, is
            the table over all of them. Titles are like "rte: accuracy x 100".
        footnotes: explanations and warnings.
        baseline: label that the others are subtracted from.
        by: key of the column that splits the comparison into tables: "task" or "budget".
    """

    parts: Mapping[str | None, Table]
    footnotes: tuple[str, ...]
    baseline: str | None = None
    by: str = "task"

    @property
    def columns(self) -> tuple[Column, ...]:
        """The columns of each table, including columns for CSV and JSON only."""
        return next(iter(self.parts.values())).columns


def comparison_tables(
    groups: Sequence[Group],
    *,
    baseline: str | None = None,
    paper: bool = False,
) -> Tables:
    """Build a table per task, and a table of means over the tasks.

    Args:
        groups: ordered by task; at least one.
        baseline: label of the group that the others are subtracted from, in each task.
        paper: include the values from the recipes' `paper` blocks.
    """
    labels = dict.fromkeys(group.label for group in groups)
    if baseline is not None and baseline not in labels:
        raise SoraError(f"no group is called '{baseline}'", hint=did_you_mean(baseline, labels))
    papers = Papers()
    columns = [*METRIC, *(PAPER if paper else ())]
    columns += [*(difference_columns(baseline) if baseline is not None else ()), *COST]
    tasks = _by_task(groups)
    tables: dict[str | None, Table] = {}
    for task, members in tasks.items():
        rows = []
        for group in members.values():
            values = group_values(group)
            if baseline is not None and baseline in members and group.label != baseline:
                values |= difference_values(_difference([(group, members[baseline])]))
            if paper:
                papers.add(group, values)
            rows.append(row_of(columns, values, percent=group.first.percent))
        tables[task] = Table(_caption(list(members.values())), columns, rows)
    means, remarks = _means(columns, tasks, baseline)
    if means:
        title = f"mean over {len(tasks)} tasks{_times_100(groups)}"
        tables[None] = Table(title, columns, means)
    footnotes = [*papers.footnotes(asked=paper), *remarks, *remarks_of(groups, baseline)]
    return Tables(tables, tuple(footnotes), baseline)


def _by_task(groups: Sequence[Group]) -> dict[str, dict[str, Group]]:
    """Return the groups by task and label."""
    tasks: dict[str, dict[str, Group]] = {}
    for group in groups:
        tasks.setdefault(group.task, {})[group.label] = group
    return tasks


def _means(
    columns: Sequence[Column], tasks: Mapping[str, Mapping[str, Group]], baseline: str | None
) -> tuple[list[list[Raw]], list[str]]:
    """Return a row of means for each label that occurs in all tasks, or a note with the reason.

    A single task has neither rows nor a note.
    """
    if len(tasks) < 2:
        return [], []
    first, *others = tasks.values()
    shared = [label for label in first if all(label in members for members in others)]
    if not shared:
        return [], ["no mean over the tasks: no label occurs in all of them"]
    if len({members[label].first.greater_is_better for members in tasks.values()
            for label in shared}) > 1:  # fmt: skip
        return [], ["no mean over the tasks: larger is better for some metrics, smaller for others"]
    rows = []
    for label in shared:
        same = [members[label] for members in tasks.values()]
        values = average_values([group_values(group) for group in same])
        if baseline is not None and baseline in shared and label != baseline:
            pairs_of_groups = [(members[label], members[baseline]) for members in tasks.values()]
            values |= difference_values(_difference(pairs_of_groups))
        rows.append(row_of(columns, values, percent=_all_percent(same)))
    return rows, []


def _difference(groups: Sequence[tuple[Group, Group]]) -> Difference | None:
    return difference([pairs(group.scores, baseline.scores) for group, baseline in groups])


def _all_percent(groups: Sequence[Group]) -> bool:
    return all(group.first.percent for group in groups)


def _times_100(groups: Sequence[Group]) -> str:
    return ", x 100" if _all_percent(groups) else ""


def _caption(groups: Sequence[Group]) -> str:
    """Return the caption of a task's table: "rte: accuracy x 100 on validation"."""
    first = groups[0].first
    names = " or ".join(dict.fromkeys(group.first.metric_name for group in groups))
    splits = " or ".join(dict.fromkeys(group.first.split for group in groups))
    better = "" if first.greater_is_better else ", smaller is better"
    times = " x 100" if _all_percent(groups) else ""
    return f"{first.task}: {names}{times} on {splits}{better}"
