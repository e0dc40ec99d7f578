"""Find finished runs: by their reports on the disk, and in archives."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from sora_cli.adapter.places import ADAPTER, DELTA, MODEL
from sora_cli.core.atomic import is_leftover
from sora_cli.core.errors import SoraError, first_mistake
from sora_cli.experiments.compare.archive import find_file, read_lines
from sora_cli.experiments.compare.runs import SEED, Run
from sora_cli.experiments.path.record import STAGES, read_path
from sora_cli.report import FILE_NAME, HISTORY_FILE, RunReport, load_report
from sora_cli.train.checkpoint.places import FOLDER

_NEEDED = (SEED, "method.name", "model.path")
"""Settings that every compared run must have."""


@dataclass(frozen=True)
class FoundRuns:
    """The result of a search.

    Attributes:
        runs: in the order of the search, without duplicates.
        left_out: a line for each report that is not compared: its place and the reason.
        read: the files that were read, and the paths of the results beside them; not all exist.
    """

    runs: tuple[Run, ...]
    left_out: tuple[str, ...]
    read: tuple[Path, ...]


def find_runs(places: Sequence[Path]) -> FoundRuns:
    """Read the reports of finished runs; an error if there is none.

    Args:
        places: run directories, directories with runs at any depth, report files, archives, or
            paths below an archive (see `archive`).
    """
    runs: list[Run] = []
    left_out: list[str] = []
    files: list[Path] = []
    seen: set[Path] = set()
    for place in places:
        reports = list(_reports(place))
        if not reports:
            left_out.append(f"{place}: no {FILE_NAME} in it or below it")
        for source, directory, read in reports:
            if source.resolve() in seen:
                continue
            seen.add(source.resolve())
            files += _files_of(source)
            run = read if isinstance(read, str) else _run(directory, read)
            if isinstance(run, Run):
                runs.append(run)
            else:
                left_out.append(f"{directory}: {run}")
    if not runs:
        first = f"{left_out[0]}{' ...' if len(left_out) > 1 else ''}"
        raise SoraError("there is no finished run to compare", where=first)
    return FoundRuns(tuple(runs), tuple(left_out), tuple(dict.fromkeys(files)))


def _reports(place: Path) -> Iterator[tuple[Path, Path, RunReport | str]]:
    """Yield for each report of a place: its identity, its directory, and the report or an error.

    The identity is the report's file; for a run from an archive, its path below the archive.
    """
    split = find_file(place)
    if split is not None:
        for directory, report in read_lines(*split):
            yield directory, directory, report
        return
    for file in report_files(place):
        yield file, file.parent, _read(file)


def _files_of(source: Path) -> list[Path]:
    """Return the archive that holds a report; or the report, and the paths of its results."""
    split = find_file(source)
    if split is not None:
        return [split[0]]
    beside = (HISTORY_FILE, ADAPTER, DELTA, MODEL, FOLDER)
    return [source, *(source.with_name(name) for name in beside)]


def report_files(place: Path) -> list[Path]:
    """Return the report files at a place: a file itself, or all reports in and below a directory.

    They are in natural order: "s9" before "s10".
    """
    if not place.exists():
        raise SoraError(f"there is no file or directory {place}")
    if place.is_file():
        return [place]
    return sorted(_reports_below(place), key=lambda file: _natural(str(file.parent)))


def _natural(path: str) -> list[tuple[str, int]]:
    """Return a key that sorts "s10" after "s9"."""
    parts = re.findall(r"(\D*)(\d*)", path)
    return [(word, int(number or -1)) for word, number in parts]


def _reports_below(directory: Path) -> Iterator[Path]:
    """Yield the report files below a directory, except inside runs and in leftover files."""
    for folder, inside, files in os.walk(directory, onerror=_unreadable):
        if FILE_NAME in files:
            yield Path(folder, FILE_NAME)
            inside.clear()
        inside[:] = [name for name in inside if not is_leftover(Path(name))]


def _unreadable(error: OSError) -> None:
    raise SoraError(f"{error.filename} cannot be read: {error.strerror}") from error


def _read(file: Path) -> RunReport | str:
    """Read a report, or return the reason why it cannot be read."""
    try:
        return load_report(file)
    except ValidationError as error:
        return f"no run's report ({first_mistake(error)})"
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def _run(directory: Path, report: RunReport) -> Run | str:
    """Return the run of a report, or the reason why it is not compared."""
    if report.status != "completed":
        return f"not finished: {report.status}"
    try:
        run = Run.of(directory, report, seed=_path_seed(directory))
    except SoraError as error:
        return error.what
    return _missing(run) or run


def _path_seed(directory: Path) -> int | None:
    """Return the seed of the path if the directory is one of its stages (PATH/stages/00)."""
    stages = directory.resolve().parent
    record = read_path(stages.parent) if stages.name == STAGES else None
    return None if record is None else record.recipe.get("training", {}).get("seed")


def _missing(run: Run) -> str | None:
    """Return the reason why a run cannot be compared; None if nothing is missing."""
    lacking = [key for key in _NEEDED if run.settings.get(key) is None]
    if lacking:
        return f"its recipe has no {', '.join(lacking)}"
    if not isinstance(run.settings[SEED], int):
        return f"its {SEED} is not a whole number"
    if not run.report.metrics:
        return "it reports no score"
    if run.report.main_metric not in run.scores:
        return f"it reports no {run.report.main_metric or 'main metric'} on {run.split}"
    return None
