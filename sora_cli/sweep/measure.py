"""A few steps of each kind of run, to tell how long a sweep will take."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from sora_cli.console import say
from sora_cli.report import read_report
from sora_cli.sweep.engine import Job, LocalEngine
from sora_cli.sweep.estimate import Costs, Kind, kind_of
from sora_cli.sweep.plan import PlannedRun, word

_STEPS = 8
_SHORT = {
    "training.max_steps": _STEPS,
    "training.evaluate": "no",
    "training.checkpoint": "no",
    "training.early_stopping": None,
}


def measure(runs: Mapping[Kind, PlannedRun], costs: Costs, *, threads: int) -> None:
    """Add the costs of kinds of runs, each measured in a run cut short; one after the other."""
    for i, run in enumerate(runs.values()):
        say(f"[{i}/{len(runs)}]  {_STEPS} steps of {run.name}")
        with tempfile.TemporaryDirectory() as folder:
            directory = Path(folder, "run")
            short = [word(key, value) for key, value in _SHORT.items()]
            words = [*run.words, *short, word("output.dir", str(directory))]
            job = Job(run.name, ("train", run.recipe, *words), Path(folder, "log"), threads)
            _wait(job)
            report = read_report(directory)
            if report is None or report.status != "completed":
                say(f"       it failed; sora train {run.recipe} ... says why")
            else:
                costs.add(report)


def missing_kinds(runs: tuple[PlannedRun, ...], costs: Costs) -> dict[Kind, PlannedRun]:
    """The first run of every kind that nothing is known of."""
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
