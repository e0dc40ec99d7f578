"""Finished runs on the disk, found by their reports."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from sora_cli.core.atomic import is_leftover
from sora_cli.core.errors import SoraError
from sora_cli.experiments.compare.runs import SEED, Run
from sora_cli.experiments.path.record import read_path
from sora_cli.report import FILE_NAME, load_report

_STAGES = "stages"
"""Folder of a path's stages."""
_NEEDED = (SEED, "method.name", "model.path")
"""Settings that every recipe has."""


@dataclass(frozen=True)
class Found:
    """What a search gave.

    Attributes:
        runs: in the order they were found, each directory once.
        left_out: what is not compared and why, a line each.
    """

    runs: tuple[Run, ...]
    left_out: tuple[str, ...]


def find_runs(places: Sequence[Path]) -> Found:
    """Read the reports of finished runs.

    Args:
        places: run directories, directories with runs somewhere below them, or report files.

    Raises:
        SoraError: a place is not there, or no place has a run that has finished.
    """
    runs: list[Run] = []
    left_out: list[str] = []
    seen: set[Path] = set()
    for place in places:
        files = report_files(place)
        if not files:
            left_out.append(f"{place}: no {FILE_NAME} in it or below it")
        for file in files:
            if file.resolve() in seen:
                continue
            seen.add(file.resolve())
            run = _read(file)
            if isinstance(run, Run):
                runs.append(run)
            else:
                left_out.append(f"{file.parent}: {run}")
    if not runs:
        first = f"{left_out[0]}{' ...' if len(left_out) > 1 else ''}"
        raise SoraError("there is no finished run to compare", where=first)
    return Found(tuple(runs), tuple(left_out))


def report_files(place: Path) -> list[Path]:
    """The reports of a run, of the runs below a directory, or the one named; in natural order.

    Raises:
        SoraError: there is no such file or directory.
    """
    if not place.exists():
        raise SoraError(f"there is no file or directory {place}")
    if place.is_file():
        return [place]
    return sorted(_below(place), key=lambda file: _natural(str(file.parent)))


def _natural(path: str) -> list[tuple[str, int]]:
    """Sorts "s10" after "s9"."""
    parts = re.findall(r"(\D*)(\d*)", path)
    return [(word, int(number or -1)) for word, number in parts]


def _below(directory: Path) -> Iterator[Path]:
    """Reports, not looking into runs nor into what a killed process has left."""
    for folder, inside, files in os.walk(directory, onerror=_unreadable):
        if FILE_NAME in files:
            yield Path(folder, FILE_NAME)
            inside.clear()
        inside[:] = [name for name in inside if not is_leftover(Path(name))]


def _unreadable(error: OSError) -> None:
    raise SoraError(f"{error.filename} can not be read: {error.strerror}") from error


def _read(file: Path) -> Run | str:
    """A run, or why it is not to be compared."""
    try:
        report = load_report(file)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        return f"no run's report ({f'{place}: ' if place else ''}{first['msg']})"
    except OSError as error:
        return f"can not be read ({error.strerror})"
    if report.status != "completed":
        return f"not finished: {report.status}"
    try:
        run = Run.of(file.parent, report, seed=_path_seed(file.parent))
    except SoraError as error:
        return error.what
    return _missing(run) or run


def _path_seed(directory: Path) -> int | None:
    """The seed of the path that a directory is a stage of (PATH/stages/00); None if it is none."""
    stages = directory.resolve().parent
    record = read_path(stages.parent) if stages.name == _STAGES else None
    return None if record is None else record.recipe.get("training", {}).get("seed")


def _missing(run: Run) -> str | None:
    """What a comparison needs and a report lacks."""
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
