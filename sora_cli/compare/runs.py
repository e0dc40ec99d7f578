"""Finished runs, read from their reports, and groups of runs that differ in their seed only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sora_cli.ranks import Rank, RankMap, rank_map
from sora_cli.recipe_file import flat
from sora_cli.report import RunReport
from sora_cli.resume import NOT_THE_RUN

SEED = "training.seed"


@dataclass(frozen=True)
class Run:
    """One finished run.

    Attributes:
        directory: where its report lies.
        report: what it says.
        settings: dotted key -> value of the resolved recipe, without what `NOT_THE_RUN` holds.
    """

    directory: Path
    report: RunReport
    settings: Mapping[str, Any]

    @classmethod
    def of(cls, directory: Path, report: RunReport) -> Run:
        """A run from its report."""
        kept = {k: v for k, v in report.recipe.items() if k not in NOT_THE_RUN}
        return cls(directory, report, {".".join(path): value for path, value in flat(kept)})

    @property
    def seed(self) -> int:
        return int(self.settings[SEED])

    @property
    def method(self) -> str:
        return str(self.settings["method.name"])

    @property
    def task(self) -> str:
        """The data set's configuration, such as "rte", or else the data set."""
        return str(self.settings.get("data.name") or self.settings.get("data.path") or "")

    @property
    def model(self) -> str:
        return str(self.settings["model.path"])

    @property
    def split(self) -> str:
        """The reported split: the first."""
        return next(iter(self.report.metrics))

    @property
    def metric_name(self) -> str:
        return self.report.main_metric or ""

    @property
    def metric(self) -> float:
        """The main metric on the reported split."""
        return self.report.metrics[self.split][self.metric_name]

    @property
    def greater_is_better(self) -> bool:
        return bool(self.settings.get("task.greater_is_better", True))

    @property
    def parameters(self) -> int:
        """Parameters of what was learned beside the head: of the factors that are left."""
        return self.report.parameters.adapter_end

    @cached_property
    def ranks(self) -> RankMap:
        """Components by layer and kind of module; empty where there are none."""
        ranks = self.report.ranks
        return rank_map(
            {path: rank.end for path, rank in ranks.items()},
            {path: rank.start for path, rank in ranks.items()},
        )

    @property
    def components(self) -> Rank:
        """Components alive and at the start, in all modules."""
        return self.ranks.total

    @property
    def mean_rank(self) -> float | None:
        """Components alive per adapted module; None where there is no such thing."""
        modules = len(self.report.ranks)
        return self.components.live / modules if modules else None

    @property
    def seconds(self) -> float:
        """Wall time of the whole run."""
        return sum(self.report.seconds.values())

    @property
    def training_seconds(self) -> float:
        """Wall time of the optimiser steps alone."""
        return self.report.seconds.get("train", 0.0)


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed only.

    Attributes:
        label: what tells the group from the others of its task, for a person.
        settings: what all its runs have in common (seed and derived values left out).
        runs: by seed.
    """

    label: str
    settings: Mapping[str, Any]
    runs: tuple[Run, ...]

    @property
    def first(self) -> Run:
        return self.runs[0]

    @property
    def task(self) -> str:
        return self.first.task

    @property
    def method(self) -> str:
        return self.first.method

    @property
    def metrics(self) -> list[float]:
        """One main metric per run, by seed."""
        return [run.metric for run in self.runs]
