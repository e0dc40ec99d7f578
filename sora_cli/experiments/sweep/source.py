"""The contract of sources, which decide the next run of a sweep, and the source of a plan.

The source of a search is in `search`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sora_cli.core.console import say
from sora_cli.core.errors import SoraError
from sora_cli.experiments.sweep.outcome import is_finished, taken
from sora_cli.experiments.sweep.plan import PlannedRun, SweepPlan, word
from sora_cli.experiments.sweep.record import OVER, RunRecord, State
from sora_cli.recipe.load import load_recipe
from sora_cli.recipe.recipe import ResourcesBlock


@dataclass(frozen=True)
class Ready:
    """A run that can be started.

    Attributes:
        recipe, words: arguments of `sora train`.
        directory: of the run.
        resources: CPUs and GPUs that its recipe asks for.
    """

    name: str
    recipe: str
    words: tuple[str, ...]
    directory: Path
    resources: ResourcesBlock


class Source(ABC):
    """Supplies the runs of a sweep one by one, and records their ends."""

    records: dict[str, RunRecord]

    @abstractmethod
    def next(self) -> Ready | None:
        """Return the next run to start; None if no run can start now."""

    @abstractmethod
    def ended(self, name: str, state: State) -> None:
        """Record the end of a run; the state "waiting" means that it will be started again."""

    @abstractmethod
    def unwanted(self, name: str) -> bool:
        """Return True if a running run should be stopped as hopeless."""

    def conclude(self) -> None:  # noqa: B027 (not abstract: a plan prints nothing)
        """Print a final result of all runs."""

    def is_over(self) -> bool:
        """Return True if all runs are over and no further run will come."""
        return all(record.state in OVER for record in self.records.values())


class PlanSource(Source):
    """The runs of a plan, in order; a run waits for the runs that it depends on."""

    def __init__(self, plan: SweepPlan) -> None:
        self.plan = plan
        self._runs: Mapping[str, PlannedRun] = {run.name: run for run in plan.runs}
        self.records = {run.name: RunRecord(name=run.name, arguments=[]) for run in plan.runs}
        for run in plan.runs:
            if not run.takes and is_finished(plan.kind, run.loaded):
                self._mark_finished(run.name)
        # only now: the values to take come from the finished runs of the first loop
        for run in plan.runs:
            if run.takes and self._may_start(run):
                self._ready(run)  # for its effect: it marks a finished run

    def next(self) -> Ready | None:
        """Return the first run with finished dependencies; None if no run can start now."""
        for name, run in self._runs.items():
            record = self.records[name]
            if record.state != "waiting" or not self._may_start(run):
                continue
            try:
                ready = self._ready(run)
            except SoraError as error:
                record.state, record.error = "failed", error.what
                say(f"{name}: failed: {error.what}")
                continue
            if ready is not None:
                return ready
        return None

    def ended(self, name: str, state: State) -> None:
        """Record the end of a run."""
        self.records[name].state = state

    def unwanted(self, name: str) -> bool:
        """Return False: every run of a plan is wanted."""
        return False

    def _mark_finished(self, name: str) -> None:
        self.records[name].state, self.records[name].before = "finished", True

    def _may_start(self, run: PlannedRun) -> bool:
        """Return True if all needed runs are finished; block the run if one of them failed."""
        states = {name: self.records[name].state for name in run.needs}
        for other, state in states.items():
            if state in OVER and state != "finished":
                record = self.records[run.name]
                record.state = "unfinished" if state == "unfinished" else "blocked"
                record.error = f"it needs {other}: {state}"
                return False
        return all(state == "finished" for state in states.values())

    def _ready(self, run: PlannedRun) -> Ready | None:
        """Return the run with the values taken from other runs; None if it is already finished."""
        words = list(run.words)
        for key, take in run.takes.items():
            words.append(word(key, taken(self._runs[take.run].directory, take.what)))
        if run.takes:
            begins = [] if run.begins is None else [run.begins.begin.key]
            words.append(word("output.derived", [*begins, *run.takes]))
        loaded = load_recipe(run.recipe, words) if run.takes else run.loaded
        if run.takes and is_finished(self.plan.kind, loaded):
            self._mark_finished(run.name)
            return None
        return Ready(run.name, run.recipe, tuple(words), run.directory, loaded.recipe.resources)
