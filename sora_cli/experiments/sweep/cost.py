"""The time a run is expected to take, from finished or short runs of its kind. No torch here."""

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
"""The keys that two runs share if their steps take about as long."""
Kind = tuple[Any, ...]


@dataclass(frozen=True)
class Cost:
    """Seconds of one run's parts.

    Attributes:
        fixed: all but training.
        step: of one optimiser step.
        evaluation: of one evaluation while training.
        rows: training rows, which the number of steps follows from.
    """

    fixed: float
    step: float
    evaluation: float
    rows: int

    @classmethod
    def of(cls, report: RunReport) -> Cost | None:
        """Read the cost from a report; None if the run ended before its training did."""
        before = report.steps_before
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
        """Return the seconds for a run of that recipe."""
        block, start = recipe.training, recipe.start
        moment = None if start is None else start.step
        shared = 0 if moment is None else steps_of(moment, block.total_steps(self.rows))
        return self.fixed + self._training(block) - self._training(block, shared)

    def of_path(self, loaded: LoadedRecipe) -> float:
        """Return the seconds for a path; every stage is scored once, too."""
        stages = [plan.recipe.training for plan in plan_stages(loaded)]
        return self.fixed + sum(self._training(block) + 2 * self.evaluation for block in stages)

    def of_auto(self, loaded: LoadedRecipe) -> float:
        """Return the seconds for a search of a size: the run, and the share it may take more."""
        block = loaded.recipe.auto
        return self.of_run(loaded.recipe) * (1 + (0.0 if block is None else block.cost))

    def _training(self, block: TrainingBlock, steps: int | None = None) -> float:
        """Return the seconds of so many steps; None: of all."""
        steps = block.total_steps(self.rows) if steps is None else steps
        per_epoch = block.steps_per_epoch(self.rows)
        every = {"epoch": per_epoch, "no": steps + 1}.get(str(block.evaluate), block.evaluate)
        return steps * self.step + steps // int(every) * self.evaluation


class Costs:
    """Costs by kind of run: the median of those that are known."""

    def __init__(self, reports: Iterable[RunReport]) -> None:
        self._known: dict[Kind, list[Cost]] = {}
        for report in reports:
            self.add(report)

    @classmethod
    def under(cls, directory: Path) -> Costs:
        """Collect the costs of all runs below a directory."""
        files = report_files(directory) if directory.is_dir() else []
        reports = (read_report(file.parent) for file in files)
        return cls(report for report in reports if report is not None)

    def add(self, report: RunReport) -> None:
        """Add one run."""
        cost = Cost.of(report)
        if cost is not None:
            self._known.setdefault(kind_of(report.recipe), []).append(cost)

    def find(self, recipe: Mapping[str, Any]) -> Cost | None:
        """Return the cost of a recipe's kind, else that of the same with any method; or None."""
        kind = kind_of(recipe)
        costs = self._known.get(kind) or [
            cost for known, found in self._known.items() if known[1:] == kind[1:] for cost in found
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
    """Return what the time of a recipe's steps depends on most."""
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
    """Add the costs of kinds of runs, each measured in a short run, one after the other.

    Args:
        code: plug-in files for each run.
    """
    for i, run in enumerate(runs.values()):
        say(f"[{i}/{len(runs)}]  {_STEPS} steps of {run.name}")
        with tempfile.TemporaryDirectory() as folder:
            directory = Path(folder, "run")
            short = [word(key, value) for key, value in _SHORT.items()]
            own = [w for w in run.words if not w.startswith("start.")]  # it has not run yet
            words = [*own, *short, word("output.dir", str(directory))]
            arguments = ("train", run.recipe, *words, *code_options(code))
            _wait(Job(run.name, arguments, Path(folder, "log"), threads))
            report = read_report(directory)
            if report is None or report.status != "completed":
                command = shlex.join(["sora", "train", run.recipe, *run.words, *code_options(code)])
                say(f"       it failed; to see why: {command}")
            else:
                costs.add(report)


def missing_kinds(runs: tuple[PlannedRun, ...], costs: Costs) -> dict[Kind, PlannedRun]:
    """Return the first run of every kind that nothing is known of."""
    found: dict[Kind, PlannedRun] = {}
    for run in runs:
        recipe = run.loaded.resolved()
        if costs.find(recipe) is None:
            found.setdefault(kind_of(recipe), run)
    return found


def _wait(job: Job) -> None:
    engine = LocalEngine(1)
    try:
        engine.start(job)
        while not engine.poll():
            time.sleep(0.1)
    finally:
        engine.close()
