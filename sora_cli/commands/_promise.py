"""The promise of `sora prune` and `sora extract`: the recipe and the rows that test it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from sora_cli.core.checks import check_requires
from sora_cli.core.console import say_notes
from sora_cli.core.errors import SoraError
from sora_cli.core.timing import importing
from sora_cli.recipe.load import load_stored
from sora_cli.recipe.reading import NEXT_TOKENS, PREDICT, named_basis, names_columns
from sora_cli.recipe.tolerance import CONFIDENCE
from sora_cli.report import FILE_NAME as REPORT
from sora_cli.report import read_report, recipe_of_run
from sora_cli.search.promise import Promise, PromiseOptions

if TYPE_CHECKING:
    from sora_cli.recipe.load import LoadedRecipe
    from sora_cli.recipe.recipe import Recipe
    from sora_cli.search.parts import Part
    from sora_cli.search.rows import ChoosingRows, UnlabelledRows

Place = TypeVar("Place", str, Path)
_FAMILY = "task.name="


def promise_options(
    max_drop: str | None,
    max_differ: str | None,
    *,
    unlabelled: str | None,
    tolerance: float | None,
    next_tokens: bool,
    confidence: float | None,
    recipe: str | None,
    overrides: Sequence[str],
) -> PromiseOptions | None:
    """Return the promise that a command's options ask for; None: they ask for none."""
    if max_drop is None and max_differ is None:
        check_requires(
            "--max-differ or --max-drop",
            {"--confidence": confidence is not None, "--unlabelled": unlabelled is not None},
        )
    if max_differ is None:
        check_requires(
            "--max-differ", {"--tolerance": tolerance is not None, "--next-tokens": next_tokens}
        )
    if max_drop is None and max_differ is None:
        return None
    return PromiseOptions(
        max_drop,
        recipe,
        overrides,
        CONFIDENCE if confidence is None else confidence,
        max_differ=max_differ,
        unlabelled=unlabelled,
        tolerance=tolerance,
        next_tokens=next_tokens,
    )


def load_promise(
    options: PromiseOptions | None, find: Callable[[], Place]
) -> tuple[Place, tuple[LoadedRecipe, Promise] | None]:
    """Find the adapter or model, and load the recipe that tests a promise about it.

    Mistakes in a recipe are reported before the place is looked for, as by other commands. A
    promise about answers needs no recipe: it is derived from the files of the place.

    Args:
        options: None: no promise is asked for.
        find: returns the directory of the adapter or model, or raises `SoraError`.

    Returns:
        The place; and the recipe with the promise, if one is asked for.
    """
    measured = None if options is None or options.reads_files else options.load()
    place = find()
    if options is not None and measured is None:
        return place, _from_files(options, Path(place))
    if measured is not None:  # rows are dealt as when the adapter was trained
        loaded, promise = measured
        measured = loaded.continuing(recipe_of_run(Path(place).parent)), promise
    return place, measured


def _from_files(options: PromiseOptions, place: Path) -> tuple[LoadedRecipe, Promise]:
    options.check()
    with importing():
        from sora_cli.use.described import recipe_for_rows

    names = (word.removeprefix(_FAMILY) for word in options.overrides if word.startswith(_FAMILY))
    try:
        reading = NEXT_TOKENS if options.next_tokens else PREDICT
        family = next(names, None)
        loaded, _ = recipe_for_rows(place, options.overrides, task=family, reading=reading)
    except SoraError as error:  # `recipe_for_rows` names the option of sora predict
        error.renamed("--task ", _FAMILY)
        raise
    return loaded, options.of(loaded.recipe)


def choosing_rows(
    options: PromiseOptions, loaded: LoadedRecipe, promise: Promise, place: Path
) -> tuple[ChoosingRows, Promise]:
    """Load the rows on which sizes are compared, and print the remarks on them.

    Args:
        loaded: recipe of `load_promise`, or the one that heals.
        place: directory of the adapter or model.

    Returns:
        The rows, and the promise with the basis that their numbers certify most by.
    """
    from sora_cli.search.rows import SelectionRows

    if options.unlabelled is None:
        return SelectionRows(loaded.recipe), promise
    pool = Path(options.unlabelled).expanduser()
    if promise.kind == "drop":
        return _rows_for_drop(loaded, promise, pool)
    return _rows_for_answers(options, loaded.recipe, pool, place), promise


def _rows_for_drop(
    loaded: LoadedRecipe, promise: Promise, pool: Path
) -> tuple[ChoosingRows, Promise]:
    from sora_cli.search.answers import read_answer_rows
    from sora_cli.search.basis import against_answers
    from sora_cli.search.rows import SelectionRows, rows_on_best_basis

    recipe, basis = loaded.recipe, named_basis(loaded)
    labelled = SelectionRows(recipe)
    unusable = against_answers(recipe, promise.metric, basis)
    if unusable is not None:
        say_notes([f"--unlabelled is not used: {unusable}"])
        return labelled, promise
    answered = read_answer_rows(recipe, pool, trained=labelled.task).unseen(
        [part.rows for part in labelled.seen]
    )
    rows, promise, line = rows_on_best_basis(recipe, promise, labelled, answered, basis)
    say_notes([*answered.notes, line])
    return rows, promise


def _rows_for_answers(
    options: PromiseOptions, recipe: Recipe, pool: Path, place: Path
) -> UnlabelledRows:
    from sora_cli.adapter.metadata import read_sora_file
    from sora_cli.model.files import SORA_FILE
    from sora_cli.run.prepare import load_task
    from sora_cli.search.answers import read_answer_rows
    from sora_cli.search.parts import Part
    from sora_cli.search.rows import UnlabelledRows

    task, seen = None, list[Part]()
    if recipe.data.path or recipe.data.files:  # a recipe that trains knows its training rows
        task, rows = load_task(recipe)
        seen = [Part(rows.train, rows.origin(rows.train))]
    meta, _ = read_sora_file(place / SORA_FILE)
    answered = read_answer_rows(
        recipe,
        pool,
        trained=task,
        columns=() if names_columns(options.overrides) else meta.input_columns,
        tolerance=options.tolerance,
        next_tokens=options.next_tokens,
    )
    seen = seen or _training_rows(place, answered.columns)
    notes = [] if seen else [
        f"training rows in {answered.file} are not left out: they are not known here (--recipe R "
        "names them), and the promise is about rows that the adapter has not seen"
    ]  # fmt: skip
    answered = answered.unseen([part.rows for part in seen])
    say_notes([*answered.notes, *notes])
    return UnlabelledRows(recipe, answered, seen)


def _training_rows(place: Path, columns: Sequence[str]) -> list[Part]:
    """Return the training rows of the run that wrote an adapter; empty: they are not known here.

    Args:
        place: directory of the adapter.
        columns: inputs that the rows must have.
    """
    from sora_cli.run.prepare import load_task
    from sora_cli.search.parts import Part

    try:
        report = read_report(place.parent)
        if report is None:
            return []
        recipe = load_stored(report.recipe, place.parent / REPORT, report.name).recipe
        rows = load_task(recipe.to_score())[1]
    except SoraError:  # the data have moved, or the report is damaged
        return []
    known = set(columns) <= set(rows.train.column_names)
    return [Part(rows.train, rows.origin(rows.train))] if known else []
