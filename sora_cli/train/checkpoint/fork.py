"""Fork a run from another run's checkpoint, after checking that this is allowed.

Up to that step both runs are the same: data, model and training must be equal. The method may
differ only in options that affect the later steps.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from methods.configs import MethodConfig
from methods.schedules import steps_of
from sora_cli.core.errors import SoraError, first_line
from sora_cli.core.words import first_few, shown_value
from sora_cli.recipe.changes import changes
from sora_cli.recipe.recipe import Recipe
from sora_cli.recipe.start import StartBlock
from sora_cli.report import Start
from sora_cli.train.checkpoint.places import (
    FOLDER,
    MARK_FILE,
    RUN_FILE,
    TRAINER_FILE,
    checkpoint_path,
    checkpoint_paths,
)
from sora_cli.train.checkpoint.resume import MAY_CHANGE, rate_of

if TYPE_CHECKING:
    from torch import nn

    from methods.base import Layers
    from sora_cli.train.checkpoint.files import Checkpoint

_OTHER_BLOCKS = ("method", "start")
_OF_EVERY_METHOD = tuple(f"method.{name}" for name in MethodConfig.model_fields)
_RATE = "training.learning_rate"
_ASKED = ("auto.labels", "auto.ask_all")
_FIX = "start.checkpoint=RUN start.step=STEP"


def locate_fork(block: StartBlock) -> Path:
    """Return the checkpoint directory that a `start` block names, without reading its tensors."""
    assert block.checkpoint is not None
    place = Path(block.checkpoint).expanduser()
    if not place.is_dir():
        raise SoraError(f"there is no directory {place}", key="start.checkpoint")
    if (place / RUN_FILE).is_file():
        if block.step is not None:
            raise SoraError(
                f"{place} is one checkpoint, not a run",
                hint="start.step=",
                key="start.step",
            )
        return place
    checkpoints = [
        path for path in checkpoint_paths(place / FOLDER) if (path / MARK_FILE).is_file()
    ]
    steps = [int(path.name.removeprefix("step-")) for path in checkpoints]
    where = f"its checkpoints: steps {first_few(steps, 10)}" if steps else None
    if not steps:
        raise SoraError(
            f"{place} is not a checkpoint, and holds none in {FOLDER}/",
            hint="training.keep_checkpoints=[STEP] in that run keeps one",
            key="start.checkpoint",
        )
    if block.step is None:
        raise SoraError(
            f"{place} is a run: name a step of it",
            where=where,
            hint=_FIX,
            key="start.checkpoint",
        )
    total = int(_read_json(checkpoints[0] / TRAINER_FILE)["max_steps"])
    step = steps_of(block.step, total)
    if step not in steps:
        raise SoraError(
            f"{place} has no checkpoint of step {step}",
            where=where,
            hint=f"training.keep_checkpoints=[{step}] in that run keeps it",
            key="start.step",
        )
    return checkpoint_path(place / FOLDER, step)


def describe_fork(recipe: Recipe) -> Start | None:
    """Return the report's entry about the checkpoint to fork from; None if the recipe names none.

    A checkpoint of a run with different steps is refused, and so is the end of a run.
    """
    block = recipe.start
    if block is None or block.checkpoint is None:
        return None
    with recipe.placing("start"):
        path = locate_fork(block)
        run = _read_json(path / RUN_FILE)
        check_recipe(_with_number(run), recipe.resolved(), str(path))
        if run["finished"]:
            raise SoraError(f"{path} is the end of its run: nothing is left to train")
        digest = hashlib.sha256((path / MARK_FILE).read_bytes()).hexdigest()
        return Start(directory=str(path), digest=f"sha256:{digest}", step=int(run["step"]))


def read_fork(
    recipe: Recipe, start: Start, inputs: Mapping[str, Any], model: nn.Module, layers: Layers
) -> Checkpoint:
    """Read the checkpoint that a fork starts from, and check that it fits.

    A damaged checkpoint is refused, and so is a run with other inputs or trained parameters.

    Args:
        start: the result of `describe_fork`.
        inputs: fingerprints of this run's model and data, by their names in messages.
        model: holds the adapters, ready for this run's training.
    """
    from sora_cli.train.checkpoint.files import read_checkpoint, with_prefix

    path = Path(start.directory)
    with recipe.placing("start.checkpoint"):
        checkpoint = read_checkpoint(path)
        for name, fingerprint in inputs.items():
            if checkpoint.run["inputs"].get(name, fingerprint) != fingerprint:
                raise SoraError(f"{name} is not the same as in the run of {path}")
        stored = {
            name: tuple(t.shape) for name, t in with_prefix(checkpoint.tensors, "model.").items()
        }
        now = {n: tuple(p.shape) for n, p in model.named_parameters() if p.requires_grad}
        for name in {**now, **stored}:
            if stored.get(name) != now.get(name):
                there, here = (
                    f"{shapes[name]}" if name in shapes else "not trained"
                    for shapes in (stored, now)
                )
                raise SoraError(f"'{name}' does not fit: {there} in {path}, {here} in this run")
        for name, scaling in checkpoint.run.get("scaling", {}).items():
            own = layers[name].scaling
            if own != scaling:
                raise SoraError(
                    f"'{name}' is scaled by {scaling:g} in {path}, by {own:g} in this run",
                    hint="the scale follows from method.alpha and the starting rank",
                )
    return checkpoint


def check_recipe(before: Mapping[str, Any], now: Mapping[str, Any], name: str) -> None:
    """Check that two recipes agree in every key that affects the steps before a fork.

    Args:
        name: of the run or checkpoint with the first recipe, for errors.
    """
    for key, old, new in changes(before, now):
        free = key.split(".")[0] in _OTHER_BLOCKS and key not in _OF_EVERY_METHOD
        free |= (key, new) == (_RATE, "auto")  # the fork takes the other run's number
        free |= key in _ASKED  # a limit that was raised lets further sizes fork
        if not free and key not in MAY_CHANGE:
            raise SoraError(
                f"{name} was trained with another {key}: {shown_value(old)}, not "
                f"{shown_value(new)}",
                hint="a fork may change only the method, its own options, and the output",
                key=key,
            )


def _with_number(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return a checkpoint's recipe with the learning rate that was found in place of `auto`."""
    recipe = run["recipe"]
    training = {**recipe["training"], "learning_rate": rate_of(run).chosen}
    return {**recipe, "training": training}


def _read_json(file: Path) -> dict[str, Any]:
    try:
        read: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SoraError(f"{file} cannot be read: {first_line(error)}") from error
    return read
