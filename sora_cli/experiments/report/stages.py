"""A path on a page: table of its stages, curves of their scores, and survivors by place."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sora_cli.core.console import count
from sora_cli.core.figures import INK, arrange, finish, new_figure
from sora_cli.core.shell import quote
from sora_cli.core.table import Table
from sora_cli.experiments.path.plot import draw_curves, shares_by_place
from sora_cli.experiments.path.record import PathReport
from sora_cli.experiments.path.table import control_table, stage_table
from sora_cli.experiments.report.facts import Fact, duration, memory_fact, number
from sora_cli.experiments.report.heat import RankTable, map_cell

_SIZE = 5.6, 4.0
"""Width and height of the curves, inches."""


@dataclass(frozen=True)
class PathPart:
    """The section of a page for the stages of a path."""

    tables: tuple[Table, ...]
    survivors: RankTable
    verdict: str


def path_title(report: PathReport) -> str:
    """Return the title of the page."""
    stages = f"{len(report.stages)} of {report.stage_count} stages"
    return f"{report.name}: a path over {report.vary}, {stages}"


def path_headline(report: PathReport) -> list[Fact]:
    """Return the known facts of a path."""
    facts = []
    for place, stage in (("first stage", 0), ("last stage", -1)) if report.stages else ():
        result = report.stages[stage]
        split = report.generalisation
        score = f"{report.main_metric} {number(report.score(result, split))} on {split}"
        alive = f"{count(result.live)} of {count(result.total)} components"
        facts.append(Fact(place, score, f"{alive}, {count(result.parameters)} parameters"))
    model = report.recipe.get("model", {})
    rows = ", ".join(f"{name} {count(n)}" for name, n in report.rows.items())
    return [
        *facts,
        Fact("method", report.method, f"{report.vary} varies from stage to stage"),
        Fact("base model", str(model.get("path") or "not known")),
        Fact("task", str(report.recipe.get("task", {}).get("name", "not known")),
             f"rows: {rows}" if rows else ""),
        Fact("time", duration(sum(report.seconds.values()))),
        *memory_fact(report),
    ]  # fmt: skip


def path_part(report: PathReport) -> PathPart:
    """Return the section of a path with at least one finished stage."""
    tables = [stage_table(report)]
    if report.controls is not None:
        tables.append(control_table(report))
    rows = shares_by_place(report)
    cells = [
        (name, tuple(map_cell(round(100 * r.live / r.start) if r.start else 0, 100) for r in ranks))
        for name, ranks in rows
    ]
    columns = tuple(f"{stage.value:g}" if isinstance(stage.value, float) else str(stage.value)
                    for stage in report.stages)  # fmt: skip
    summary = f"% of stage 0's components, by {report.vary}"
    verdict = "" if report.controls is None else report.controls.verdict
    return PathPart(tuple(tables), RankTable(summary, columns, tuple(cells)), verdict)


def draw_stages(report: PathReport) -> Any:
    """Draw the scores of the stages and of the controls against the size of the adapter."""
    figure = new_figure(*_SIZE, solved=False)
    axes = figure.subplots()
    draw_curves(axes, report)
    finish(axes, "", axes.get_xlabel(), axes.get_ylabel())
    lines = axes.get_legend_handles_labels()
    figure.legend(*lines, loc="lower left", fontsize=7.5, frameon=False, labelcolor=INK)
    arrange(figure, 1, 1, below=0.17 * len(lines[0]) + 0.1)
    return figure


def path_next(report: PathReport, run: Path) -> list[str]:
    """Return commands to use a path."""
    last = [f"sora report {quote(str(run / report.stages[-1].directory))}"] if report.stages else []
    return [f"sora pick {quote(str(run))} --keep 0.99", *last]
