"""The tables of a path: its stages and its controls."""

from __future__ import annotations

from typing import Any

from sora_cli.core.console import count
from sora_cli.core.table import Column, Table
from sora_cli.experiments.path.record import PathReport


def stage_table(report: PathReport, chosen: int | None = None) -> Table:
    """Return a table with a row per stage.

    Args:
        chosen: index of the stage to mark; None: mark none.
    """
    # `choice` is often the same split as `generalisation`: then it has one column
    splits = list(dict.fromkeys([report.memorisation, report.choice, report.generalisation]))
    columns = (
        Column("stage"),
        Column(report.vary.removeprefix("method."), _value),
        Column("alive", count),
        Column("share", ".0%"),
        Column("parameters", count),
        *(c for split in splits for c in (Column(split, ".4f"), Column("relative", ".3f"))),
        Column("||dW||", ".3g"),
        Column("energy removed", ".1%"),
        Column("seconds", ".0f"),
    )
    rows = []
    for stage in report.stages:
        scores = ((report.score(stage, split), stage.relative[split]) for split in splits)
        rows.append([
            f"{'> ' if stage.index == chosen else ''}{stage.index}", stage.value, stage.live,
            stage.share, stage.parameters, *(value for pair in scores for value in pair),
            stage.norm, stage.energy_removed, stage.seconds,
        ])  # fmt: skip
    return Table(f"{report.name}: {report.main_metric} by stage", columns, rows)


def control_table(report: PathReport) -> Table:
    """Return a table with a row per stage: the relative metric of the path and of each rule."""
    controls = report.controls
    assert controls is not None
    rules = list(controls.rules)
    columns = (
        Column("stage"),
        Column("alive", ".0%"),
        *(Column(name, ".3f") for name in ("path", *rules)),
    )
    rows = [
        [stage.index, stage.share, stage.relative[report.generalisation],
         *(point.relative[rule] for rule in rules)]
        for stage, point in zip(report.stages[1:], controls.points, strict=True)
    ]  # fmt: skip
    return Table(
        f"relative {report.main_metric}, {report.generalisation}: the path, and stage 0 cut down",
        columns, rows,
    )  # fmt: skip


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
