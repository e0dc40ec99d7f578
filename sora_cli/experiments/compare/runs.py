"""Finished runs, read from their reports, and groups of runs that differ in their seed only.

Scores on the rows that choose the checkpoint are here, too: only they may be used to choose runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from methods.words import did_you_mean
from sora_cli.adapter.ranks import Rank, RankMap, rank_map
from sora_cli.core.errors import SoraError
from sora_cli.experiments.path.record import SELECTION, TRAIN_SUBSET
from sora_cli.recipe.changes import NOT_THE_RUN, completed, flat
from sora_cli.recipe.families import SMALLER_IS_BETTER, is_share
from sora_cli.report import RunReport

SEED = "training.seed"
_FROM = ("start.adapter", "start.checkpoint")
"""Settings that name another run, so they differ with the seed."""
_NOT_REPORTED = (TRAIN_SUBSET, SELECTION)
"""Splits that a stage of a path is scored on, too."""


@dataclass(frozen=True)
class Run:
    """One finished run.

    Attributes:
        directory: where its report lies.
        report: what it says.
        settings: dotted key -> value of the resolved recipe, completed by today's defaults, without
            what `NOT_THE_RUN` holds.
        chosen: a metric to compare instead of the main one.
    """

    directory: Path
    report: RunReport
    settings: Mapping[str, Any]
    chosen: str | None = None

    @classmethod
    def of(cls, directory: Path, report: RunReport, *, seed: int | None = None) -> Run:
        """Make a run of its report.

        Args:
            seed: instead of the run's own, which for a stage of a path only orders its rows.
        """
        kept = {k: v for k, v in completed(report.recipe).items() if k not in NOT_THE_RUN}
        settings = {".".join(path): value for path, value in flat(kept)}
        return cls(directory, report, settings if seed is None else {**settings, SEED: seed})

    @property
    def seed(self) -> int:
        """`training.seed`; of a stage of a path, the path's."""
        return int(self.settings[SEED])

    @property
    def method(self) -> str:
        """`method.name`."""
        return str(self.settings["method.name"])

    @property
    def task(self) -> str:
        """The data set's configuration, such as "rte", or else the data set."""
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
        """Keys whose values follow from other runs: `output.derived`, and what it starts from."""
        named = tuple(self._block("output").get("derived") or ())
        return tuple(dict.fromkeys([*named, *(_FROM if self.starts_from_another else ())]))

    @property
    def paper(self) -> Mapping[str, Any] | None:
        """The recipe's `paper` block: source, metric, values by method's name."""
        return self._block("paper") or None

    @property
    def starts_from_another(self) -> bool:
        """Tell whether the run began with what another one had trained."""
        return self.report.start is not None

    def _block(self, name: str) -> Mapping[str, Any]:
        block = self.report.recipe.get(name)
        return block if isinstance(block, dict) else {}

    @property
    def split(self) -> str:
        """The first reported split; of a stage of a path, the first it was not trained on."""
        reported = (name for name in self.report.metrics if name not in _NOT_REPORTED)
        return next(reported, next(iter(self.report.metrics)))

    @property
    def scores(self) -> Mapping[str, float]:
        """All metrics on the reported split."""
        return self.report.metrics[self.split]

    @property
    def metric_name(self) -> str:
        """The name of the metric that is compared."""
        return self.chosen or self.report.main_metric or ""

    @property
    def metric(self) -> float:
        """The main metric, or the chosen one, on the reported split."""
        return self.scores[self.metric_name]

    @property
    def greater_is_better(self) -> bool:
        """Tell whether more of the metric is better; a metric of another recipe may be a loss."""
        if self.metric_name == self.report.main_metric:
            return bool(self.settings.get("task.greater_is_better", True))
        return self.metric_name not in SMALLER_IS_BETTER

    @property
    def percent(self) -> bool:
        """Tell whether the metric is one that papers print times 100."""
        return is_share(self.metric_name)

    @property
    def parameters(self) -> int:
        """Numbers in the factors that are left: what was learned beside the head."""
        return self.report.parameters.adapter_end

    @cached_property
    def ranks(self) -> RankMap:
        """Components by layer and kind of module; empty where there are none.

        The start of a run that begins with another's adapter is what that one had.
        """
        before = self.report.start.ranks if self.report.start else {}
        ranks = self.report.ranks
        return rank_map(
            {path: rank.end for path, rank in ranks.items()},
            {path: before.get(path, rank).start for path, rank in ranks.items()},
        )

    @property
    def components(self) -> Rank:
        """Components alive and at the start, in all modules; see `ranks`."""
        return self.ranks.total

    @property
    def mean_rank(self) -> float | None:
        """Components alive per adapted module; None where there is no such thing."""
        modules = len(self.report.ranks)
        return self.components.live / modules if modules else None

    @property
    def seconds(self) -> float:
        """Wall time of the whole run; of one that was resumed, of its last process only."""
        return sum(self.report.seconds.values())

    @property
    def training_seconds(self) -> float:
        """Wall time of the optimiser steps alone; see `seconds`."""
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
        """The run of the smallest seed, for what all runs have in common."""
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
        """Mean numbers learned beside the head that are left."""
        return sum(run.parameters for run in self.runs) / len(self.runs)


def choose_metric(groups: Sequence[Group], name: str | None) -> list[Group]:
    """Put another metric in the place of the main one.

    Runs that do not report it, and groups of such runs only, are left out.

    Args:
        name: None: leave each run's main metric.

    Raises:
        SoraError: no run reports it.
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
    """Return the main metric of every evaluation so far, by step."""
    key = f"{_PREFIX}{report.main_metric}"
    return {entry["step"]: entry[key] for entry in report.history if key in entry}


def selection_score(report: RunReport) -> float | None:
    """Return the main metric of the weights that were kept; None if they were never evaluated."""
    return selection_scores(report).get(report.best_step or report.steps or 0)


def on_selection_rows(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """Put the main metric on the rows for selection in the place of the reported scores.

    Returns:
        The runs, and a line for each that was never evaluated there and is left out.
    """
    found, left_out = [], []
    for run in runs:
        score = selection_score(run.report)
        if score is None:
            left_out.append(f"{run.directory}: not evaluated on its rows for selection")
            continue
        metrics = {SELECTION: {run.report.main_metric: score}}
        found.append(replace(run, report=run.report.model_copy(update={"metrics": metrics})))
    return found, left_out
