"""The outcome of a run, read from its directory: its state, its error, its values."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sora_cli.core.errors import SoraError
from sora_cli.core.words import shown_value
from sora_cli.experiments.compare.runs import Run
from sora_cli.experiments.path.record import FILE_NAME as PATH_FILE
from sora_cli.experiments.path.record import read_path
from sora_cli.experiments.sweep.engine import last_output
from sora_cli.recipe.changes import changes
from sora_cli.recipe.load import LoadedRecipe
from sora_cli.report import FILE_NAME, Report, read_report
from sora_cli.search.record import FILE_NAME as AUTO_FILE
from sora_cli.search.record import read_auto

_TAIL = 20_000
_KINDS: dict[str, tuple[str, Callable[[Path], Report | None]]] = {
    "train": (FILE_NAME, read_report),
    "path": (PATH_FILE, read_path),
    "auto": (AUTO_FILE, read_auto),
}
"""Kind of run -> its report file and the function to read it."""


def report_of(kind: str, directory: Path) -> Report | None:
    """Return the report of a run of any kind; None if it cannot be read."""
    return _KINDS[kind][1](directory)


def is_finished(kind: str, loaded: LoadedRecipe) -> bool:
    """Return True if the directory holds this run, finished; an error if it holds another run."""
    directory = loaded.output_dir
    report = report_of(kind, directory)
    if report is None:
        return False
    for key, old, new in changes(report.recipe, loaded.continuing(report.recipe).resolved()):
        name = _KINDS[kind][0]
        raise SoraError(
            f"'{directory}' holds another run: there {key} is {shown_value(old)}, here "
            f"{shown_value(new)}",
            where=str(directory / name),
            hint="name another directory: output.dir=DIR; or delete this one",
        )
    return report.status == "completed"


def taken(directory: Path, what: str) -> Any:
    """Return a value of a finished run for another run.

    Args:
        what: "mean_rank", "components" or "parameters".
    """
    report = read_report(directory)
    if report is None:
        raise SoraError(f"'{directory}' holds no report")
    run = Run.of(directory, report)
    values = {
        "mean_rank": run.mean_rank,
        "components": run.components.live,
        "parameters": run.parameters,
    }
    value = values[what]
    if value is None:
        raise SoraError(f"the run in '{directory}' has no ranks")
    return value


def reason(kind: str, directory: Path, log: Path) -> str:
    """Return a failed run's error: the last in its log, else in its report, else the last line."""
    lines = [line.strip() for line in last_output(log, _TAIL).splitlines()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if errors:
        return errors[-1]
    report = report_of(kind, directory)
    if report is not None and report.error:
        return report.error
    return next((line for line in reversed(lines) if line), "it printed nothing")
