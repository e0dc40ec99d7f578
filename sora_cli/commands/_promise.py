"""The promise of `sora prune` and `sora extract`: the recipe and the rows that test it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from sora_cli.core.checks import check_requires
from sora_cli.core.console import say_notes
from sora_cli.core.errors import SoraError
from sora_cli.core.timing import importing
from sora_cli.recipe.reading import NEXT_TOKENS, PREDICT, names_columns
from sora_cli.recipe.tolerance import CONFIDENCE
from sora_cli.search.promise import Promise, PromiseOptions

if TYPE_CHECKING:
    from sora_cli.recipe.load import LoadedRecipe
    from sora_cli.recipe.recipe import Recipe
    from sora_cli.search.rows import ChoosingRows

Place = TypeVar("Place", str, Path)
_FAMILY = "task.name="


def asked_promise(
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
        check_requires("--max-drop", {"--confidence": confidence is not None})
    if max_drop is not None and max_differ is None and unlabelled is not None:
        raise SoraError(
            "--unlabelled tests --max-drop in sora auto only; here it goes with --max-differ",
            hint="--max-differ 1%: a share of right rows then drops by at most 1 point, too",
        )
    needs = {"--unlabelled": unlabelled is not None, "--tolerance": tolerance is not None}
    needs |= {"--next-tokens": next_tokens}
    if max_differ is None:
        check_requires("--max-differ", needs)
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
    asked: PromiseOptions | None, find: Callable[[], Place]
) -> tuple[Place, tuple[LoadedRecipe, Promise] | None]:
    """Find the adapter or model, and load the recipe that tests a promise about it.

    Mistakes in a recipe are reported before the place is looked for, as by other commands. A
    promise about answers needs no recipe: it is derived from the files of the place.

    Args:
        asked: None: no promise is asked for.
        find: returns the directory of the adapter or model, or raises `SoraError`.

    Returns:
        The place; and the recipe with the promise, if one is asked for.
    """
    measured = None if asked is None or asked.reads_files else asked.load()
    place = find()
    if asked is not None and measured is None:
        measured = _from_files(asked, Path(place))
    return place, measured


def _from_files(asked: PromiseOptions, place: Path) -> tuple[LoadedRecipe, Promise]:
    asked.check()
    with importing():
        from sora_cli.use.described import recipe_for_rows

    names = (word.removeprefix(_FAMILY) for word in asked.overrides if word.startswith(_FAMILY))
    try:
        reading = NEXT_TOKENS if asked.next_tokens else PREDICT
        family = next(names, None)
        loaded, _ = recipe_for_rows(place, asked.overrides, task=family, reading=reading)
    except SoraError as error:  # `recipe_for_rows` names the option of sora predict
        error.renamed("--task ", _FAMILY)
        raise
    return loaded, asked.of(loaded.recipe)


def choosing_rows(asked: PromiseOptions, recipe: Recipe, place: Path) -> ChoosingRows:
    """Load the rows on which sizes are compared, and print the remarks on them.

    Args:
        recipe: recipe of `load_promise`, or the one that heals.
        place: directory of the adapter or model.
    """
    from sora_cli.adapter.metadata import read_sora_file
    from sora_cli.model.files import SORA_FILE
    from sora_cli.run.prepare import load_task
    from sora_cli.search.answers import read_answer_rows
    from sora_cli.search.rows import SelectionRows, UnlabelledRows

    if asked.unlabelled is None:
        return SelectionRows(recipe)
    task = seen = None
    if recipe.data.path or recipe.data.files:  # a recipe that trains knows its training rows
        task, rows = load_task(recipe)
        seen = rows.train
    meta, _ = read_sora_file(place / SORA_FILE)
    answer_rows = read_answer_rows(
        recipe,
        Path(asked.unlabelled).expanduser(),
        trained=task,
        seen=seen,
        columns=() if names_columns(asked.overrides) else meta.input_columns,
        tolerance=asked.tolerance,
        next_tokens=asked.next_tokens,
    )
    say_notes(answer_rows.notes)
    return UnlabelledRows(recipe, answer_rows)
