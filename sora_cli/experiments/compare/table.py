"""The table of a comparison: a row for each group, task by task, then means over the tasks.

table = comparison_table(groups, baseline="lora r=8")
for section in table.sections():
    print(section.caption)
    for row in section.rows:
        print([row.cells[column.key].shown for column in table.shown_columns])
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from methods.words import did_you_mean
from sora_cli.core.errors import SoraError
from sora_cli.experiments.compare.cells import (
    COST,
    METRIC,
    PAPER,
    Cell,
    Column,
    Raw,
    average_values,
    difference_columns,
    difference_values,
    group_values,
    shown_cell,
)
from sora_cli.experiments.compare.notes import Papers, remarks_of
from sora_cli.experiments.compare.runs import Group
from sora_cli.experiments.compare.stats import Difference, difference, pairs


@dataclass(frozen=True)
class Row:
    """The row of a group, or of what stands for several groups of one label.

    Attributes:
        section: what the row stands under, such as its task; None: all together.
        label: the group's.
        cells: by the columns' keys, all of them.
    """

    section: str | None
    label: str
    cells: Mapping[str, Cell]


@dataclass(frozen=True)
class Section:
    """The rows that stand together; `name` is None for all tasks or sizes together."""

    name: str | None
    caption: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Table:
    """A comparison.

    Attributes:
        columns: all, also those for programs only.
        rows: in order; those of a section stand together, None, such as the means, last.
        captions: by section: what is compared, such as "rte: accuracy x 100".
        footnotes: what to know when reading it.
        baseline: the label that differences are to.
        by: the column that sections are by.
    """

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    captions: Mapping[str | None, str]
    footnotes: tuple[str, ...]
    baseline: str | None = None
    by: str = "task"

    @property
    def shown_columns(self) -> tuple[Column, ...]:
        """The columns that people read."""
        return tuple(column for column in self.columns if not column.raw_only)

    def sections(self) -> list[Section]:
        """Return the rows, section by section."""
        return [
            Section(name, caption, tuple(row for row in self.rows if row.section == name))
            for name, caption in self.captions.items()
        ]


def comparison_table(
    groups: Sequence[Group],
    *,
    baseline: str | None = None,
    paper: bool = False,
) -> Table:
    """Lay groups of runs side by side.

    Args:
        groups: ordered by task; at least one.
        baseline: label of the group of each task that differences are to.
        paper: with the values that the recipes' `paper` blocks hold.

    Raises:
        SoraError: no group has that label.
    """
    labels = dict.fromkeys(group.label for group in groups)
    if baseline is not None and baseline not in labels:
        raise SoraError(f"no group is called '{baseline}'", hint=did_you_mean(baseline, labels))
    papers = Papers()
    columns = [*METRIC, *(PAPER if paper else ())]
    columns += [*(difference_columns(baseline) if baseline is not None else ()), *COST]
    tasks = _by_task(groups)
    rows = []
    for members in tasks.values():
        for group in members.values():
            values = group_values(group)
            if baseline is not None and baseline in members and group.label != baseline:
                found = _difference([(group, members[baseline])])
                values |= difference_values(found)
            mark = papers.add(group, values) if paper else ""
            rows.append(_row(columns, values, percent=group.first.percent, mark=mark))
    means, remarks = _means(columns, tasks, baseline)
    captions: dict[str | None, str] = {
        task: _caption(list(members.values())) for task, members in tasks.items()
    }
    if means:
        captions[None] = f"mean over {len(tasks)} tasks{_times_100(groups)}"
    footnotes = [*papers.footnotes(asked=paper), *remarks, *remarks_of(groups, baseline)]
    return Table(tuple(columns), (*rows, *means), captions, tuple(footnotes), baseline)


def _by_task(groups: Sequence[Group]) -> dict[str, dict[str, Group]]:
    """Return the groups by task and label."""
    tasks: dict[str, dict[str, Group]] = {}
    for group in groups:
        tasks.setdefault(group.task, {})[group.label] = group
    return tasks


def _row(
    columns: Sequence[Column], values: Mapping[str, Raw], *, percent: bool, mark: str = ""
) -> Row:
    cells = {c.key: shown_cell(c.key, values, percent=percent) for c in columns}
    if mark:
        cells["paper"] = Cell(cells["paper"].raw, f"{cells['paper'].shown} {mark}")
    task = values["task"]
    return Row(None if task is None else str(task), str(values["label"]), cells)


def _means(
    columns: Sequence[Column], tasks: Mapping[str, Mapping[str, Group]], baseline: str | None
) -> tuple[list[Row], list[str]]:
    """Return a row for each label that all of several tasks have, or say why there is none."""
    if len(tasks) < 2:
        return [], []
    first, *others = tasks.values()
    shared = [label for label in first if all(label in members for members in others)]
    if not shared:
        return [], ["no mean over the tasks: no label is there in all of them"]
    if len({members[label].first.greater_is_better for members in tasks.values()
            for label in shared}) > 1:  # fmt: skip
        return [], ["no mean over the tasks: of some metrics the larger is better, of some not"]
    rows = []
    for label in shared:
        same = [members[label] for members in tasks.values()]
        values = average_values([group_values(group) for group in same])
        if baseline is not None and baseline in shared and label != baseline:
            found = [(members[label], members[baseline]) for members in tasks.values()]
            values |= difference_values(_difference(found))
        rows.append(_row(columns, values, percent=_all_percent(same)))
    return rows, []


def _difference(groups: Sequence[tuple[Group, Group]]) -> Difference | None:
    return difference([pairs(group.scores, baseline.scores) for group, baseline in groups])


def _all_percent(groups: Sequence[Group]) -> bool:
    return all(group.first.percent for group in groups)


def _times_100(groups: Sequence[Group]) -> str:
    return ", x 100" if _all_percent(groups) else ""


def _caption(groups: Sequence[Group]) -> str:
    """Say what is compared: "rte: accuracy x 100 on validation"."""
    first = groups[0].first
    names = " or ".join(dict.fromkeys(group.first.metric_name for group in groups))
    splits = " or ".join(dict.fromkeys(group.first.split for group in groups))
    better = "" if first.greater_is_better else ", smaller is better"
    times = " x 100" if _all_percent(groups) else ""
    return f"{first.task}: {names}{times} on {splits}{better}"
