"""Sizes made by cutting an adapter and training each cut on, as a run of its own.

The run's recipe is the original run's, or the given one, with these changes: the plain method, with
the scaling that the adapter was trained with; a start from the cut adapter; the given number of
steps, a tenth of them warm-up, then a linear decay to zero; and without the keys that belong to the
original run alone (label, path, checkpoints to keep). With `--max-drop` there are at most three
sizes: a half, a quarter and an eighth of the adapter's parameters. If several processes train
together, the first process decides by its scores and writes the files.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from methods.keep import Keep
from methods.registry import plain_method
from sora_cli.adapter.digest import result_digest
from sora_cli.adapter.metadata import read_sora_file
from sora_cli.adapter.places import ADAPTER, locate_adapter, new_adapter_place
from sora_cli.core.atomic import remove_file, write_bytes_atomic
from sora_cli.core.console import say_notes
from sora_cli.core.errors import SoraError
from sora_cli.core.exit_codes import OK
from sora_cli.core.processes import from_first_process
from sora_cli.core.timing import importing
from sora_cli.model.files import SORA_FILE
from sora_cli.recipe.load import LoadedRecipe, load_recipe, load_stored
from sora_cli.recipe.start import StartBlock
from sora_cli.report import FILE_NAME, HISTORY_FILE, read_report, recipe_of_run
from sora_cli.run.output import RANKS_PLOT
from sora_cli.search.evidence import SIZES, Candidate
from sora_cli.search.row_set import TEST
from sora_cli.search.sizes import healed_budgets

if TYPE_CHECKING:
    from sora_cli.recipe.recipe import Recipe
    from sora_cli.search.asking import Labels
    from sora_cli.search.cut import Tell
    from sora_cli.search.promise import Promise, PromiseOptions
    from sora_cli.search.search import Outcome
    from sora_cli.search.size import Size
    from sora_cli.search.test_rows import TestRows

HealingRun = tuple[LoadedRecipe, list[str]]
"""A recipe, and the arguments of the `sora train` command that trains it."""
_WARMUP = 0.1  # of the steps: AdamW's second moments are empty at first
_USUAL_RANK = 8  # if the adapter does not record the rank it began with
# test rows must not choose a checkpoint: the test would be of the best of many
_NO_CHOICE = 'training.evaluate="no"'


def healing_recipe(
    directory: Path,
    output: Path,
    keep: Keep,
    steps: int,
    recipe: str | None,
    overrides: Sequence[str],
) -> HealingRun:
    """Return the recipe that trains a cut adapter on, with its command-line arguments.

    Args:
        directory: an adapter directory, or a run's.
        output: the new run's directory.
        keep: the rule of the cut.
        steps: optimiser steps.
        recipe: recipe to train with; None: the recipe of the run in `directory`.
        overrides: the user's overrides, which take precedence over the changes above.
    """
    place = locate_adapter(directory, missing="there are no ranks to prune")
    loaded = _original(directory, place, recipe)
    words = [
        *_method_overrides(loaded, place),
        *_run_overrides(directory, output, keep, steps),
        *overrides,
    ]
    if recipe is not None:  # rows are dealt as when the adapter was trained
        given = load_recipe(recipe, words).continuing(recipe_of_run(place.parent))
        return given, [recipe, *words]
    return load_stored(loaded.resolved(), loaded.path, loaded.name, words), [str(place), *words]


def healing_runs(
    directory: Path, output: Path, steps: int, asked: PromiseOptions
) -> list[HealingRun]:
    """Return the recipes of all sizes, from the largest to the smallest, with the promise in each.

    None of them evaluates during training, since test rows must not choose a checkpoint.

    Args:
        directory: an adapter directory, or a run's.
        output: the directory that holds all runs.
        steps: optimiser steps of each size.
        asked: the promise, and the recipe to train with; without one, that of the run in
            `directory`.
    """
    promise = f"auto={json.dumps(asked.block())}"
    recipe, given = asked.recipe, [promise, *asked.overrides, _NO_CHOICE]
    return [
        healing_recipe(directory, output / SIZES / str(n), Keep(max_params=n), steps, recipe, given)
        for n in healing_budgets(directory)
    ]


def healing_budgets(directory: Path) -> list[int]:
    """Return the parameters to which an adapter is cut before healing, from the largest on."""
    from sora_cli.adapter.reading import open_adapter

    with open_adapter(directory) as adapter:
        adapter.check_writable()
        least = min((sum(shape) for shape in adapter.shapes.values()), default=0)
        whole = adapter.parameters
    budgets = healed_budgets(whole, least)
    if not budgets:
        raise SoraError(f"{directory} is too small to be cut: it has {whole} parameters")
    return budgets


def _original(directory: Path, place: Path, recipe: str | None) -> LoadedRecipe:
    if recipe is not None:
        return load_recipe(recipe)
    report = read_report(place.parent)
    if report is None:
        raise SoraError(
            f"--heal needs a recipe to train with: {directory} has no report.json to take it from",
            hint="add --recipe R",
        )
    return load_stored(report.recipe, place.parent / FILE_NAME, report.name)


def _method_overrides(loaded: LoadedRecipe, place: Path) -> list[str]:
    """Return overrides that set the plain method, with the adapter's initial rank.

    Empty if the recipe has the plain method already.
    """
    started = read_sora_file(place / SORA_FILE)[0].ranks_start.values()
    plain = plain_method(max(started, default=_USUAL_RANK))
    if loaded.recipe.method.name == plain["name"]:
        return []
    return [f"method.{key}={value}" for key, value in plain.items()]


def _run_overrides(directory: Path, output: Path, keep: Keep, steps: int) -> list[str]:
    start: dict[str, Any] = dict.fromkeys(StartBlock.model_fields)
    start |= {"adapter": str(directory), **keep.given()}
    values = {
        "start": start,
        "training.max_steps": steps,
        "training.warmup": _WARMUP,
        "training.schedule": "linear",
        "training.early_stopping": None,
        "training.keep_checkpoints": [],
        "training.compact_every": None,
        "training.compact_only_count": False,
        "output.dir": str(output),
        "output.label": None,
        "output.derived": [],
    }
    return [f"{key}={json.dumps(value)}" for key, value in values.items()]


class NotVerifiedError(Exception):
    """A healed run's files do not reproduce its outputs; `code` is the exit code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def smallest_healed(
    directory: Path,
    runs: Sequence[HealingRun],
    train: Callable[[LoadedRecipe, list[str]], int],
    rows: TestRows,
    promise: Promise,
    tell: Tell,
    labels: Labels | None,
) -> Outcome:
    """Find the smallest healed size that is certified to keep a promise.

    Args:
        directory: the adapter that drops are measured against.
        train: trains a size from its recipe and arguments; returns an exit code.
        rows: rows that the sizes are scored on.
        tell: prints the smallest drop that the rows can certify.
        labels: of a promise that asks for labels.

    Raises:
        NotVerifiedError: a trained size's files do not reproduce its outputs.
        WaitingError: labels are wanted.
    """

    def healed(number: int) -> Path:
        run = runs[number]
        if labels is not None and is_finished(run[0].output_dir):  # before labels were asked for
            return run[0].output_dir
        # the other processes wait here until the first one has written its files
        code = from_first_process(train(*run))
        if code != OK:
            raise NotVerifiedError(code)
        return run[0].output_dir

    recipe, sizes = runs[0][0].recipe, [int(run[0].output_dir.name) for run in runs]
    return tested_runs(
        directory, sizes, healed, rows, promise, tell,
        recipe=recipe, labels=labels, refuse_few=True,
    )  # fmt: skip


def is_finished(run: Path) -> bool:
    """Return True for the directory of a run that has ended."""
    report = read_report(run)
    return report is not None and report.status == "completed"


def tested_runs(
    directory: Path,
    sizes: Sequence[int],
    made: Callable[[int], Path | None],
    rows: TestRows,
    promise: Promise,
    tell: Tell,
    *,
    recipe: Recipe,
    labels: Labels | None,
    refuse_few: bool,
) -> Outcome:
    """Test sizes that are runs, from the largest to the smallest, until one fails.

    Args:
        sizes: numbers of parameters, from the largest to the smallest.
        made: makes a size, or finds it, by its place in `sizes`; returns the run's directory, or
            None: it is not there.
        recipe: recipe that scores them.
        labels: of a promise that asks for labels.
        refuse_few: too few rows for any bound are an error, before a size is trained.
    """
    with importing():
        from sora_cli.search.cut import UNCUT, method_told, reference_of, score_adapter
        from sora_cli.search.fewest import check_number
        from sora_cli.search.search import Outcome, Scored, sizes_tested
        from sora_cli.search.statistics import statistic_of

    if labels is not None:
        return _asked_runs(directory, sizes, made, rows, promise, tell, labels, recipe)
    size, encoded, full = score_adapter(directory, recipe, rows)
    size, full = from_first_process((size, full))
    say_notes(encoded.notes())
    if refuse_few:
        check_number(statistic_of(full), len(full), promise.metric, recipe, held_out=False)
    bound, promise = method_told(full, promise, tell)

    def scored(number: int) -> Scored | None:
        place = made(number)
        if place is None:
            return None
        small, _, scores = score_adapter(place, recipe, rows)
        return _healed(place, small), scores

    places = range(len(sizes))
    candidates, bound = sizes_tested(full, places, scored, promise, bound, further=False)
    about = reference_of(size, UNCUT, statistic_of(full).score(full, full))
    parts = {TEST: encoded.row_set()}
    return Outcome(promise, bound, about, candidates, parts, full)


def _healed(place: Path, size: Size) -> Candidate:
    """Return a size by its run."""
    report = read_report(place)
    return Candidate(
        **size.model_dump(),
        max_params=int(place.name),
        directory=str(place.relative_to(place.parent.parent)),
        digest=result_digest(locate_adapter(place)),
        heal_steps=None if report is None else report.steps,
        test=None,
    )


def _asked_runs(
    directory: Path,
    sizes: Sequence[int],
    made: Callable[[int], Path | None],
    rows: TestRows,
    promise: Promise,
    tell: Tell,
    labels: Labels,
    recipe: Recipe,
) -> Outcome:
    """Test healed sizes with labels of the rows that differ; see `tested_runs`."""
    from sora_cli.search.cut import UNCUT, reference_of, stored_model, stored_size
    from sora_cli.search.finished import Model, Planned, asked_outcome

    whole = stored_size(directory)

    def make(number: int) -> tuple[Candidate, Model] | None:
        place = made(number)
        if place is None:
            return None
        return _healed(place, stored_size(place)), stored_model(place, recipe, rows.task)

    planned = [
        Planned(
            stored_size(directory, most),
            most / max(whole.parameters, 1),
            stored_model(directory, recipe, rows.task, max_params=most),
            partial(make, number),
        )
        for number, most in enumerate(sizes)
    ]
    digest = result_digest(locate_adapter(directory)) or ""
    return asked_outcome(
        reference_of(whole, UNCUT, 1.0, digest),
        stored_model(directory, recipe, rows.task),
        planned,
        rows,
        promise,
        labels,
        tell,
        recipe=recipe,
        about={"reference": digest, "sizes": list(sizes)},
    )


def publish(output: Path, chosen: Path, whole: Path) -> None:
    """Copy the chosen size's run, or the uncut adapter, into the output directory.

    The output directory is then an ordinary run.
    """
    target = output / ADAPTER
    with new_adapter_place(target, force=True) as new:
        shutil.copytree(locate_adapter(chosen), new, dirs_exist_ok=True)
    for name in (HISTORY_FILE, FILE_NAME, RANKS_PLOT):
        if chosen != whole and (chosen / name).is_file():
            write_bytes_atomic(output / name, (chosen / name).read_bytes())
        else:
            remove_file(output / name)
