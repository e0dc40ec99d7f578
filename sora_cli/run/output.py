"""The files of a run in its directory: what may be replaced or deleted, and what is not its own."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from sora_cli.adapter.places import ADAPTER, DELTA, MODEL, locate_adapter
from sora_cli.core.atomic import check_replaceable, remove_directory, tidy
from sora_cli.core.errors import SoraError
from sora_cli.core.lock import check_directory, holds_only
from sora_cli.core.outputs import check_apart, was_written_here
from sora_cli.model.files import DELTA_FILE, MERGE_RECORD, SORA_FILE, adapter_files
from sora_cli.model.references import resolve_model_path
from sora_cli.recipe.load import LoadedRecipe
from sora_cli.recipe.recipe import Recipe
from sora_cli.report import FILE_NAME, HISTORY_FILE, PAGE_FILE, read_report
from sora_cli.run.opening import ELSEWHERE, Opening, Work, open_work
from sora_cli.train.checkpoint.fork import locate_fork
from sora_cli.train.checkpoint.places import (
    FOLDER,
    STATE_FILE,
    checkpoint_paths,
    clear_checkpoints,
    is_own,
)

RANKS_PLOT = "ranks.png"
BENCHMARKS = "benchmarks.json"
_FILES = (FILE_NAME, HISTORY_FILE, RANKS_PLOT, BENCHMARKS, STATE_FILE)
"""Files of a run, besides its result and checkpoints; the last one only in a path's stage."""
RESULTS = (ADAPTER, DELTA, MODEL)
"""Directories of a run's result."""


def check_output(loaded: LoadedRecipe, *, force: bool, resume: bool) -> bool:
    """Check that a run may write into its directory: nothing is overwritten unasked.

    Returns:
        Whether nothing is left to do: the run that is to be resumed has finished.

    Raises:
        SoraError: a run is there, finished or with checkpoints, or something that is no run at all;
            or the base model lies there.
    """
    check_run_place(loaded, force=force)
    output = loaded.output_dir
    report, found = read_report(output), None
    if report is not None:
        there = checkpoint_paths(output / FOLDER)
        left = "a run that is not finished, with checkpoints" if there else ""
        found = Work("run", report.status == "completed", report.recipe, left)
    opening = open_work(output, found, loaded.resolved(), force=force, resume=resume)
    if opening is Opening.NOTHING:
        return True
    check_own(output, resume=resume)
    return False


def check_run_place(loaded: LoadedRecipe, *, force: bool) -> None:
    """Raise `SoraError` where a run could not write its directory, as `check_place` does."""
    output = loaded.output_dir
    is_there = force or read_report(output) is not None
    check_place(output, loaded.recipe, FOLDER, is_there=is_there, work="run of this tool")


def check_place(
    output: Path,
    recipe: Recipe,
    *own: str,
    is_there: bool,
    work: str,
    hint: str = "output.dir=DIR",
) -> None:
    """Raise `SoraError` where a command could not write its directory, in a dry run, too.

    Args:
        own: names in it that a start cut short leaves behind.
        is_there: the directory holds earlier work of this command, whose flags decide about it.
        work: that work's name, such as "run of sora auto".
        hint: how another place is chosen.
    """
    check_directory(output)
    check_base_apart(output, recipe)
    check_start_apart(output, recipe)
    if not is_there and not holds_only(output, *own):
        raise SoraError(f"'{output}' is not empty and holds no {work}", hint=hint)


def check_base_apart(output: Path, recipe: Recipe) -> None:
    """Raise `SoraError` where the output is, holds or lies in the base model's directory."""
    base = Path(resolve_model_path(recipe.model.path))
    check_apart(output, base, hint=ELSEWHERE)


def check_start_apart(output: Path, recipe: Recipe) -> None:
    """Raise `SoraError` where the output is, holds or lies in what the run starts from."""
    block = recipe.start
    if block is None:
        return
    place = locate_fork(block) if block.adapter is None else Path(block.adapter).expanduser()
    read = place if block.adapter is None else locate_adapter(place)
    check_apart(output, read, hint=ELSEWHERE)


def check_own(output: Path, *, resume: bool = False) -> None:
    """Raise `SoraError` where a run would have to replace or delete what is not a run's.

    Args:
        resume: the checkpoints stay.
    """
    folder, written = output / FOLDER, [output / name for name in _FILES]
    results = [output / name for name in RESULTS]
    foreign = [path for path in checkpoint_paths(folder) if not (resume or is_own(path))]
    if folder.exists() and not folder.is_dir():
        foreign.append(folder)
    foreign += [path for path in results if (path / MERGE_RECORD).is_file()]
    if read_report(output) is None:
        foreign += [path for path in written if os.path.lexists(path)]
        foreign += [path for path in results if not path.is_dir() or any(path.iterdir())]
    for place in filter(os.path.lexists, foreign):
        raise SoraError(
            f"'{place}' is not of a run of this tool: it stays",
            hint=f"move it away, or {ELSEWHERE}",
        )
    for place in results:
        check_replaceable(
            place, force=True, markers=(SORA_FILE,), names=_result_files(place), hint=ELSEWHERE
        )


def _result_files(place: Path) -> tuple[str, ...] | None:
    """Return what may be in a result's directory; None: what transformers writes."""
    if place.name == ADAPTER:
        return adapter_files(place)
    return (DELTA_FILE, SORA_FILE) if place.name == DELTA else None


def clear_run(output: Path) -> None:
    """Delete what a run has written into its directory, and the directory if nothing is left."""
    if not output.is_dir():
        return
    tidy(output)
    clear_results(output)
    clear_checkpoints(output / FOLDER)
    if read_report(output) is not None:
        for name in reversed(_FILES):  # the report last: it says whose the others are
            (output / name).unlink(missing_ok=True)
    with suppress(OSError):
        output.rmdir()


def clear_page(output: Path) -> None:
    """Delete the page of `sora report` in a directory: it is about what lay there."""
    if was_written_here(output / PAGE_FILE, command="report"):
        (output / PAGE_FILE).unlink()


def clear_results(output: Path, *, kept: str | None = None) -> None:
    """Delete the results of an earlier run in the same place, but for the one that is kept.

    Its page goes, too.
    """
    clear_page(output)
    for name in RESULTS:
        place, known = output / name, _result_files(output / name)
        if name == kept or not place.is_dir() or place.is_symlink():
            continue
        names = {entry.name for entry in place.iterdir()}
        own = SORA_FILE in names and MERGE_RECORD not in names
        if own and (known is None or names <= set(known)):
            remove_directory(place)
