"""The rows that test a finished adapter, chosen by the promise, and the recipe that names them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sora_cli.adapter.metadata import read_sora_file
from sora_cli.core.console import say_notes
from sora_cli.core.errors import SoraError
from sora_cli.model.files import SORA_FILE
from sora_cli.recipe.load import LoadedRecipe, load_stored
from sora_cli.recipe.reading import named_basis, names_columns
from sora_cli.recipe.recipe import Recipe
from sora_cli.report import FILE_NAME as REPORT
from sora_cli.report import read_report
from sora_cli.run.prepare import load_task
from sora_cli.search.answers import read_answer_rows
from sora_cli.search.basis import against_answers, check_asking
from sora_cli.search.promise import Promise, PromiseOptions
from sora_cli.search.rows import rows_on_best_basis, selection_rows, training_rows
from sora_cli.search.test_rows import TestRows
from sora_cli.tasks import create_task


def choosing_rows(
    options: PromiseOptions, loaded: LoadedRecipe, promise: Promise, *places: Path
) -> tuple[TestRows, Promise]:
    """Load the rows on which sizes are compared, and print the remarks on them.

    Args:
        loaded: recipe of `load_promise`, or the one that heals.
        places: directories of the adapters or models; their training rows do not test, as far as
            they are known.

    Returns:
        The rows, and the promise with the basis that their numbers certify most by.
    """
    recipe = loaded.recipe
    if options.unlabelled is None:
        rows = selection_rows(recipe)
        seen = _rows_of_all(places[1:], rows.task.input_columns)  # the recipe is of the first
        return replace(rows, seen=(*rows.seen, *seen)), promise
    pool = Path(options.unlabelled).expanduser()
    if promise.basis == "asked":
        check_asking(recipe, create_task(recipe.task, recipe.data), promise.metric)
    elif promise.kind == "drop" and has_data(recipe):
        return _rows_for_drop(options, loaded, promise, pool)
    elif promise.kind == "drop":
        against_answers(recipe, promise.metric, "answers")
    return _rows_for_answers(options, recipe, pool, places), promise


def has_data(recipe: Recipe) -> bool:
    """Return True for a recipe that trains, which knows its training rows."""
    return bool(recipe.data.path or recipe.data.files)


def _rows_for_drop(
    options: PromiseOptions, loaded: LoadedRecipe, promise: Promise, pool: Path
) -> tuple[TestRows, Promise]:
    recipe, basis = loaded.recipe, options.basis or named_basis(loaded)
    labelled = selection_rows(recipe)
    unusable = against_answers(recipe, promise.metric, basis)
    if unusable is not None:
        say_notes([f"--unlabelled is not used: {unusable}"])
        return labelled, promise
    answered = read_answer_rows(recipe, pool, trained=labelled.task)
    answered = answered.unseen([*labelled.seen, labelled])
    rows, promise, line = rows_on_best_basis(promise, labelled, answered, basis)
    say_notes([*answered.notes, line])
    return rows, promise


def _rows_for_answers(
    options: PromiseOptions, recipe: Recipe, pool: Path, places: Sequence[Path]
) -> TestRows:
    task, seen = None, list[TestRows]()
    if has_data(recipe):
        task, rows = load_task(recipe)
        seen = [training_rows(task, rows)]
    meta, _ = read_sora_file(places[0] / SORA_FILE)
    answered = read_answer_rows(
        recipe,
        pool,
        trained=task,
        columns=() if names_columns(options.overrides) else meta.input_columns,
        tolerance=options.tolerance,
        next_tokens=options.next_tokens,
        asked=options.ask is not None,
    )
    assert answered.answers is not None
    others = places[1:] if seen else places
    seen += _rows_of_all(others, answered.answers.columns)
    notes = [] if seen else [
        f"training rows in {answered.answers.file} are not left out: they are not known here "
        "(--recipe R names them), and the promise is about rows that the adapter has not seen"
    ]  # fmt: skip
    answered = answered.unseen(seen)
    say_notes([*answered.notes, *notes])
    return answered


def recipe_of(
    options: PromiseOptions, recipe: Mapping[str, Any], promise: Promise
) -> dict[str, Any]:
    """Return the recipe that a certificate records, with the promise in its `auto` block.

    Args:
        recipe: the resolved recipe of the rows that test.
    """
    basis = promise.basis if promise.kind == "drop" and options.unlabelled else None
    return {**recipe, "auto": replace(options, basis=basis).block()}


def _rows_of_all(places: Sequence[Path], columns: Sequence[str]) -> list[TestRows]:
    return [rows for place in places for rows in _training_rows(place, columns)]


def _training_rows(place: Path, columns: Sequence[str]) -> list[TestRows]:
    """Return the training rows of the run that wrote an adapter; empty: they are not known here.

    Args:
        place: directory of the adapter.
        columns: inputs that the rows must have.
    """
    try:
        report = read_report(place.parent)
        if report is None:
            return []
        recipe = load_stored(report.recipe, place.parent / REPORT, report.name).recipe
        task, rows = load_task(recipe.to_score())
    except SoraError:  # the data have moved, or the report is damaged
        return []
    known = set(columns) <= set(rows.train.column_names)
    return [training_rows(task, rows)] if known else []
