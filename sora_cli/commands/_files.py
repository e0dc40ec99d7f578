"""The files of a command: all that it reads and all that it writes, named before any is written.

Each command with an output calls `check_files`, in one place, once all names are known.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations
from os.path import lexists
from pathlib import Path

from sora_cli.adapter.places import ADAPTER, DELTA, MODEL, with_base
from sora_cli.core.errors import SoraError
from sora_cli.core.outputs import check_apart, overlap
from sora_cli.experiments.path.record import FILE_NAME as PATH_FILE
from sora_cli.experiments.path.record import PICTURE as PATH_PICTURE
from sora_cli.experiments.path.record import STAGES
from sora_cli.experiments.sweep.record import FILE_NAME as SWEEP_FILE
from sora_cli.recipe.load import LoadedRecipe
from sora_cli.recipe.plugins import loaded_code
from sora_cli.report import FILE_NAME, HISTORY_FILE, PAGE_FILE
from sora_cli.run.opening import ELSEWHERE
from sora_cli.run.output import RANKS_PLOT, REFERENCE
from sora_cli.search.ask_table import guide_of, unused_of
from sora_cli.search.evidence import FILE_NAME as CERTIFICATE
from sora_cli.search.evidence import PICTURE, SIZES
from sora_cli.search.kept_answers import FILE_NAME as ASKED
from sora_cli.search.kept_answers import Kept
from sora_cli.search.record import FILE_NAME as AUTO_FILE
from sora_cli.train.checkpoint.places import FOLDER

RECORDS = (FILE_NAME, HISTORY_FILE, PATH_FILE, AUTO_FILE, SWEEP_FILE, CERTIFICATE, ASKED,
           ADAPTER, DELTA, MODEL, FOLDER, STAGES, SIZES)  # fmt: skip
"""Names in the directory of a run, a path, a search or a sweep that later commands read."""
_DRAWN = PAGE_FILE, RANKS_PLOT, PATH_PICTURE, PICTURE, REFERENCE


@dataclass(frozen=True)
class Output:
    """A place that a command writes.

    Attributes:
        hint: how the user names another one.
        within: it may lie in the directory of the rows, which may be the working directory.
    """

    path: Path
    hint: str
    within: bool = False


def output_file(option: str, *paths: Path | None) -> list[Output]:
    """Name the file of an option, and the files beside it; None: the option is not given."""
    return [Output(path, f"name another file: {option} FILE") for path in paths if path]


def output_folder(option: str, path: Path) -> list[Output]:
    """Name the directory of an adapter or a model."""
    return [Output(path, f"choose another place: {option} OUT", within=True)]


def table_files(ask: str | Path | None, *, beside: bool = True) -> list[Output]:
    """Name the table in which labels are asked for, with its guide and its unused rows.

    Args:
        ask: None: none are asked for.
        beside: its memory stands beside it, too, not in the directory of a search.
    """
    if ask is None:
        return []
    path = Path(ask).expanduser()
    kept = Kept.beside(path).path if beside else None
    return output_file("--ask", path, guide_of(path), unused_of(path), kept)


def run_files(directory: Path, *names: str) -> list[Output]:
    """Name the files of a run, a path or a search; other files in its directory stay.

    Args:
        names: the files; none: all that such work writes.
    """
    names = names or (*RECORDS, *_DRAWN)
    # an input can only be where something is
    there = (directory / name for name in names if lexists(directory / name))
    return [Output(path, ELSEWHERE, within=True) for path in there]


def of_results(*directories: Path) -> list[Path]:
    """Return the directories of adapters and models, their base models, and their runs' records."""
    read: list[Path] = []
    for directory in directories:
        around = directory.parent
        in_run = directory.name in (ADAPTER, DELTA, MODEL) and (around / FILE_NAME).is_file()
        read += [*with_base(directory), *(around / name for name in RECORDS if in_run)]
    return read


def of_recipe(loaded: LoadedRecipe) -> list[Path]:
    """Return the recipe's files and the places that it names, but for a directory of rows."""
    recipe = loaded.recipe
    rows = [name for names in (recipe.data.files or {}).values() for name in names]
    named = [recipe.model.path, recipe.data.corpus, *rows]
    named += [] if recipe.auto is None else [recipe.auto.unlabelled]
    started = [] if recipe.start is None else [recipe.start.adapter, recipe.start.checkpoint]
    runs = [Path(name).expanduser() for name in started if name]
    inner = (
        next((run / name for name in (ADAPTER, FOLDER) if (run / name).is_dir()), run)
        for run in runs
    )
    places = (Path(name).expanduser() for name in named if name)
    return [*loaded.files, *places, *of_results(*inner)]


def check_files(
    outputs: Iterable[Output],
    reads: Iterable[Path | str | None],
    loaded: LoadedRecipe | None = None,
) -> None:
    """Raise `SoraError` if an output would change an input, or another output.

    The files of `--code` count as inputs.

    Args:
        reads: files, directories and references of models; missing ones and None are skipped.
        loaded: the recipe that is read, with all that it names.
    """
    named = [Path(place).expanduser() for place in reads if place]
    named += [*loaded_code(), *([] if loaded is None else of_recipe(loaded))]
    rows = "" if loaded is None else loaded.recipe.data.path
    written = list(outputs)
    for output in written:
        check_apart(output.path, *named, hint=output.hint)
        if rows:
            place = Path(rows).expanduser()
            check_apart(output.path, place, hint=output.hint, within=output.within)
    for one, other in combinations(written, 2):
        if one.hint != other.hint and overlap(one.path, other.path):  # of two options
            raise SoraError(
                f"{one.path} and {other.path}, two outputs of this command, are in one place",
                hint=one.hint,
            )
