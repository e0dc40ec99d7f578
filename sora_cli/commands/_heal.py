"""The recipe by which `sora prune --heal` trains what its cut has left.

It is that of the original run, or the one given, with these values changed: the method is plain,
with the scaling that the adapter was trained with; the run starts from the adapter, cut by the
rule; so many steps, a tenth of them warm-up, then a linear decay to zero; and what belongs to the
original run alone (its label, path, checkpoints to be kept) is left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from methods.registry import plain_method
from sora_cli.adapter.metadata import read_sora_file
from sora_cli.adapter.places import locate_adapter
from sora_cli.core.checks import check_rules
from sora_cli.core.errors import SoraError
from sora_cli.model.files import SORA_FILE
from sora_cli.recipe.load import LoadedRecipe, load_recipe, load_stored
from sora_cli.recipe.start import StartBlock
from sora_cli.report import FILE_NAME, read_report

_WARMUP = 0.1  # of the steps: AdamW's second moments are empty at first
_USUAL_RANK = 8  # where nothing says what the adapter began with


def healing_recipe(
    directory: Path,
    output: Path,
    rule: Mapping[str, float],
    steps: int,
    recipe: str | None,
    overrides: Sequence[str],
) -> tuple[LoadedRecipe, list[str]]:
    """Return the recipe that trains a cut adapter on, and the words that `sora train` takes for it.

    Args:
        directory: an adapter directory, or a run's.
        output: the new run's directory.
        rule: how it is cut, by its name; at most one.
        steps: optimiser steps.
        recipe: to train with; None: that of the run in `directory`.
        overrides: of the recipe; they come last.

    Raises:
        SoraError: there is no recipe, or it does not fit; a rule that cannot be used so.
    """
    check_rules(rule)
    place = locate_adapter(directory, missing="there are no ranks to prune")
    loaded = _original(directory, place, recipe)
    words = [*_method_words(loaded, place), *_run_words(directory, output, rule, steps), *overrides]
    if recipe is not None:
        return load_recipe(recipe, words), [recipe, *words]
    return load_stored(loaded.resolved(), loaded.path, loaded.name, words), [str(place), *words]


def _original(directory: Path, place: Path, recipe: str | None) -> LoadedRecipe:
    if recipe is not None:
        return load_recipe(recipe)
    report = read_report(place.parent)
    if report is None:
        raise SoraError(
            f"--heal needs a recipe to train with: {directory} is not a run of this tool",
            hint="add --recipe R",
        )
    return load_stored(report.recipe, place.parent / FILE_NAME, report.name)


def _method_words(loaded: LoadedRecipe, place: Path) -> list[str]:
    """Choose the plain method, if the recipe has another, at the rank that the adapter began at."""
    started = read_sora_file(place / SORA_FILE)[0].ranks_start.values()
    plain = plain_method(max(started, default=_USUAL_RANK))
    if loaded.recipe.method.name == plain["name"]:
        return []
    return [f"method.{key}={value}" for key, value in plain.items()]


def _run_words(directory: Path, output: Path, rule: Mapping[str, float], steps: int) -> list[str]:
    start: dict[str, Any] = dict.fromkeys(StartBlock.model_fields)
    start |= {"adapter": str(directory), **rule}
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
