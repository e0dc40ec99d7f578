"""The rows that test a finished adapter, chosen by the promise, and the recipe that names them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sora_cli.adapter.digest import result_digest
from sora_cli.adapter.metadata import read_sora_file
from sora_cli.adapter.places import ADAPTER, DELTA, MODEL
from sora_cli.adapter.trained_on import NOTHING, UNKNOWN, TrainedOn, read_trained_on, united
from sora_cli.core.console import say_notes
from sora_cli.core.errors import SoraError
from sora_cli.core.words import listed, shown_path
from sora_cli.data.content import data_fingerprint
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
        return _without_trained(rows, places), promise
    pool = Path(options.unlabelled).expanduser()
    if promise.basis == "asked":
        check_asking(recipe, create_task(recipe.task, recipe.data), promise.metric)
    elif promise.kind == "drop" and has_data(recipe):
        return _rows_for_drop(options, loaded, promise, pool, places)
    elif promise.kind == "drop":
        against_answers(recipe, promise.metric, "answers")
    return _rows_for_answers(options, recipe, pool, places), promise


def has_data(recipe: Recipe) -> bool:
    """Return True for a recipe that trains, which knows its training rows."""
    return bool(recipe.data.path or recipe.data.files)


def _rows_for_drop(
    options: PromiseOptions,
    loaded: LoadedRecipe,
    promise: Promise,
    pool: Path,
    places: Sequence[Path],
) -> tuple[TestRows, Promise]:
    recipe, basis = loaded.recipe, options.basis or named_basis(loaded)
    labelled = _without_trained(selection_rows(recipe), places)
    unusable = against_answers(recipe, promise.metric, basis)
    if unusable is not None:
        say_notes([f"--unlabelled is not used: {unusable}"])
        return labelled, promise
    answered = read_answer_rows(recipe, pool, trained=labelled.task)
    answered = replace(answered, trained=labelled.trained).unseen([*labelled.seen, labelled])
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
    more, trained, unknown = _trained_on(places, answered.answers.columns)
    answered = replace(answered, trained=trained).unseen([*seen, *more])
    say_notes([*answered.notes, *_not_known(unknown, shown_path(pool))])
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


def _without_trained(rows: TestRows, places: Sequence[Path]) -> TestRows:
    """Return labelled rows that do not test results by their training rows; print what is unknown.

    Args:
        places: directories of the results.
    """
    seen, trained, unknown = _trained_on(places, rows.task.input_columns)
    say_notes(_not_known(unknown, rows.split))
    return replace(rows, seen=(*rows.seen, *seen), trained=trained)


def _trained_on(
    places: Sequence[Path], columns: Sequence[str]
) -> tuple[list[TestRows], TrainedOn, list[Path]]:
    """Return the training inputs of results: rows that are here, and the records of all of them.

    Args:
        places: directories of the adapters, deltas or models.
        columns: inputs that the rows must have.

    Returns:
        The rows, the record, and the places of which not all training is known.
    """
    rows, records = list[TestRows](), list[TrainedOn]()
    for place in places:
        record = read_trained_on(place)
        if record is None:  # written by a version before these records, or by another program
            former = _former_rows(place, columns)
            rows += former
            record = NOTHING if former else UNKNOWN
        records.append(record)
    pairs = zip(places, records, strict=True)
    return rows, united(records), [place for place, record in pairs if not record.complete]


def _not_known(unknown: Sequence[Path], rows: str) -> list[str]:
    """Return a note if training rows may be among the rows that test."""
    if not unknown:
        return []
    names = listed([shown_path(place) for place in unknown])
    return [f"nothing records all that {names} was trained on: of such inputs in {rows}, those "
            "that the recipe does not train on test, too"]  # fmt: skip


def _former_rows(place: Path, columns: Sequence[str]) -> list[TestRows]:
    """Return the training rows of the run that wrote a result; empty: they are not known here.

    The report must be that of this result, and of rows with this content. What a result that the
    run began with was trained on is not known.
    """
    try:
        report = read_report(place.parent)
        result = place.name in (ADAPTER, DELTA, MODEL)
        if not result or report is None or report.recipe.get("start") is not None:
            return []
        digest = report.digests.get(place.name)
        if digest is not None and digest != result_digest(place):
            return []
        recipe = load_stored(report.recipe, place.parent / REPORT, report.name).recipe
        task, rows = load_task(recipe.to_score())
    except SoraError:  # the data have moved, or the report is damaged
        return []
    fingerprint = report.data.fingerprints.get("train", "")
    known = set(columns) <= set(rows.train.column_names)
    same = fingerprint == data_fingerprint(rows.train)
    return [training_rows(task, rows)] if known and same else []
