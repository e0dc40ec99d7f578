"""Build and check the recipes of a path's stages, before any training."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from methods.registry import config_class, method_names
from methods.words import did_you_mean
from sora_cli.core.errors import SoraError
from sora_cli.core.words import shown_value
from sora_cli.experiments.path.record import STAGES
from sora_cli.recipe.load import LoadedRecipe
from sora_cli.recipe.recipe import MethodBlock, Recipe, TrainingBlock

_SEEDS_APART = 1000  # added per stage, so that each stage has an order of rows of its own


@dataclass(frozen=True)
class StagePlan:
    """The plan of one stage: an ordinary run's recipe, with this stage's value of the option."""

    index: int
    value: Any
    loaded: LoadedRecipe

    @property
    def recipe(self) -> Recipe:
        """The stage's recipe."""
        return self.loaded.recipe

    @property
    def directory(self) -> str:
        """The stage's directory inside the path's."""
        return f"{STAGES}/{self.index:02d}"


def plan_stages(loaded: LoadedRecipe) -> list[StagePlan]:
    """Check a recipe's `path` block, and return the plans of its stages."""
    block = loaded.recipe.path
    if block is None:
        raise SoraError(
            f"{loaded.path} has no path block",
            where="a path needs path.vary and path.schedule, such as",
            hint="path={vary: method.threshold, schedule: {start: 0, stop: 4e-3, num: 9}}",
        )
    if loaded.recipe.start is not None:
        raise SoraError(
            "start does not go with a path: its first stage starts with a new adapter",
            where=loaded.recipe.place("start"),
        )
    option = varied_option(loaded)
    training = loaded.recipe.training
    if training.compact_every is not None and not training.compact_only_count:
        raise SoraError(
            "training.compact_every does not go with a path: its stages are compared component by "
            "component",
            where=loaded.origin("training", "compact_every").place,
            hint="training.compact_every=null",
        )
    values = block.schedule.stage_values()
    return [
        StagePlan(i, value, _stage_recipe(loaded, option, i, value))
        for i, value in enumerate(values)
    ]


def varied_option(loaded: LoadedRecipe) -> str:
    """Return the method's option in `path.vary`, which must be one that may vary between stages."""
    recipe = loaded.recipe
    assert recipe.path is not None
    name = recipe.method.name
    may = [f"method.{option}" for option in config_class(name).variable_options]
    vary = recipe.path.vary
    if vary in may:
        return vary.removeprefix("method.")
    where = loaded.origin("path", "vary").place
    if may:
        raise SoraError(
            f"path.vary: '{vary}' may not vary with method {name}",
            where=where,
            hint=did_you_mean(vary, may),
        )
    able = [other for other in method_names() if config_class(other).variable_options]
    raise SoraError(
        f"path.vary: method {name} has no option that may vary between stages",
        where=where,
        hint=f"methods that have one: {', '.join(able)}",
    )


def path_directory(loaded: LoadedRecipe) -> Path:
    """Return `output.dir`, or runs/<recipe>-<method>-path-s<seed>."""
    recipe = loaded.recipe
    default = f"runs/{loaded.name}-{recipe.method.name}-path-s{recipe.training.seed}"
    return Path(recipe.output.dir or default).expanduser()


def unused(loaded: LoadedRecipe) -> list[str]:
    """Return notes on recipe values that were set but have no effect in a path."""
    assert loaded.recipe.path is not None
    option = loaded.recipe.path.vary
    keys = [option, *(f"training.{key}" for key in _STAGE_RULES)]
    return [
        f"{key} ({loaded.origin(*key.split('.')).place}) is not used: "
        + (
            "the path sets it"
            if key == option
            else "the next stage starts from a stage's last step"
        )
        for key in keys
        if loaded.origin(*key.split(".")).place != "default"
    ]


_STAGE_RULES = {
    "evaluate": "no",
    "checkpoint": "no",
    "keep_best": False,
    "keep_checkpoints": [],
    "early_stopping": None,
}
"""Values of every stage: it is scored at its last step, and the next stage starts from there."""


def _stage_recipe(loaded: LoadedRecipe, option: str, index: int, value: Any) -> LoadedRecipe:
    recipe = loaded.recipe
    config = {**recipe.method.config.model_dump(), option: value}
    try:
        # `model_copy` below validates nothing: build the config once to check the value
        type(recipe.method.config)(**config)
    except ValidationError as error:
        raise SoraError(
            f"path.schedule: method.{option} cannot be {shown_value(value)} (stage {index}): "
            f"{error.errors()[0]['msg']}",
            where=loaded.origin("path", "schedule", "values").place
            if recipe.path and recipe.path.schedule.values
            else loaded.origin("path", "schedule", "start").place,
        ) from error
    method = MethodBlock(name=recipe.method.name, **config)
    update = {"method": method, "training": _stage_training(recipe, index)}
    return dataclasses.replace(loaded, recipe=recipe.model_copy(update=update))


def _stage_training(recipe: Recipe, index: int) -> TrainingBlock:
    block = recipe.training
    changes: dict[str, Any] = {**_STAGE_RULES, "seed": block.seed + _SEEDS_APART * index}
    # stage 0 trains for the recipe's own epochs; max_steps would overrule the epochs of the others
    if index and recipe.path is not None and recipe.path.epochs is not None:
        changes |= {"epochs": recipe.path.epochs, "max_steps": None}
    return block.model_copy(update=changes)
