"""Groups of runs of known size and metric, for comparisons at equal size."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sora_cli.experiments.compare.grouping import group_runs
from sora_cli.experiments.compare.runs import Group, Run
from sora_cli.experiments.compare.table import Tables
from sora_cli.report import Start
from tests.helpers_reports import report_of

FULL = 1000
"""Parameters of the baseline."""
Scores = Sequence[float] | Mapping[str, Sequence[float]]


def label(
    name: str, percent: float, scores: Scores, *, method: str = "lora", **about: Any
) -> list[Run]:
    """Runs of a label: a metric for each seed from 0, of the task "rte" or of several tasks.

    Args:
        percent: parameters, per cent of `FULL`.
    """
    tasks = scores if isinstance(scores, Mapping) else {"rte": scores}
    settings = {"training.weight_decay": zlib.crc32(name.encode()) / 2**32}  # one group a label
    parameters = round(percent * FULL / 100)
    return [
        Run.of(Path(f"{task}-{name}-s{seed}"),
               report_of(task=task, label=name, method=method, seed=seed, metric=metric,
                         parameters=parameters, settings=settings, **about))
        for task, of in tasks.items() for seed, metric in enumerate(of)
    ]  # fmt: skip


def started(runs: Sequence[Run]) -> list[Run]:
    """The runs as if each had begun with an adapter of its seed."""
    for run in runs:
        run.report.start = Start(directory=f"runs/other-s{run.seed}", digest="")
    return list(runs)


def groups(*labels: Sequence[Run]) -> Sequence[Group]:
    return group_runs([run for runs in labels for run in runs]).groups


@dataclass(frozen=True)
class Row:
    """A row of a comparison: its raw values by key, and the texts of the columns that are shown."""

    section: str | None
    raw: dict[str, Any]
    shown: dict[str, str]

    @property
    def label(self) -> str:
        return str(self.raw["label"])


def rows_of(tables: Tables) -> list[Row]:
    return [
        Row(name, record, dict(zip([c.key for c in t.shown_columns], t.shown(row), strict=True)))
        for name, t in tables.parts.items()
        for record, row in zip(t.records(), t.rows, strict=True)
    ]
