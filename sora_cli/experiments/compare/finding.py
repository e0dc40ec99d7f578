"""Find finished runs: by their reports on the disk, and in files of many runs."""

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
"""Settings that a comparison cannot do without."""


@dataclass(frozen=True)
class Found:
    """The result of a search.

    Attributes:
        runs: in the order they were found, each once.
        left_out: a line for each report that is not compared: where it is, and why.
        read: the files that were read, and the results that their reports are about, if there.
    """

    runs: tuple[Run, ...]
    left_out: tuple[str, ...]
    read: tuple[Path, ...]


def find_runs(places: Sequence[Path]) -> Found:
    """Read the reports of finished runs.

    Args:
        places: run directories, directories with runs somewhere below them, report files, or files
            of runs, the whole or a path below it (see `archive`).

    Raises:
        SoraError: a place is not there, or no place has a run that has finished.
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
            files += _read_of(source)
            run = read if isinstance(read, str) else _run(directory, read)
            if isinstance(run, Run):
                runs.append(run)
            else:
                left_out.append(f"{directory}: {run}")
    if not runs:
        first = f"{left_out[0]}{' ...' if len(left_out) > 1 else ''}"
        raise SoraError("there is no finished run to compare", where=first)
    return Found(tuple(runs), tuple(left_out), tuple(dict.fromkeys(files)))


def _reports(place: Path) -> Iterator[tuple[Path, Path, RunReport | str]]:
    """Yield what each report of a place is known by, its directory, and the report or why not."""
    found = find_file(place)
    if found is not None:
        for directory, report in read_lines(*found):
            yield directory, directory, report
        return
    for file in report_files(place):
        yield file, file.parent, _read(file)


def _read_of(source: Path) -> list[Path]:
    """Return the file of many runs that holds a report; or the report, with what lies beside it."""
    found = find_file(source)
    if found is not None:
        return [found[0]]
    beside = (HISTORY_FILE, ADAPTER, DELTA, MODEL, FOLDER)
    return [source, *(source.with_name(name) for name in beside)]


def report_files(place: Path) -> list[Path]:
    """Return the report of a run, those of the runs below a directory, or the file named itself.

    They come in natural order: "s9" before "s10".

    Raises:
        SoraError: there is no such file or directory.
    """
    if not place.exists():
        raise SoraError(f"there is no file or directory {place}")
    if place.is_file():
        return [place]
    return sorted(_below(place), key=lambda file: _natural(str(file.parent)))


def _natural(path: str) -> list[tuple[str, int]]:
    """Return a key that sorts "s10" after "s9"."""
    parts = re.findall(r"(\D*)(\d*)", path)
    return [(word, int(number or -1)) for word, number in parts]


def _below(directory: Path) -> Iterator[Path]:
    """Yield reports; folders inside of runs and what a killed process has left are passed over."""
    for folder, inside, files in os.walk(directory, onerror=_unreadable):
        if FILE_NAME in files:
            yield Path(folder, FILE_NAME)
            inside.clear()
        inside[:] = [name for name in inside if not is_leftover(Path(name))]


def _unreadable(error: OSError) -> None:
    raise SoraError(f"{error.filename} cannot be read: {error.strerror}") from error


def _read(file: Path) -> RunReport | str:
    """Read a report, or say why it is none."""
    try:
        return load_report(file)
    except ValidationError as error:
        return f"no run's report ({first_mistake(error)})"
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def _run(directory: Path, report: RunReport) -> Run | str:
    """Make a run of its report, or say why it is not compared."""
    if report.status != "completed":
        return f"not finished: {report.status}"
    try:
        run = Run.of(directory, report, seed=_path_seed(directory))
    except SoraError as error:
        return error.what
    return _missing(run) or run


def _path_seed(directory: Path) -> int | None:
    """Return the seed of the path that a directory is a stage of (PATH/stages/00), or None."""
    stages = directory.resolve().parent
    record = read_path(stages.parent) if stages.name == STAGES else None
    return None if record is None else record.recipe.get("training", {}).get("seed")


def _missing(run: Run) -> str | None:
    """Say what a comparison needs and a report lacks; None if it lacks nothing."""
    lacking = [key for key in _NEEDED if run.settings.get(key) is None]
    if lacking:
        return f"its recipe has no {', '.join(lacking)}"
    if not isinstance(run.settings[SEED], int):
        return f"its {SEED} is no whole number"
    if not run.report.metrics:
        return "it reports no score"
    if run.report.main_metric not in run.scores:
        return f"it reports no {run.report.main_metric or 'main metric'} on {run.split}"
    return None
