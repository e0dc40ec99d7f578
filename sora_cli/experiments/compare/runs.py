"""Finished runs, read from their reports, and groups of runs that differ only in the seed.

Also the scores on the selection rows (they choose the checkpoint). Only these scores may choose
between runs: a choice by the reported scores would make the reported scores too good.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from methods.words import did_you_mean
from sora_cli.adapter.ranks import Rank, RankMap, rank_map
from sora_cli.core.errors import SoraError
from sora_cli.experiments.path.record import SELECTION, TRAIN_SUBSET
from sora_cli.recipe.changes import NOT_THE_RUN, completed, flat
from sora_cli.recipe.metric_facts import facts_of
from sora_cli.report import RunReport

SEED = "training.seed"
_FROM = ("start.adapter", "start.checkpoint")
"""Settings that name another run: they differ between seeds, but not between methods."""
Unit = Literal["parameters", "bytes"]
"""The unit of an adapter's size."""
_NOT_REPORTED = (TRAIN_SUBSET, SELECTION)
"""Additional splits of a path's stages, which are not the reported split."""


@dataclass(frozen=True)
class Run:
    """One finished run.

    Attributes:
        directory: of the report.
        settings: dotted key -> value of the resolved recipe, without the blocks of `NOT_THE_RUN`.
            Keys that an older report lacks have today's defaults.
        chosen: a metric to compare instead of the main metric.
    """

    directory: Path
    report: RunReport
    settings: Mapping[str, Any]
    chosen: str | None = None

    @classmethod
    def of(cls, directory: Path, report: RunReport, *, seed: int | None = None) -> Run:
        """Return the run of a report.

        Args:
            seed: replaces the run's own seed. A stage of a path needs the seed of its path, because
                its own seed only orders its rows.
        """
        kept = {k: v for k, v in completed(report.recipe).items() if k not in NOT_THE_RUN}
        settings = {".".join(path): value for path, value in flat(kept)}
        return cls(directory, report, settings if seed is None else {**settings, SEED: seed})

    @property
    def seed(self) -> int:
        """`training.seed`; for a stage of a path, the seed of the path."""
        return int(self.settings[SEED])

    @property
    def method(self) -> str:
        """`method.name`."""
        return str(self.settings["method.name"])

    @property
    def task(self) -> str:
        """The data set's configuration, such as "rte"; otherwise the data set or training file."""
        named = self.settings.get("data.name") or self.settings.get("data.path")
        files = self.settings.get("data.files.train") or ["data"]
        return str(named or Path(files[0]).stem)

    @property
    def model(self) -> str:
        """`model.path`."""
        return str(self.settings["model.path"])

    @property
    def label(self) -> str | None:
        """`output.label`."""
        label = self._block("output").get("label")
        return None if label is None else str(label)

    @property
    def derived(self) -> tuple[str, ...]:
        """Keys with values derived from other runs: `output.derived`, and the `start` keys."""
        named = tuple(self._block("output").get("derived") or ())
        return tuple(dict.fromkeys([*named, *(_FROM if self.starts_from_another else ())]))

    @property
    def paper(self) -> Mapping[str, Any] | None:
        """The recipe's `paper` block: source, model, metric, and values by method name."""
        return self._block("paper") or None

    @property
    def starts_from_another(self) -> bool:
        """True if the run started from another run's adapter or checkpoint."""
        return self.report.start is not None

    @property
    def only_rounded(self) -> bool:
        """True if the run only rounded another run's adapter."""
        start = self.report.start
        return start is not None and start.bits is not None and not start.rule

    def _block(self, name: str) -> Mapping[str, Any]:
        block = self.report.recipe.get(name)
        return block if isinstance(block, dict) else {}

    @property
    def split(self) -> str:
        """The first reported split; for a stage of a path, the first that it was not trained on."""
        reported = (name for name in self.report.metrics if name not in _NOT_REPORTED)
        return next(reported, next(iter(self.report.metrics)))

    @property
    def scores(self) -> Mapping[str, float]:
        """All metrics on the reported split."""
        return self.report.metrics[self.split]

    @property
    def metric_name(self) -> str:
        """Name of the compared metric."""
        return self.chosen or self.report.main_metric or ""

    @property
    def metric(self) -> float:
        """The compared metric on the reported split."""
        return self.scores[self.metric_name]

    @property
    def greater_is_better(self) -> bool:
        """True if larger values of the compared metric are better.

        The recipe's setting is for the main metric only; other metrics are looked up by name.
        """
        if self.metric_name == self.report.main_metric:
            return bool(self.settings.get("task.greater_is_better", True))
        return not facts_of(self.metric_name).smaller_is_better

    @property
    def percent(self) -> bool:
        """True if papers print the metric times 100."""
        return facts_of(self.metric_name).ends_at_1

    @property
    def parameters(self) -> int:
        """Numbers left in the adapter's factors, without the head."""
        return self.report.parameters.adapter_end

    @property
    def bytes(self) -> int:
        """Bytes of the stored factors, without the head; without a record, 4 for each number."""
        known = self.report.parameters.adapter_bytes
        return 4 * self.parameters if known is None else known

    def size(self, unit: Unit) -> int:
        """Return the parameters or the bytes."""
        return self.bytes if unit == "bytes" else self.parameters

    @cached_property
    def ranks(self) -> RankMap:
        """Components by layer and kind of module; empty for methods without ranks.

        If the run started from another run's adapter, the start is the start of that other run.
        """
        before = self.report.start.ranks if self.report.start else {}
        ranks = self.report.ranks
        return rank_map(
            {path: rank.end for path, rank in ranks.items()},
            {path: before.get(path, rank).start for path, rank in ranks.items()},
        )

    @property
    def components(self) -> Rank:
        """Live components and components at the start, over all modules; see `ranks`."""
        return self.ranks.total

    @property
    def mean_rank(self) -> float | None:
        """Mean number of live components per adapted module; None for methods without ranks."""
        modules = len(self.report.ranks)
        return self.components.live / modules if modules else None

    @property
    def seconds(self) -> float:
        """Wall time of the whole run; for a resumed run, of its last process only."""
        return sum(self.report.seconds.values())

    @property
    def training_seconds(self) -> float:
        """Wall time of the optimiser steps alone; see `seconds`."""
        return self.report.seconds.get("train", 0.0)


@dataclass(frozen=True)
class Group:
    """Runs that differ only in the seed.

    Attributes:
        label: name for people, unique among the groups of its task.
        settings: the settings that all its runs share, without the seed and derived values.
        runs: ordered by seed.
    """

    label: str
    settings: Mapping[str, Any]
    runs: tuple[Run, ...]

    @property
    def first(self) -> Run:
        """The run with the smallest seed; it stands for the properties that all runs share."""
        return self.runs[0]

    @property
    def task(self) -> str:
        """The task of all its runs."""
        return self.first.task

    @property
    def method(self) -> str:
        """The method of all its runs."""
        return self.first.method

    @property
    def metrics(self) -> list[float]:
        """The metric of each run, in the order of seeds."""
        return [run.metric for run in self.runs]

    @property
    def scores(self) -> dict[int, float]:
        """The metric of each run, by seed."""
        return {run.seed: run.metric for run in self.runs}

    @property
    def parameters(self) -> float:
        """Mean number of parameters left in the adapter, without the head."""
        return self.size("parameters")

    def size(self, unit: Unit) -> float:
        """Return the mean of parameters or bytes."""
        return sum(run.size(unit) for run in self.runs) / len(self.runs)


def choose_metric(groups: Sequence[Group], name: str | None) -> list[Group]:
    """Compare another metric instead of the main metric.

    Runs that do not report it are left out; an error if no run does.

    Args:
        name: of the metric; None keeps the main metric.
    """
    if name is None:
        return list(groups)
    known = dict.fromkeys(metric for g in groups for run in g.runs for metric in run.scores)
    if name not in known:
        raise SoraError(f"no run reports the metric '{name}'", hint=did_you_mean(name, known))
    chosen = []
    for group in groups:
        runs = tuple(replace(run, chosen=name) for run in group.runs if name in run.scores)
        if runs:
            chosen.append(replace(group, runs=runs))
    return chosen


_PREFIX = "eval_"


def selection_scores(report: RunReport) -> dict[int, float]:
    """Return the main metric of all evaluations on the selection rows, by step."""
    key = f"{_PREFIX}{report.main_metric}"
    return {entry["step"]: entry[key] for entry in report.history if key in entry}


def selection_score(report: RunReport) -> float | None:
    """Return the main metric of the kept weights on the selection rows; None if not evaluated."""
    return selection_scores(report).get(report.best_step or report.steps or 0)


def on_selection_rows(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """Replace the reported scores by the main metric on the selection rows.

    Returns:
        The runs, and a line for each run that is left out because it was not evaluated there.
    """
    scored, left_out = [], []
    for run in runs:
        score = selection_score(run.report)
        if score is None:
            left_out.append(f"{run.directory}: not evaluated on its selection rows")
            continue
        metrics = {SELECTION: {run.report.main_metric: score}}
        scored.append(replace(run, report=run.report.model_copy(update={"metrics": metrics})))
    return scored, left_out
