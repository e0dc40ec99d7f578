"""The page of `sora compare --html`: one file that needs no server and no network.

`experiments/page/html.py` explains its safety measures and its figures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sora_cli.experiments.compare.budget_table import budget_tables
from sora_cli.experiments.compare.grouping import by_task, differing
from sora_cli.experiments.compare.notes import warnings_of
from sora_cli.experiments.compare.page_parts import (
    environments,
    group_part,
    shared_settings,
    sortable,
    summary_lines,
)
from sora_cli.experiments.compare.plot_curves import draw_curves
from sora_cli.experiments.compare.plot_points import draw_points
from sora_cli.experiments.compare.plot_sizes import draw_sizes
from sora_cli.experiments.compare.runs import Group
from sora_cli.experiments.compare.sizes import Sizes
from sora_cli.experiments.compare.table import Tables, comparison_tables
from sora_cli.experiments.page.html import picture, render, resource
from sora_cli.experiments.page.parts import recipe_lines

_HERE = "sora_cli.experiments.compare"


def write_page(
    groups: Sequence[Group],
    path: Path,
    *,
    baseline: str | None = None,
    paper: bool = False,
    sizes: Sizes | None = None,
    budgets: Sequence[float] = (),
) -> None:
    """Write a comparison as one HTML file; an existing file is replaced.

    Args:
        groups: from `group_runs`, ordered by task; at least one.
        baseline: label of the group that the others are subtracted from, in each task.
        paper: include the values from the recipes' `paper` blocks.
        sizes, budgets: include the comparison at equal size.
    """
    from sora_cli.core.atomic import write_text_atomic

    html = page(groups, baseline=baseline, paper=paper, sizes=sizes, budgets=budgets)
    write_text_atomic(path, html)


def page(
    groups: Sequence[Group],
    *,
    baseline: str | None = None,
    paper: bool = False,
    sizes: Sizes | None = None,
    budgets: Sequence[float] = (),
) -> str:
    """Return the HTML that `write_page` writes."""
    tables = comparison_tables(groups, baseline=baseline, paper=paper)
    anchors = {(group.task, group.label): f"g{i}" for i, group in enumerate(groups)}
    shown = _table_values(tables, groups, anchors)
    return render(
        _HERE,
        script=resource(_HERE, "page.js"),
        summary=summary_lines(groups, baseline),
        warnings=list(warnings_of(groups)),
        equal=None if sizes is None else _equal_size(groups, sizes, budgets),
        means=shown.get(None),
        tasks=_task_values(groups, shown, anchors),
        footnotes=tables.footnotes,
        shared=recipe_lines(shared_settings(groups)),
        environments=environments(groups),
    )


def _equal_size(groups: Sequence[Group], sizes: Sizes, budgets: Sequence[float]) -> dict[str, Any]:
    """Return the template's values for the comparison at equal size."""
    tables = budget_tables(sizes, budgets)
    return {
        "tables": _table_values(tables, groups, {}).values(),
        "picture": picture(draw_sizes(sizes, budgets), "sizes"),
        "notes": tables.footnotes,
    }


def _table_values(
    tables: Tables, groups: Sequence[Group], anchors: Mapping[tuple[str, str], str]
) -> dict[str | None, dict[str, Any]]:
    """Return the template's values of each table, by task or budget.

    Args:
        anchors: (task, label) -> anchor of the group's description on the page.
    """
    tasks = by_task(groups)
    return {
        name: sortable(
            table,
            baseline=tables.baseline,
            anchors={label: anchor for (task, label), anchor in anchors.items() if task == name},
            greater_is_better=tasks.get(name or "", groups)[0].first.greater_is_better,
        )
        for name, table in tables.parts.items()
    }


def _task_values(
    groups: Sequence[Group],
    tables: Mapping[str | None, dict[str, Any]],
    anchors: Mapping[tuple[str, str], str],
) -> list[dict[str, Any]]:
    """Return the template's values of each task: table, pictures, groups."""
    tasks = []
    for i, (task, members) in enumerate(by_task(groups).items()):
        keys = set(differing([group.settings for group in members]))
        parts = [group_part(group, anchors[task, group.label], keys) for group in members]
        curves = draw_curves(members)
        tasks.append(
            {
                "name": task,
                "anchor": f"t{i}",
                "table": tables[task],
                "points": picture(draw_points(members), f"points{i}"),
                "curves": None if curves is None else picture(curves, f"curves{i}"),
                "groups": parts,
                "mapped": [part for part in parts if part.ranks],
            }
        )
    return tasks
