"""Entries of `sora list`, read from the record in a directory. No torch here."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, Field

from sora_cli.adapter.digest import has_changed
from sora_cli.core.errors import SoraError
from sora_cli.core.lock import is_locked
from sora_cli.core.records import read_record
from sora_cli.experiments.compare.runs import Run
from sora_cli.experiments.path.record import FILE_NAME as PATH
from sora_cli.experiments.path.record import read_path
from sora_cli.experiments.sweep.record import FILE_NAME as SWEEP
from sora_cli.experiments.sweep.record import OVER, RunRecord, SweepRecord
from sora_cli.report import FILE_NAME, Report, RunReport, Score
from sora_cli.search.evidence import FILE_NAME as CERTIFICATE
from sora_cli.search.evidence import read_certificate
from sora_cli.search.former_design import former_design
from sora_cli.search.record import FILE_NAME as AUTO
from sora_cli.search.record import read_auto
from sora_cli.train.checkpoint.places import FOLDER, MARK_FILE, checkpoint_paths

State = Literal[
    "finished", "unfinished", "running", "interrupted", "failed", "pruned", "blocked", "damaged"
]
STATES: tuple[str, ...] = get_args(State)
_DAMAGED = "move it away"


class Entry(BaseModel):
    """A run, a sweep, a path or a search of `sora auto`; unknown fields are null."""

    directory: str = Field(description="as an argument for other commands")
    kind: Literal["run", "sweep", "path", "auto"] = "run"
    parent: str | None = Field(None, description="directory of the sweep, path or search around it")
    status: State = "damaged"
    name: str | None = Field(None, description="of the recipe, or of the sweep's file")
    method: str | None = None
    task: str | None = Field(None, description="the data set, or the file of training rows")
    model: str | None = None
    seed: int | None = None
    learning_rate: float | None = Field(None, description="peak rate; of auto, as it was found")
    metric: str | None = None
    split: str | None = Field(None, description="of the score")
    score: Score | None = None
    components: int | None = Field(None, description="live components at the end")
    components_start: int | None = None
    parameters: int | None = Field(None, description="parameters left in the factors")
    parameters_start: int | None = None
    started: str | None = Field(None, description="date and time, UTC")
    finished: str | None = Field(None, description="date and time, UTC")
    seconds: float | None = Field(None, description="wall time; of a resumed run, its last process")
    resumable: bool = Field(False, description="true if training can be resumed")
    step: int | None = Field(None, description="step of the newest checkpoint, if resumable")
    changed: bool | None = Field(
        None, description="true if the adapter has changed since its report; null: not known"
    )
    certified: bool | None = Field(None, description="of a search: true if it is certified")
    notes: list[str] = Field(default_factory=list, description="remarks for people")


def read_entry(directory: Path, files: Collection[str], *, at_work: bool = False) -> Entry | None:
    """Read the entry of a directory; None if it is no run, sweep, path or search.

    Args:
        files: names of the directory's files.
        at_work: True if a process is working on the path or search that the directory is part of.
    """
    # the directory of a finished search also holds the report of its adapter: the run comes last
    for name, read in ((SWEEP, _sweep), (PATH, _path), (AUTO, _auto), (FILE_NAME, _run)):
        if name in files:
            try:
                return read(directory, at_work)
            except SoraError as error:
                return Entry(directory=str(directory), notes=[error.what])
    return None


def planned_entry(directory: Path, record: RunRecord) -> Entry | None:
    """Return the entry of a sweep's run that wrote no report; None if the run has not started."""
    if record.state not in STATES:
        return None
    notes = [record.error] if record.error else []
    state: Any = record.state
    return Entry(
        directory=str(directory), name=record.name, status=state, seconds=record.seconds,
        notes=notes,
    )  # fmt: skip


def read_sweep(directory: Path) -> SweepRecord | None:
    """Read a sweep's record; None if the directory has none."""
    return read_record(directory / SWEEP, SweepRecord, hint=_DAMAGED)


def _run(directory: Path, at_work: bool) -> Entry:
    report = read_record(directory / FILE_NAME, RunReport, hint=_DAMAGED)
    assert report is not None
    entry = _of_report(directory, report, at_work)
    if entry.status == "finished":
        return _certified(_with_result(entry, directory, report), directory)
    step = None if entry.status == "running" else _newest_checkpoint(directory)
    entry.resumable, entry.step = step is not None, step
    return entry


def _sweep(directory: Path, at_work: bool) -> Entry:
    record = read_sweep(directory)
    assert record is not None
    counts = record.counts()
    state: State = "unfinished" if "unfinished" in counts else "finished"
    state = "failed" if counts.keys() & {"failed", "blocked"} else state
    if record.finished is None or not counts.keys() <= set(OVER):
        state = "running" if at_work or is_locked(directory) else "interrupted"
    return Entry(
        directory=str(directory),
        kind="sweep",
        status=state,
        name=Path(record.file).stem,
        started=record.started,
        finished=record.finished,
        resumable=state in ("interrupted", "unfinished"),
        notes=[f"{counts.get('finished', 0)} of {len(record.runs)} runs finished"],
    )


def _path(directory: Path, at_work: bool) -> Entry:
    record = read_path(directory)
    assert record is not None
    entry = _of_report(directory, record, at_work)
    entry.kind, entry.method, entry.metric = "path", record.method, record.main_metric or None
    entry.resumable = entry.status in ("interrupted", "failed")
    entry.notes.insert(0, f"{len(record.stages)} of {record.stage_count} stages finished")
    return entry


def _auto(directory: Path, at_work: bool) -> Entry:
    record = read_auto(directory)
    assert record is not None
    entry = _of_report(directory, record, at_work)
    unfinished = entry.status in ("interrupted", "failed")
    entry.resumable = unfinished and former_design(directory / AUTO) is None
    if entry.status == "finished":
        report = read_record(directory / FILE_NAME, RunReport, hint=_DAMAGED)
        if report is not None:  # the report of the adapter that was written
            entry = _with_result(entry, directory, report)
        entry = _certified(entry, directory)
    else:
        tested = sum(size.test is not None for size in record.candidates)
        entry.notes.insert(0, f"{len(record.named())} sizes named, {tested} tested")
    entry.kind = "auto"
    return entry


def _certified(entry: Entry, directory: Path) -> Entry:
    """Return the entry with what a promise about its adapter has come to, if there is one."""
    certificate = read_certificate(directory)
    if certificate is not None:
        entry.certified = certificate.certified
        entry.notes.append(certificate.status)
    elif former_design(directory / CERTIFICATE) is not None:
        entry.notes.append("certificate of a former design")
    return entry


def _of_report(directory: Path, report: Report, at_work: bool) -> Entry:
    """Return an entry with the fields that all kinds of reports share.

    A report is marked "running" from its start. If no process works on it any more, the process was
    killed, and the entry is "interrupted".
    """
    run = Run.of(directory, RunReport(name=report.name, recipe=report.recipe))
    setting = run.settings.get
    notes = [] if report.error is None else [report.error]
    state: Any = "finished" if report.status == "completed" else report.status
    # the lock of a process at work counts more than the report, which an earlier process may have
    # written
    if state != "finished" and is_locked(directory):
        state, notes = "running", []
    elif state == "running" and not at_work:
        state, notes = "interrupted", ["its process is gone"]
    return Entry(
        directory=str(directory),
        status=state,
        name=report.name,
        method=setting("method.name"),
        task=run.task,
        model=setting("model.path"),
        seed=setting("training.seed"),
        started=report.started or None,
        finished=report.finished,
        seconds=sum(report.seconds.values()),
        notes=notes,
    )


def _with_result(entry: Entry, directory: Path, report: RunReport) -> Entry:
    """Add score and size of a finished run, and notes on results that changed or are gone."""
    run = Run.of(directory, report)
    if report.main_metric and report.metrics and report.main_metric in run.scores:
        entry.metric, entry.split, entry.score = report.main_metric, run.split, run.metric
    entry.method = run.settings.get("method.name")
    if report.ranks:
        entry.components, entry.components_start = run.components.live, run.components.start
    entry.parameters = report.parameters.adapter_end
    entry.parameters_start = report.parameters.adapter_start
    found, given = report.learning_rate, run.settings.get("training.learning_rate")
    entry.learning_rate = given if found is None else found.chosen
    if found is not None:
        entry.notes.append(f"learning rate {found.value()}")
    entry.changed = has_changed(directory, report)
    if entry.changed:
        entry.notes.append("its adapter has changed since its report")
    gone = (name for name in report.digests if not (directory / name).exists())
    entry.notes += [f"{name}/ is gone" for name in gone if "/" not in name]
    return entry


def _newest_checkpoint(directory: Path) -> int | None:
    """Return the step of the newest complete checkpoint."""
    complete = [p for p in checkpoint_paths(directory / FOLDER) if (p / MARK_FILE).is_file()]
    return int(complete[-1].name.partition("-")[2]) if complete else None
