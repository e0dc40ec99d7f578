"""The run report: one JSON file that says what was run, on what, and what came out.

It is written when the run starts, ends, fails or is interrupted, always whole.
"""

from __future__ import annotations

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
from sora_cli.core.processes import is_main

FILE_NAME = "report.json"
SCHEMA_VERSION = 1

Status = Literal["running", "completed", "failed", "interrupted"]

Score = Annotated[float, BeforeValidator(lambda v: math.nan if v is None else v)]
"""JSON has no NaN: it is written as null."""


class Ranks(BaseModel):
    """Components of one module."""

    start: int
    end: int


class Parameters(BaseModel):
    """Numbers counted from real shapes; gates of the training count in `trained` only."""

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
    """Dead components taken out at one moment of the training."""

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
        """Components in all."""
        return sum(removal.removed for removal in self.removals)

    def event(self) -> str:
        """What a person should hear about it."""
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
    """A later process that went on with a run."""

    step: int = Field(description="optimiser steps taken before, by earlier processes")
    started: str


class Report(BaseModel):
    """What every report says. Unknown keys of later versions are ignored on reading."""

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
    """`report.json` of one training run."""

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


R = TypeVar("R", bound=Report)


class ReportLog(Generic[R]):
    """A report being filled while the run goes on, and saved whatever happens to it."""

    def __init__(self, path: Path, report: R) -> None:
        self.path, self.report = path, report

    def imported(self, began: float) -> float:
        """Count the seconds since a moment of `time.perf_counter` as the phase "import"."""
        spent = time.perf_counter() - began
        self._spend("import", spent)
        return spent

    @contextmanager
    def running(self) -> Iterator[R]:
        """The whole run: the report says how it ended."""
        self.report.status, self.report.error, self.report.finished = "running", None, None
        self.save()
        try:
            yield self.report
        except (KeyboardInterrupt, Interrupted) as end:
            self._give_up("interrupted", str(end) or "interrupted by the user")
            raise
        except BaseException as error:
            self._give_up("failed", f"{type(error).__name__}: {error}")
            raise
        self._end("completed", None)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time one step of the run."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._spend(name, time.perf_counter() - start)

    @contextmanager
    def epilogue(self, name: str) -> Iterator[None]:
        """Time a step after the run's end, such as a check of its files; the report is rewritten.

        Whatever comes of the step, the run has ended as the report said before.
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
        """Write the report as it stands; of several processes the main one does."""
        if is_main():
            write_text_atomic(self.path, self.report.model_dump_json(indent=2) + "\n")

    def _give_up(self, status: Status, error: str) -> None:
        """End the report, if it can be written: the disk may be what failed."""
        with suppress(OSError):
            self._end(status, error)

    def _end(self, status: Status, error: str | None) -> None:
        self.report.status, self.report.error, self.report.finished = status, error, now()
        self.report.peak_memory_bytes = peak_memory()
        self.save()


class RunLog(ReportLog[RunReport]):
    """The log of one training run, in its directory.

    Args:
        began: when the command began, by `time.perf_counter`; None: now.
    """

    def __init__(
        self, directory: Path, *, name: str, recipe: dict[str, Any], began: float | None = None
    ) -> None:
        facts = provenance()
        super().__init__(directory / FILE_NAME, RunReport(name=name, recipe=recipe, **facts))
        if began is not None:
            self.report.started = now(-self.imported(began))

    def went_on(self, step: int) -> None:
        """Note that the run goes on from a checkpoint of that step, after other processes."""
        before = read_report(self.path.parent)
        earlier = before.resumed if before else []
        self.report.resumed = [*earlier, Resumption(step=step, started=self.report.started)]

    def note_progress(self, state: Any) -> None:
        """Steps and history of a Trainer's state."""
        self.report.steps, self.report.history = state.global_step, list(state.log_history)


def provenance() -> dict[str, Any]:
    """The command, the time and the environment of a run that starts now."""
    return {
        "command": ["sora", *sys.argv[1:]],
        "started": now(),
        "environment": environment(),
    }


def read_report(directory: Path) -> RunReport | None:
    """The report of a run directory; None if there is none that can be read."""
    try:
        return RunReport.model_validate_json((directory / FILE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def now(later: float = 0.0) -> str:
    """The time in so many seconds."""
    return (datetime.now(UTC) + timedelta(seconds=later)).isoformat(timespec="seconds")
