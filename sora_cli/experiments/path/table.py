"""The tables of a path: stages, and controls."""

from __future__ import annotations

from typing import Any

from sora_cli.core.console import count
from sora_cli.experiments.path.record import PathReport, Stage

Table = tuple[str, list[str], list[list[str]]]
"""Title, columns, rows."""


def stage_table(report: PathReport, chosen: int | None = None) -> Table:
    """Return a table with a row per stage.

    Args:
        chosen: index of a stage to be marked.
    """
    option = report.vary.removeprefix("method.")
    columns = ["stage", option, "alive", "share", "parameters"]
    for split in _splits(report):
        columns += [split, "relative"]
    columns += ["||dW||", "energy removed", "seconds"]
    rows = [_row(report, stage, stage.index == chosen) for stage in report.stages]
    return f"{report.name}: {report.main_metric} by stage", columns, rows


def control_table(report: PathReport) -> Table:
    """Return a table with a row per stage: relative metric of the path and of each rule."""
    controls = report.controls
    assert controls is not None
    rules = list(controls.rules)
    rows = []
    for stage, point in zip(report.stages[1:], controls.points, strict=True):
        path = stage.relative[report.generalisation]
        cells = [f"{value:.3f}" for value in (path, *(point.relative[r] for r in rules))]
        rows.append([str(stage.index), f"{stage.share:.0%}", *cells])
    title = (
        f"relative {report.main_metric}, {report.generalisation}: the path, and stage 0 cut down"
    )
    return title, ["stage", "alive", "path", *rules], rows


def _splits(report: PathReport) -> list[str]:
    """Return memorisation, generalisation, and the split of the choice if it is another."""
    return list(dict.fromkeys([report.memorisation, report.choice, report.generalisation]))


def _row(report: PathReport, stage: Stage, chosen: bool) -> list[str]:
    cells = [
        f"{'> ' if chosen else ''}{stage.index}",
        _value(stage.value),
        count(stage.live),
        f"{stage.share:.0%}",
        count(stage.parameters),
    ]
    for split in _splits(report):
        cells += [f"{report.score(stage, split):.4f}", f"{stage.relative[split]:.3f}"]
    energy = "" if stage.energy_removed is None else f"{stage.energy_removed:.1%}"
    return [*cells, f"{stage.norm:.3g}", energy, f"{stage.seconds:.0f}"]


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
