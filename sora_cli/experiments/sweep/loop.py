"""The loop of a sweep: start runs, notice their ends, restart killed runs."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

from sora_cli.core.exit_codes import BY_SIGNAL, FINISHED, LABELS_WANTED
from sora_cli.core.interruption import Interrupted
from sora_cli.experiments.sweep.engine import Engine, Job, code_options
from sora_cli.experiments.sweep.outcome import reason, report_of
from sora_cli.experiments.sweep.record import RunRecord, State, SweepRecord
from sora_cli.experiments.sweep.source import Ready, Source
from sora_cli.report import now

_PAUSE = 0.25
"""Seconds between two polls of the engine."""


@dataclass(frozen=True)
class Settings:
    """Settings for all runs of a sweep.

    Attributes:
        kind: train, path or auto.
        threads: for runs with a recipe that sets no number of CPUs.
        retries: number of restarts of a run that was killed or lost.
        code: plug-in files for each run.
        verify: True if each run verifies its files.
    """

    kind: str
    threads: int
    retries: int
    code: tuple[Path, ...] = ()
    verify: bool = True


@final
@dataclass
class Loop:
    """Executes the runs of a source on an engine.

    Args:
        directory: of the sweep.
        record: saved in the directory after every change.
        tell: called with a run's record at its start and end.
        show: called after every poll of the engine.
    """

    source: Source
    engine: Engine
    settings: Settings
    directory: Path
    record: SweepRecord
    tell: Callable[[RunRecord], None]
    show: Callable[[], None]
    _ready: dict[str, Ready] = field(default_factory=dict)
    _began: dict[str, float] = field(default_factory=dict)
    _stopped: set[str] = field(default_factory=set)

    def run(self) -> None:
        """Execute all runs; on return or exception, all processes have ended and are recorded."""
        try:
            while self._step():
                time.sleep(_PAUSE)
            self.record.finished = now()
        except (KeyboardInterrupt, Interrupted):
            for name in self.engine.running:
                self.source.records[name].state = "interrupted"
            raise
        finally:
            self.engine.close()
            self._save()

    def _step(self) -> bool:
        """Poll the engine, start and stop runs; return False when all runs are over.

        Ends come first: a finished run frees its place and its values for the next one.
        """
        for name, code in self.engine.poll():
            self._end(name, code)
        while self.engine.has_room() and (ready := self.source.next()) is not None:
            self._start(ready)
        for name in self.engine.running:
            if name not in self._stopped and self.source.unwanted(name):
                self._stopped.add(name)
                self.engine.stop(name)
        self.show()
        return bool(self.engine.running) or not self.source.is_over()

    def _start(self, ready: Ready) -> None:
        record = self.source.records[ready.name]
        arguments = self._arguments(ready)
        record.arguments, record.state, record.error = list(arguments), "running", None
        record.attempts += 1
        self._ready[ready.name] = ready
        self._began[ready.name] = time.monotonic()
        cpus = ready.resources.cpus or self.settings.threads
        log = self.log_of(ready.name)
        self.engine.start(Job(ready.name, arguments, log, cpus, ready.resources.gpus))
        self.tell(record)
        self._save()

    def log_of(self, name: str) -> Path:
        """Return the log file of a run."""
        return self.directory / "logs" / f"{name}.log"

    def _arguments(self, ready: Ready) -> tuple[str, ...]:
        options = code_options(self.settings.code)
        if self.settings.kind == "train":
            options += ["--resume"]
        if self.settings.kind != "path" and not self.settings.verify:
            options += ["--no-verify"]
        return (self.settings.kind, ready.recipe, *ready.words, *options)

    def _end(self, name: str, code: int) -> None:
        record, ready = self.source.records[name], self._ready[name]
        record.seconds = round(time.monotonic() - self._began[name], 1)
        state, place = self._state(name, code), self.engine.place(name)
        if state == "waiting" and place is not None:
            record.error = f"lost on {place}"
        if state == "unfinished":
            report = report_of(self.settings.kind, ready.directory)
            record.error = ((report and report.error) or "").partition("\n")[0] or None
        if state == "failed":
            record.error = reason(self.settings.kind, ready.directory, self.log_of(name))
            if _was_killed(code):
                where = "" if place is None else f", now on {place}"
                record.error = f"killed {record.attempts} times ({_signal(code)}){where}"
        self.source.ended(name, state)
        record.state = self.source.records[name].state
        self.tell(record)
        self._save()

    def _state(self, name: str, code: int) -> State:
        """Return the state for an exit code; "waiting" restarts the run from its checkpoint."""
        if name in self._stopped:
            return "finished" if code in FINISHED else "pruned"
        if code in FINISHED:
            return "finished"
        if code == LABELS_WANTED:
            return "unfinished"
        if _was_killed(code) and self.source.records[name].attempts <= self.settings.retries:
            return "waiting"
        return "failed"

    def _save(self) -> None:
        self.record.runs = list(self.source.records.values())
        self.record.save(self.directory)


def _was_killed(code: int) -> bool:
    return code < 0 or code in BY_SIGNAL


def _signal(code: int) -> str:
    return signal.Signals(-code if code < 0 else code - 128).name
