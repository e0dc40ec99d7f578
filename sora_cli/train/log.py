"""A report that is filled during a run.

It is written when a run starts, ends, fails or is interrupted, and at each evaluation; always as a
whole.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Generic, TypeVar

from sora_cli.core.atomic import remove_file, write_text_atomic
from sora_cli.core.environment import environment, peak_memory
from sora_cli.core.errors import WaitingError
from sora_cli.core.interruption import Interrupted
from sora_cli.core.json_text import readable_json
from sora_cli.core.processes import is_main
from sora_cli.report import (
    FILE_NAME,
    HISTORY_FILE,
    History,
    Report,
    Resumption,
    RunReport,
    Status,
    now,
    read_report,
)

R = TypeVar("R", bound=Report)


class ReportLog(Generic[R]):
    """A report that is filled during a run, and saved at the run's end even after an error."""

    def __init__(self, path: Path, report: R) -> None:
        self.path, self.report = path, report

    def note_import(self, began: float) -> float:
        """Record the seconds since `began` (a `time.perf_counter` value) as the phase "import"."""
        spent = time.perf_counter() - began
        self._spend("import", spent)
        return spent

    @contextmanager
    def running(self) -> Iterator[R]:
        """Save the report with status "running", and at the block's end with the outcome."""
        self.report.status, self.report.error, self.report.finished = "running", None, None
        self.save()
        try:
            yield self.report
        except (KeyboardInterrupt, Interrupted) as end:
            self._fail("interrupted", str(end) or "interrupted by the user")
            raise
        except WaitingError as end:
            self._end("interrupted", str(end))
            raise
        except BaseException as error:
            self._fail("failed", f"{type(error).__name__}: {error}")
            raise
        self._end("completed", None)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the duration of the block, in seconds, to a phase."""
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
        """Write the report in its current state; of several processes only the main one writes."""
        if is_main():
            self.write()

    def write(self, left_out: dict[str, Any] | None = None) -> None:
        """Write the report in its current state, without the fields in `left_out`."""
        text = self.report.model_dump_json(exclude=left_out)  # NaN becomes null
        write_text_atomic(self.path, readable_json(json.loads(text)))

    def _fail(self, status: Status, error: str) -> None:
        """End the report; ignore a write error, since a full disk may have ended the run."""
        with suppress(OSError):
            self._end(status, error)

    def _end(self, status: Status, error: str | None) -> None:
        self.report.status, self.report.error, self.report.finished = status, error, now()
        self.report.peak_memory_bytes = peak_memory()
        self.save()


class RunLog(ReportLog[RunReport]):
    """The log of one training run: `report.json` and `history.json` in its directory.

    Args:
        began: start of the command, a `time.perf_counter` value; None: now.
    """

    def __init__(
        self, directory: Path, *, name: str, recipe: dict[str, Any], began: float | None = None
    ) -> None:
        facts = provenance()
        super().__init__(directory / FILE_NAME, RunReport(name=name, recipe=recipe, **facts))
        if began is not None:
            self.report.started = now(-self.note_import(began))

    def note_resumption(self, step: int) -> None:
        """Record that this process resumes the run from the checkpoint of `step`."""
        before = read_report(self.path.parent)
        earlier = before.resumed if before else []
        self.report.resumed = [*earlier, Resumption(step=step, started=self.report.started)]

    def note_progress(self, state: Any) -> None:
        """Copy the step count and the history from a Trainer's state."""
        self.report.steps, self.report.history = state.global_step, list(state.log_history)

    def write(self, left_out: dict[str, Any] | None = None) -> None:
        """Write the history, then the report.

        In this order a finished report has its whole history even if the process is killed in
        between. `started` reveals a history that belongs to another report.
        """
        # two files: the history grows with every step, the report stays short enough to read
        history = History.of(self.report)
        file = self.path.with_name(HISTORY_FILE)
        is_empty = history == History(started=history.started)
        if not is_empty:
            if not self.path.exists():  # nothing else shows that the history is a run's
                super().write(history.fields_of_report())
            write_text_atomic(file, history.model_dump_json(exclude_defaults=True) + "\n")
        super().write(history.fields_of_report())
        if is_empty:
            remove_file(file)  # an earlier run's history


def provenance() -> dict[str, Any]:
    """Return the command, the time and the environment of a run that starts now."""
    return {
        "command": ["sora", *sys.argv[1:]],
        "started": now(),
        "environment": environment(),
    }
