"""Estimates of a run's time, from finished or short runs of the same kind. No torch here."""

from __future__ import annotations

import shlex
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from methods.schedules import steps_of
from sora_cli.core.console import say
from sora_cli.experiments.compare.finding import report_files
from sora_cli.experiments.path.plan import plan_stages
from sora_cli.experiments.sweep.engine import Job, LocalEngine, code_options
from sora_cli.experiments.sweep.plan import PlannedRun, word
from sora_cli.recipe.load import LoadedRecipe
from sora_cli.recipe.recipe import Recipe, TrainingBlock
from sora_cli.report import RunReport, read_report

_KIND = (
    ("method", "name"),
    ("model", "path"),
    ("data", "path"),
    ("data", "name"),
    ("data", "max_length"),
    ("training", "batch_size"),
    ("training", "precision"),
)
"""Keys that decide the time of a step; runs with equal values are of one kind."""
Kind = tuple[Any, ...]


@dataclass(frozen=True)
class Cost:
    """Seconds of the parts of a run.

    Attributes:
        fixed: everything except training.
        step: one optimiser step.
        evaluation: one evaluation during training.
        rows: number of training rows; it decides the number of steps.
    """

    fixed: float
    step: float
    evaluation: float
    rows: int

    @classmethod
    def of(cls, report: RunReport) -> Cost | None:
        """Return the cost from a report; None if the run did not finish its training."""
        before = report.steps_before  # not in `seconds`, which begin with the run's last process
        steps = (report.steps or 0) - before
        counts = report.data.encoded or report.data.rows
        rows = counts.get("train")
        if report.status != "completed" or steps < 1 or not rows:
            return None
        seconds = dict(report.seconds)
        train, inside = seconds.pop("train"), seconds.pop("evaluate in training", 0.0)
        count = sum("eval_runtime" in entry and entry["step"] > before for entry in report.history)
        once = inside / count if count else seconds.get("evaluate", 0.0)
        return cls(sum(seconds.values()), train / steps, once, int(rows))

    def of_run(self, recipe: Recipe) -> float:
        """Return the seconds for a run of a recipe; steps before its start checkpoint are free."""
        block, start = recipe.training, recipe.start
        moment = None if start is None else start.step
        shared = 0 if moment is None else steps_of(moment, block.total_steps(self.rows))
        return self.fixed + self._training(block) - self._training(block, shared)

    def of_path(self, loaded: LoadedRecipe) -> float:
        """Return the seconds for a path; scoring a stage costs two evaluations."""
        stages = [plan.recipe.training for plan in plan_stages(loaded)]
        return self.fixed + sum(self._training(block) + 2 * self.evaluation for block in stages)

    def of_auto(self, loaded: LoadedRecipe) -> float:
        """Return the seconds for `sora auto`: one run, plus the share that `auto.cost` allows."""
        block = loaded.recipe.auto
        return self.of_run(loaded.recipe) * (1 + (0.0 if block is None else block.cost))

    def _training(self, block: TrainingBlock, steps: int | None = None) -> float:
        """Return the seconds of a number of steps, with their evaluations; None means all steps."""
        steps = block.total_steps(self.rows) if steps is None else steps
        per_epoch = block.steps_per_epoch(self.rows)
        every = {"epoch": per_epoch, "no": steps + 1}.get(str(block.evaluate), block.evaluate)
        return steps * self.step + steps // int(every) * self.evaluation


class Costs:
    """Costs by kind of run: the median over known runs."""

    def __init__(self, reports: Iterable[RunReport]) -> None:
        self._known: dict[Kind, list[Cost]] = {}
        for report in reports:
            self.add(report)

    @classmethod
    def under(cls, directory: Path) -> Costs:
        """Collect the costs from the reports of all runs below a directory."""
        files = report_files(directory) if directory.is_dir() else []
        reports = (read_report(file.parent) for file in files)
        return cls(report for report in reports if report is not None)

    def add(self, report: RunReport) -> None:
        """Add the cost of one run; unfinished runs have no cost and are ignored."""
        cost = Cost.of(report)
        if cost is not None:
            self._known.setdefault(kind_of(report.recipe), []).append(cost)

    def find(self, recipe: Mapping[str, Any]) -> Cost | None:
        """Return the cost for a recipe: of its kind, otherwise of the same kind with any method.

        Returns:
            The median of each part; None if no such run is known.
        """
        kind = kind_of(recipe)
        costs = self._known.get(kind) or [
            cost for known, same in self._known.items() if known[1:] == kind[1:] for cost in same
        ]
        if not costs:
            return None
        return Cost(
            median(cost.fixed for cost in costs),
            median(cost.step for cost in costs),
            median(cost.evaluation for cost in costs),
            costs[-1].rows,
        )


def kind_of(recipe: Mapping[str, Any]) -> Kind:
    """Return the settings of a recipe that decide the time of a step."""
    return tuple(recipe.get(block, {}).get(key) for block, key in _KIND)


_STEPS = 8
_SHORT = {
    "training.max_steps": _STEPS,
    "training.evaluate": "no",
    "training.checkpoint": "no",
    "training.keep_checkpoints": [],
    "training.early_stopping": None,
}


def measure(
    runs: Mapping[Kind, PlannedRun], costs: Costs, *, threads: int, code: Sequence[Path]
) -> None:
    """Measure the cost of each kind in a run of a few steps, and add it to the known costs.

    Args:
        code: plug-in files for each run.
    """
    for i, run in enumerate(runs.values()):
        say(f"[{i}/{len(runs)}]  {_STEPS} steps of {run.name}")
        with tempfile.TemporaryDirectory() as folder:
            directory = Path(folder, "run")
            short = [word(key, value) for key, value in _SHORT.items()]
            # the run to start from may not have run yet
            own = [w for w in run.words if not w.startswith("start.")]
            words = [*own, *short, word("output.dir", str(directory))]
            arguments = ("train", run.recipe, *words, *code_options(code))
            gpus = run.loaded.recipe.resources.gpus
            _wait(Job(run.name, arguments, Path(folder, "log"), threads, gpus))
            report = read_report(directory)
            if report is None or report.status != "completed":
                command = shlex.join(["sora", "train", run.recipe, *run.words, *code_options(code)])
                say(f"       it failed; to see why: {command}")
            else:
                costs.add(report)


def missing_kinds(runs: tuple[PlannedRun, ...], costs: Costs) -> dict[Kind, PlannedRun]:
    """Return the first run of each kind without a known cost."""
    missing: dict[Kind, PlannedRun] = {}
    for run in runs:
        recipe = run.loaded.resolved()
        if costs.find(recipe) is None:
            missing.setdefault(kind_of(recipe), run)
    return missing


def _wait(job: Job) -> None:
    engine = LocalEngine(1)
    try:
        engine.start(job)
        while not engine.poll():
            time.sleep(0.1)
    finally:
        engine.close()
