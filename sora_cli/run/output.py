"""Files of a run in its directory: checks before writing, and deletion of a run's own files."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from sora_cli.adapter.places import ADAPTER, DELTA, MODEL, locate_adapter
from sora_cli.core.atomic import check_replaceable, remove_directory, remove_file, tidy
from sora_cli.core.errors import SoraError
from sora_cli.core.lock import check_directory, holds_only
from sora_cli.core.outputs import check_apart, was_written_here
from sora_cli.model.files import (
    ADAPTER_CONFIG,
    DELTA_FILE,
    MERGE_RECORD,
    MODEL_CONFIG,
    SORA_FILE,
    TRAINED_ON,
    adapter_files,
)
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
REFERENCE = "reference.safetensors"
_SCORES = "benchmarks.json"  # stands in runs of former versions
_FILES = (FILE_NAME, HISTORY_FILE, RANKS_PLOT, _SCORES, REFERENCE, STATE_FILE)
"""Files of a run besides its result and checkpoints; STATE_FILE only in a path's stage."""
RESULTS = (ADAPTER, DELTA, MODEL)
"""Directories for a run's result; a run writes one of them."""


def check_output(loaded: LoadedRecipe, *, force: bool, resume: bool) -> bool:
    """Check that a run may write into its directory: nothing is overwritten without a flag.

    Refuses a directory with a run (finished or with checkpoints), files from elsewhere, and the
    base model's directory.

    Returns:
        True if nothing is left to do: the run to be resumed has finished.
    """
    check_run_place(loaded, force=force)
    output = loaded.output_dir
    report, work = read_report(output), None
    if report is not None:
        checkpoints = checkpoint_paths(output / FOLDER)
        left = "a run that is not finished, with checkpoints" if checkpoints else ""
        work = Work("run", report.status == "completed", report.recipe, left)
    opening = open_work(output, work, loaded.resolved(), force=force, resume=resume)
    if opening is Opening.NOTHING:
        return True
    check_own(output, resume=resume)
    return False


def check_run_place(loaded: LoadedRecipe, *, force: bool) -> None:
    """Check that a run can use its output directory; see `check_place`."""
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
    """Check that a command can use its output directory; dry runs check it, too.

    Refuses a directory that cannot be written, that overlaps with the base model's or with the
    adapter's that training starts from, or that holds other files.

    Args:
        own: names of files that an interrupted start leaves behind.
        is_there: the directory holds this command's earlier work; its flags decide about that.
        work: name of the command's work in messages, such as "run of sora auto".
        hint: advice on choosing another directory.
    """
    check_directory(output)
    check_base_apart(output, recipe)
    check_start_apart(output, recipe)
    for name in (ADAPTER_CONFIG, MODEL_CONFIG):
        if (output / name).is_file():  # commands would find it, and not the run's result
            raise SoraError(f"'{output}' is an adapter's or a model's directory: it holds {name}",
                            hint=hint)  # fmt: skip
    if not is_there and not holds_only(output, *own):
        raise SoraError(f"'{output}' is not empty and holds no {work}", hint=hint)


def check_base_apart(output: Path, recipe: Recipe) -> None:
    """Check that the output directory and the base model's directory do not overlap."""
    with recipe.placing("model.path"):
        base = Path(resolve_model_path(recipe.model.path))
    check_apart(output, base, hint=ELSEWHERE)


def check_start_apart(output: Path, recipe: Recipe) -> None:
    """Check that the output directory and the adapter or run to start from do not overlap."""
    block = recipe.start
    if block is None:
        return
    place = locate_fork(block) if block.adapter is None else Path(block.adapter).expanduser()
    read = place if block.adapter is None else locate_adapter(place)
    check_apart(output, read, hint=ELSEWHERE)


def check_own(output: Path, *, resume: bool = False) -> None:
    """Check that a run would replace or delete only files that a run wrote.

    Args:
        resume: the checkpoints stay, so they are not checked.
    """
    folder, written = output / FOLDER, [output / name for name in _FILES]
    results = [output / name for name in RESULTS]
    foreign = [path for path in checkpoint_paths(folder) if not (resume or is_own(path))]
    if folder.exists() and not folder.is_dir():
        foreign.append(folder)
    foreign += [path for path in results if (path / MERGE_RECORD).is_file()]
    # without a report nothing shows that these files are a run's: they are not touched
    if read_report(output) is None:
        foreign += [path for path in written if os.path.lexists(path)]
        foreign += [path for path in results if not path.is_dir() or any(path.iterdir())]
    for place in filter(os.path.lexists, foreign):
        raise SoraError(
            f"'{place}' was not written by a run of this tool and will not be touched",
            hint=f"move it away, or {ELSEWHERE}",
        )
    for place in results:
        check_replaceable(
            place, force=True, markers=(SORA_FILE,), names=_result_files(place), hint=ELSEWHERE
        )


def _result_files(place: Path) -> tuple[str, ...] | None:
    """Return the file names allowed in a result's directory; None: any that transformers writes."""
    if place.name == ADAPTER:
        return adapter_files(place)
    return (DELTA_FILE, SORA_FILE, TRAINED_ON) if place.name == DELTA else None


def clear_run(output: Path) -> None:
    """Delete a run's files from its directory, and the directory if it is then empty."""
    if not output.is_dir():
        return
    tidy(output)
    clear_results(output)
    clear_checkpoints(output / FOLDER)
    if read_report(output) is not None:
        for name in reversed(_FILES):  # the report last: while it exists, the others are a run's
            remove_file(output / name)
    with suppress(OSError):
        output.rmdir()


def clear_page(output: Path) -> None:
    """Delete the page that `sora report` wrote about the earlier run in a directory."""
    if was_written_here(output / PAGE_FILE):
        remove_file(output / PAGE_FILE)


def clear_results(output: Path, *, kept: str | None = None) -> None:
    """Delete an earlier run's results and its page; keep the result named `kept`."""
    clear_page(output)
    for name in RESULTS:
        place, known = output / name, _result_files(output / name)
        if name == kept or not place.is_dir() or place.is_symlink():
            continue
        names = {entry.name for entry in place.iterdir()}
        own = SORA_FILE in names and MERGE_RECORD not in names
        if own and (known is None or names <= set(known)):
            remove_directory(place)
