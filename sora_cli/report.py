"""The run report: `report.json` says what was run, on what, and what came out, on about a page.

What has an entry for each step or component, such as losses, stands beside it in `history.json`.
The report is written when the run starts, ends, fails or is interrupted, and always whole.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from sora_cli.core.atomic import write_text_atomic
from sora_cli.core.environment import environment, peak_memory
from sora_cli.core.interruption import Interrupted
from sora_cli.core.json_text import readable_json
from sora_cli.core.processes import is_main

FILE_NAME = "report.json"
HISTORY_FILE = "history.json"
SCHEMA_VERSION = 2
"""1: everything was in `report.json`; such reports are read as ever."""

Status = Literal["running", "completed", "failed", "interrupted"]

Score = Annotated[float, BeforeValidator(lambda v: math.nan if v is None else v)]
"""A metric; JSON has no NaN, which is written as null."""


class Ranks(BaseModel):
    """Numbers of components of one module."""

    start: int
    end: int


class Parameters(BaseModel):
    """Numbers of parameters, counted from real shapes; gates count in `trained` only."""

    base: int = 0
    trained: int = Field(0, description="everything with a gradient: factors, gates, head")
    adapter_start: int = Field(
        0,
        description="factors at the start: sum of r (in + out); of a baseline, what it trains "
        "outside the head",
    )
    adapter_end: int = Field(
        0, description="factors of the saved adapter; of a baseline, as at the start"
    )
    head: int = 0


class Removal(BaseModel):
    """Dead components that were taken out after one step."""

    step: int = Field(description="optimiser steps taken by then")
    removed: int
    left: int = Field(description="components in the layers afterwards, dead ones among them")


class Compaction(BaseModel):
    """What `training.compact_every` did, or with `compact_only_count` would have done."""

    every: int = Field(description="optimiser steps")
    only_count: bool
    removals: list[Removal] = Field(default_factory=list)
    would_have_revived: int | None = Field(
        None,
        description="components counted as removed whose gate was not zero later; null if they "
        "were really removed, since nobody knows then",
    )

    @property
    def removed(self) -> int:
        """Components removed, in all."""
        return sum(removal.removed for removal in self.removals)

    def event(self) -> str:
        """Return the sentence for the report's events."""
        if self.only_count:
            return (
                f"compaction every {self.every} steps would have removed {self.removed} "
                f"components; {self.would_have_revived} of them came back later"
            )
        return (
            f"compaction removed {self.removed} components that were dead for {self.every} steps "
            f"or more; they could not come back as they can in the method itself (how many would: "
            f"training.compact_only_count=true)"
        )


class Resumption(BaseModel):
    """A later process that resumed a run."""

    step: int = Field(description="optimiser steps taken before, by earlier processes")
    started: str


class Report(BaseModel):
    """The fields of every report. Unknown keys of later versions are ignored on reading."""

    model_config = ConfigDict(extra="ignore", validate_assignment=True)

    schema_version: int = SCHEMA_VERSION
    status: Status = "running"
    error: str | None = None
    name: str
    command: list[str] = Field(default_factory=list)
    started: str = ""
    finished: str | None = None
    recipe: dict[str, Any] = Field(description="every value the run used, defaults included")
    recipe_notes: list[str] = Field(default_factory=list)
    environment: dict[str, Any] = Field(default_factory=dict)
    seconds: dict[str, float] = Field(
        default_factory=dict,
        description="wall time by phase; of a whole run they add up to nearly all of the process's",
    )
    peak_memory_bytes: int | None = None


class RunReport(Report):
    """The fields of `report.json` and `history.json` of one training run."""

    base: dict[str, Any] = Field(default_factory=dict)
    data: dict[str, Any] = Field(default_factory=dict)
    resumed: list[Resumption] = Field(
        default_factory=list,
        description="processes after the first one; seconds and memory are those of the last",
    )
    steps: int | None = None
    skipped_steps: int = 0
    non_finite_steps: list[int] = Field(default_factory=list, description="left out; from 1")
    best_step: int | None = None
    history: list[dict[str, Any]] = Field(default_factory=list)
    live_components: list[int] = Field(
        default_factory=list, description="components alive after each optimiser step"
    )
    compaction: Compaction | None = None
    method_details: dict[str, Any] = Field(
        default_factory=dict, description="what the method itself reports, such as revivals"
    )
    metrics: dict[str, dict[str, Score]] = Field(
        default_factory=dict, description="final scores by reported split"
    )
    main_metric: str | None = Field(None, description="the metric that chose the checkpoint")
    without_adapters: dict[str, Score] = Field(default_factory=dict, description="main metric")
    ranks: dict[str, Ranks] = Field(default_factory=dict)
    parameters: Parameters = Field(default_factory=Parameters)
    events: list[str] = Field(default_factory=list)


class History(BaseModel):
    """`history.json`: those fields of a run's report that grow with its steps or components."""

    started: str = Field(description="as in the report that it belongs to")
    history: list[dict[str, Any]] = Field(default_factory=list)
    live_components: list[int] = Field(default_factory=list)
    non_finite_steps: list[int] = Field(default_factory=list)
    removals: list[Removal] = Field(default_factory=list, description="of `compaction`")
    method_details: dict[str, Any] = Field(
        default_factory=dict, description="its lists and objects"
    )

    @classmethod
    def of(cls, report: RunReport) -> History:
        """Take a report's growing fields."""
        details = report.method_details.items()
        return cls(
            started=report.started,
            history=report.history,
            live_components=report.live_components,
            non_finite_steps=report.non_finite_steps,
            removals=report.compaction.removals if report.compaction else [],
            method_details={key: v for key, v in details if isinstance(v, dict | list)},
        )

    def fill(self, report: RunReport) -> None:
        """Put the fields back into the report that they were taken from."""
        report.history, report.live_components = self.history, self.live_components
        report.non_finite_steps = self.non_finite_steps
        if report.compaction is not None:
            report.compaction.removals = self.removals
        report.method_details.update(self.method_details)

    def fields_of_report(self) -> dict[str, Any]:
        """Return what the report leaves out, as pydantic's `exclude`."""
        return {
            **dict.fromkeys(("history", "live_components", "non_finite_steps"), True),
            "compaction": {"removals"},
            "method_details": set(self.method_details),
        }


R = TypeVar("R", bound=Report)


class ReportLog(Generic[R]):
    """A report that is filled while the run goes on, and saved however the run ends."""

    def __init__(self, path: Path, report: R) -> None:
        self.path, self.report = path, report

    def note_import(self, began: float) -> float:
        """Count the seconds since a moment of `time.perf_counter` as the phase "import"."""
        spent = time.perf_counter() - began
        self._spend("import", spent)
        return spent

    @contextmanager
    def running(self) -> Iterator[R]:
        """Save the report as running, and at the block's end with how it ended."""
        self.report.status, self.report.error, self.report.finished = "running", None, None
        self.save()
        try:
            yield self.report
        except (KeyboardInterrupt, Interrupted) as end:
            self._fail("interrupted", str(end) or "interrupted by the user")
            raise
        except BaseException as error:
            self._fail("failed", f"{type(error).__name__}: {error}")
            raise
        self._end("completed", None)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the seconds of the block to a phase."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._spend(name, time.perf_counter() - start)

    @contextmanager
    def epilogue(self, name: str) -> Iterator[None]:
        """Time a step after the run's end, such as a check of its files, and save the report.

        The step's outcome does not change the run's status.
        """
        try:
            with self.phase(name):
                yield
        finally:
            self.report.finished = now()
            self.save()

    def _spend(self, name: str, spent: float) -> None:
        self.report.seconds[name] = round(self.report.seconds.get(name, 0.0) + spent, 3)

    def save(self) -> None:
        """Write the report as it stands; of several processes only the main one writes."""
        if is_main():
            self.write()

    def write(self, left_out: dict[str, Any] | None = None) -> None:
        """Write the report as it stands, without the fields that are left out."""
        text = self.report.model_dump_json(exclude=left_out)  # NaN becomes null
        write_text_atomic(self.path, readable_json(json.loads(text)))

    def _fail(self, status: Status, error: str) -> None:
        """End the report; ignore it if it cannot be written, for the disk may be what failed."""
        with suppress(OSError):
            self._end(status, error)

    def _end(self, status: Status, error: str | None) -> None:
        self.report.status, self.report.error, self.report.finished = status, error, now()
        self.report.peak_memory_bytes = peak_memory()
        self.save()


class RunLog(ReportLog[RunReport]):
    """The log of one training run: `report.json` and `history.json` in its directory.

    Args:
        began: when the command began, by `time.perf_counter`; None: now.
    """

    def __init__(
        self, directory: Path, *, name: str, recipe: dict[str, Any], began: float | None = None
    ) -> None:
        facts = provenance()
        super().__init__(directory / FILE_NAME, RunReport(name=name, recipe=recipe, **facts))
        if began is not None:
            self.report.started = now(-self.note_import(began))

    def note_resumption(self, step: int) -> None:
        """Note that this process resumes the run from the checkpoint of that step."""
        before = read_report(self.path.parent)
        earlier = before.resumed if before else []
        self.report.resumed = [*earlier, Resumption(step=step, started=self.report.started)]

    def note_progress(self, state: Any) -> None:
        """Take over the steps and the history of a Trainer's state."""
        self.report.steps, self.report.history = state.global_step, list(state.log_history)

    def write(self, left_out: dict[str, Any] | None = None) -> None:
        """Write the history first: a finished report has all of it, even if the process is killed
        between the two files. `started` tells a history that belongs to another report."""
        history = History.of(self.report)
        file = self.path.with_name(HISTORY_FILE)
        is_empty = history == History(started=history.started)
        if not is_empty:
            write_text_atomic(file, history.model_dump_json(exclude_defaults=True) + "\n")
        super().write(history.fields_of_report())
        if is_empty:
            file.unlink(missing_ok=True)  # of an earlier run in this directory


def provenance() -> dict[str, Any]:
    """Return the command, the time and the environment of a run that starts now."""
    return {
        "command": ["sora", *sys.argv[1:]],
        "started": now(),
        "environment": environment(),
    }


def read_report(directory: Path) -> RunReport | None:
    """Return the report of a run directory; None if there is none that can be read."""
    try:
        return load_report(directory / FILE_NAME)
    except (OSError, ValueError):
        return None


def load_report(file: Path) -> RunReport:
    """Read a report of any version, with the history beside it if there is one that belongs to it.

    Raises:
        OSError: the report cannot be read.
        ValidationError: it is no run's report.
    """
    report = RunReport.model_validate_json(file.read_bytes())
    with suppress(OSError, ValueError):  # without its history it is a report all the same
        history = History.model_validate_json(file.with_name(HISTORY_FILE).read_bytes())
        if history.started == report.started:
            history.fill(report)
    return report


def now(later: float = 0.0) -> str:
    """Return the time in so many seconds."""
    return (datetime.now(UTC) + timedelta(seconds=later)).isoformat(timespec="seconds")
