"""The training inputs of a run, and of the results that it begins with."""

from __future__ import annotations

import json
from pathlib import Path

from datasets import Dataset

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
from sora_cli.tasks.base import Task
from sora_cli.tasks.encoded import Encoded
from sora_cli.tasks.language import Writing
from sora_cli.train.checkpoint.fork import locate_fork
from sora_cli.train.checkpoint.places import RUN_FILE


def trained_on(recipe: Recipe, task: Task, rows: Dataset, train: Encoded) -> TrainedOn:
    """Return the inputs that a run trains on, with those of the results that it begins with.

    It is made before the first step: files may be gone after the last one.

    Args:
        rows, train: the training rows, raw and encoded.
    """
    kinds = {RAW: task.raw_keys(rows), READ: task.input_keys(train)}
    if isinstance(task, Writing):
        kinds[ANSWERED] = task.input_keys(train, answers=True)
    return united([TrainedOn.of(task.name, kinds), inherited(recipe)])


def inherited(recipe: Recipe) -> TrainedOn:
    """Return the training inputs of a recipe's base model and of the result it begins with."""
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
