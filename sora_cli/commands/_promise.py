"""The promise of `sora prune` and `sora extract`: its options, its recipe and its certificate."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from sora_cli.adapter.places import adapter_folder, baseline_folder
from sora_cli.commands._files import Output, check_files, table_files
from sora_cli.core.console import emit, say_notes
from sora_cli.core.errors import SoraError
from sora_cli.core.table import emit_table
from sora_cli.core.timing import importing
from sora_cli.core.words import listed
from sora_cli.recipe.reading import NEXT_TOKENS, PREDICT
from sora_cli.report import FILE_NAME as REPORT
from sora_cli.report import recipe_of_run
from sora_cli.search.promise import Promise, PromiseOptions
from sora_cli.search.words import size_table, unseen_rows, verdict_lines

if TYPE_CHECKING:
    from sora_cli.recipe.load import LoadedRecipe
    from sora_cli.search.asking import AskTable
    from sora_cli.search.evidence import Evidence
    from sora_cli.search.search import Outcome

Place = TypeVar("Place", str, Path)
_FAMILY = "task.name="


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


def _from_files(
    options: PromiseOptions, place: Path, on: str | None = None, beside: Sequence[str] = ()
) -> tuple[LoadedRecipe, Promise]:
    options.check()
    with importing():
        from sora_cli.use.described import recipe_for_rows

    names = (word.removeprefix(_FAMILY) for word in options.overrides if word.startswith(_FAMILY))
    try:
        reading = NEXT_TOKENS if options.next_tokens else PREDICT
        family = next(names, None)
        loaded, _ = recipe_for_rows(
            _folder(place), options.overrides, on=on, task=family, reading=reading, beside=beside
        )
    except SoraError as error:  # `recipe_for_rows` names the option of sora predict
        error.renamed("--task ", _FAMILY)
        raise
    return loaded, options.of(loaded.recipe)


def _folder(place: Path) -> Path:
    return adapter_folder(place) or baseline_folder(place) or place


def load_gate(
    options: PromiseOptions, *references: str, base: str | None
) -> tuple[LoadedRecipe, Promise]:
    """Load the recipe of the rows on which two models are compared, with the promise.

    It is the recipe that the user named, that of a run, or what the files of the first model say.

    Args:
        base: base model of the adapters; None: what they record.
    """
    options.check()
    places = [Path(reference).expanduser() for reference in references]
    with importing():
        from sora_cli.model.base import names_agree, telling_names
        from sora_cli.verify.described import class_names
    known = [names for place in places if (names := class_names(_folder(place)))]
    named = [names for names in known if telling_names(names)]
    if known[1:] and not names_agree(*known):
        raise SoraError(
            f"A and B have other classes: {listed(known[0])}, and {listed(known[1])}",
            where=f"{references[0]}, {references[1]}",
            hint="if they mean the same in this order, write A's into B's sora.json or config.json",
        )
    if options.recipe is not None:
        return options.load()
    if options.unlabelled is not None:
        if options.max_drop is not None and options.ask is None:
            options = replace(options, basis="answers")
        return _from_files(options, places[0], on=base, beside=named[0] if named else ())
    with importing():
        from sora_cli.recipe.load import load_stored
        from sora_cli.recipe.reading import MAX_DROP, load_read

    for run in places:
        for place in (run, run.parent):
            recipe = recipe_of_run(place)
            if recipe is not None:
                load = partial(load_stored, recipe, place / REPORT, place.name)
                loaded = load_read(load, options.overrides, MAX_DROP)
                loaded = replace(loaded, recipe=loaded.recipe.to_score())
                return loaded, options.on(loaded)
    raise SoraError(
        "--max-drop needs rows with labels, or labels for some rows",
        where="neither A nor B is a run, which would name its own rows",
        hint="--recipe R; or --unlabelled FILE --ask ask.csv",
    )


def ask_table(
    options: PromiseOptions,
    loaded: LoadedRecipe,
    outputs: Sequence[Output],
    read: Sequence[Path | str | None],
    *,
    force: bool,
) -> AskTable | None:
    """Check the files of a command with a promise; return the table in which labels are asked for.

    Args:
        outputs: what the command writes besides the table.
        read: what it reads besides the recipe and its rows.
        force: accept labels that were changed.

    Returns:
        None if no labels are asked for.
    """
    rows = Path(options.unlabelled or "").expanduser()
    # a directory is no file of rows: that is told when it is read
    read = [*read, *([rows] if rows.is_file() else [])]
    check_files([*outputs, *table_files(options.ask)], read, loaded)
    if options.ask is None:
        return None
    with importing():
        from sora_cli.search.asking import AskTable

    return AskTable.beside(Path(options.ask).expanduser(), force=force)


def open_notes(found: Outcome, evidence: Evidence, table: AskTable | None) -> Iterator[str]:
    """Yield notes on results that more labels could change, and advice after a failure."""
    if found.left is not None:
        from sora_cli.search.asking import notes_on

        yield from notes_on(found.left, evidence, table)


def show_evidence(evidence: Evidence) -> None:
    """Print the sizes that were tested, and the verdict."""
    emit_table(size_table(evidence))
    emit("\n".join(verdict_lines(evidence)))
    say_notes(filter(None, [unseen_rows(evidence)]))
