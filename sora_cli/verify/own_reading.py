"""How each of two models reads the rows of a gate: by its own length and template."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sora_cli.adapter.metadata import read_sora_file
from sora_cli.adapter.row_recipe import OF_SCORES, OF_TRAINING, recorded_row_recipe
from sora_cli.core.words import listed, shown_value
from sora_cli.model.files import SORA_FILE
from sora_cli.recipe.recipe import Recipe
from sora_cli.run.prepare import load_task
from sora_cli.run.reference import referenced_task
from sora_cli.search.test_rows import TestRows
from sora_cli.tasks import create_task
from sora_cli.tasks.base import Task

_LENGTH = "data.max_length"


def own_recipe(place: Path, recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    """Return the recipe by which a model reads rows: with its own length and template.

    Args:
        place: directory of an adapter, a delta or a model; of a Hub id or a model without a record
            the recipe stays.
        recipe: names the rows.
        overrides: of the command line, which hold for both models.
    """
    recorded = recorded_row_recipe(place, read_sora_file(place / SORA_FILE)[0])
    if recorded is None or recorded.get("task", {}).get("name") != recipe.task.name:
        return recipe
    named = {word.partition("=")[0] for word in overrides}
    own = {
        key: value for key, value in _reading(recorded).items()
        if named.isdisjoint({key, key.partition(".")[0]})
    }  # fmt: skip
    length = own.pop(_LENGTH, recipe.data.max_length)
    options = {key.removeprefix("task."): value for key, value in own.items()}
    task = type(recipe.task).model_validate({**recipe.task.model_dump(), **options})
    data = recipe.data.model_copy(update={"max_length": length})
    return recipe.model_copy(update={"task": task, "data": data})


def reading_notes(recipes: Mapping[str, Recipe]) -> Iterator[str]:
    """Yield a note on each setting by which the models read rows differently.

    Args:
        recipes: name of a model -> the recipe by which it reads rows.
    """
    read = {name: _reading(recipe.resolved()) for name, recipe in recipes.items()}
    for key in dict.fromkeys(key for values in read.values() for key in values):
        values = {name: own.get(key) for name, own in read.items()}
        if len({str(value) for value in values.values()}) > 1:
            shown = listed([f"{name} {shown_value(value)}" for name, value in values.items()])
            yield f"each model reads rows by its own {key}: {shown} ({key}=... sets both)"


def read_alike(one: Recipe, other: Recipe) -> bool:
    """Return True if two recipes read rows in the same way."""
    return not list(reading_notes({"one": one, "other": other}))


def task_of(recipe: Recipe, rows: TestRows) -> Task:
    """Return the family bound to test rows, as a recipe of another model reads them."""
    if rows.answers is None:
        return load_task(recipe)[0]
    names = rows.task.label_names
    data = recipe.data.model_copy(update={} if names is None else {"label_names": names})
    if rows.answers.next_tokens:
        task = create_task(recipe.task, data)
        task.bind(rows.rows)
        return task
    task = referenced_task(recipe, data)
    task.bind(task.stand_in(rows.rows))
    return task


def _reading(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that decide how rows are read, by their keys, such as task.prompt."""
    others = {"name", *OF_SCORES, *OF_TRAINING}
    task = {f"task.{k}": v for k, v in recipe.get("task", {}).items() if k not in others}
    length = recipe.get("data", {}).get("max_length")
    return task if length is None else {**task, _LENGTH: length}
