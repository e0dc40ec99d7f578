"""What a run trains on, and what the results that it begins with were trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from sora_cli.adapter.places import locate_adapter
from sora_cli.adapter.trained_on import (
    ANSWERED,
    NOTHING,
    RAW,
    READ,
    UNKNOWN,
    TrainedOn,
    base_trained_on,
    read_trained_on,
    united,
)
from sora_cli.core.errors import SoraError
from sora_cli.model.references import resolve_model_path
from sora_cli.recipe.recipe import Recipe
from sora_cli.recipe.start import StartBlock
from sora_cli.tasks.language import Writing
from sora_cli.train.checkpoint.fork import locate_fork
from sora_cli.train.checkpoint.places import RUN_FILE

if TYPE_CHECKING:
    from sora_cli.run.prepare import Prepared


def trained_on(ready: Prepared) -> TrainedOn:
    """Return the inputs that a finished run's result was trained on, its parents' included."""
    task = ready.task
    kinds = {RAW: task.raw_keys(ready.rows.train), READ: task.input_keys(ready.train)}
    if isinstance(task, Writing):
        kinds[ANSWERED] = task.input_keys(ready.train, answers=True)
    return united([TrainedOn.of(task.name, kinds), ready.before])


def inherited(recipe: Recipe) -> TrainedOn:
    """Return what a recipe's base model, and the result that it begins with, were trained on."""
    base = base_trained_on(Path(resolve_model_path(recipe.model.path)))
    return united([base, NOTHING if recipe.start is None else _of_start(recipe.start)])


def _of_start(block: StartBlock) -> TrainedOn:
    try:
        if block.adapter is not None:
            place = locate_adapter(Path(block.adapter).expanduser())
            return read_trained_on(place) or UNKNOWN
        # a fork has the data of its run, which is checked; that run may have begun with an adapter
        run = json.loads((locate_fork(block) / RUN_FILE).read_text(encoding="utf-8"))
        start = run["recipe"].get("start")
        return NOTHING if start is None else _of_start(StartBlock.model_validate(start))
    except (SoraError, OSError, KeyError, AttributeError, ValueError):
        return UNKNOWN
