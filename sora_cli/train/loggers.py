"""Loggers of `training.loggers`: transformers' integrations, and callbacks from a user's file.

Transformers sends them losses, learning rates and evaluation scores. Here they also get the number
of live components, the learning rate of each parameter group and, at the end of a run, its reported
scores and its rank map as a picture. By then most loggers have closed their records.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import TrainerCallback
from transformers.integrations import get_available_reporting_integrations
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from methods.words import did_you_mean
from sora_cli.core.errors import SoraError
from sora_cli.core.processes import is_main
from sora_cli.recipe.plugins import LOGGERS
from sora_cli.train.callback import MethodCallback
from sora_cli.train.checkpoint.trainer_internals import plain_optimizer

EXTRAS = ("tensorboard", "trackio", "wandb", "mlflow")
"""Loggers that are extras of this package; they also get the rank map."""


def check_loggers(names: list[str]) -> None:
    """Check that every logger is known and installed."""
    if not names:
        return
    installed = {*get_available_reporting_integrations(), *LOGGERS}
    known = dict.fromkeys([*EXTRAS, *LOGGERS, *INTEGRATION_TO_CALLBACK])
    for name in names:
        if name not in known:
            raise SoraError(
                f"there is no logger '{name}'",
                hint=did_you_mean(name, known),
                key="training.loggers",
            )
        if name not in installed:
            package = f"'sora-cli[{name}]'" if name in EXTRAS else f"the package of {name}"
            raise SoraError(
                f"logger '{name}' is not installed",
                hint=f"pip install {package}",
                key="training.loggers",
            )


def split_loggers(names: list[str]) -> tuple[list[str], list[TrainerCallback]]:
    """Return the names of transformers' own loggers, and the other loggers as callbacks."""
    return [n for n in names if n not in LOGGERS], [LOGGERS[n]() for n in names if n in LOGGERS]


class _MoreFacts(TrainerCallback):  # type: ignore[misc]
    """Adds the live components and every group's learning rate to the logged values."""

    def __init__(self, hooks: MethodCallback) -> None:
        self.hooks = hooks
        self.rates: dict[str, float] = {}

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Record the learning rates of this step: the scheduler changes them next."""
        groups = plain_optimizer(self.hooks.trainer).param_groups
        self.rates = {g["name"]: float(g["lr"]) for g in groups if "name" in g}

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Add values to a step's log entry; the run's history has its own copy."""
        if not logs or "loss" not in logs:
            return
        if self.hooks.live:
            logs["components"] = self.hooks.live[-1]
        logs.update({f"learning_rate/{name}": rate for name, rate in self.rates.items()})


@contextmanager
def logged(trainer: Any, hooks: MethodCallback) -> Iterator[None]:
    """Send the loggers more values than Trainer does, and redirect their prints to stderr.

    Afterwards the loggers are removed from the trainer's callbacks: scoring would reopen some of
    them.
    """
    if not trainer.recipe.training.loggers:
        yield
        return
    callbacks = trainer.callback_handler.callbacks
    callbacks.insert(0, _MoreFacts(hooks))  # before the loggers, which send the values
    kinds = (*INTEGRATION_TO_CALLBACK.values(), *LOGGERS.values())
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        trainer.loggers = [callback for callback in callbacks if type(callback) in kinds]
        for callback in trainer.loggers:
            trainer.remove_callback(callback)


@dataclass(frozen=True)
class _Result:
    """A finished run's result for one logger.

    Attributes:
        callback: transformers' callback for this logger.
        args: the Trainer's arguments.
        picture: file of the rank map; None: there is none.
    """

    callback: Any
    args: Any
    step: int
    scores: dict[str, float]
    picture: Path | None


def send_result(
    trainer: Any, metrics: Mapping[str, Mapping[str, float | None]], picture: Path
) -> None:
    """Send a finished run's scores and its rank map, if it has one, to its loggers."""
    if not is_main():
        return
    scores = {
        f"result/{split}/{name}": float(value)
        for split, values in metrics.items()
        for name, value in values.items()
        if value is not None
    }
    image = picture if picture.is_file() else None
    senders = {INTEGRATION_TO_CALLBACK[name]: send for name, send in _SENDERS.items()}
    with redirect_stdout(sys.stderr):
        for callback in trainer.loggers:
            send = senders.get(type(callback))
            if send is not None:
                send(_Result(callback, trainer.args, trainer.state.global_step, scores, image))


def _to_tensorboard(result: _Result) -> None:
    from PIL import Image
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(log_dir=result.callback.logging_dir) as writer:
        for name, value in result.scores.items():
            writer.add_scalar(name, value, result.step)
        if result.picture is not None:
            with Image.open(result.picture) as image:
                pixels = np.asarray(image.convert("RGB"))  # (height, width, 3)
            writer.add_image("ranks", pixels, result.step, dataformats="HWC")


def _to_trackio(result: _Result) -> None:
    import trackio

    args = result.args
    trackio.init(
        project=args.project, name=args.run_name, space_id=args.trackio_space_id, resume="allow"
    )
    image = {} if result.picture is None else {"ranks": trackio.Image(str(result.picture))}
    trackio.log({**result.scores, **image}, step=result.step)
    trackio.finish()


def _to_wandb(result: _Result) -> None:
    import wandb

    if wandb.run is None:
        return
    image = {} if result.picture is None else {"ranks": wandb.Image(str(result.picture))}
    wandb.log({**result.scores, **image})
    wandb.finish()


def _to_mlflow(result: _Result) -> None:
    import mlflow

    run = mlflow.active_run() or mlflow.last_active_run()
    if run is None:
        return
    with mlflow.start_run(run_id=run.info.run_id, nested=mlflow.active_run() is not None):
        mlflow.log_metrics(result.scores, step=result.step)
        if result.picture is not None:
            mlflow.log_artifact(str(result.picture))


_SENDERS = {
    "tensorboard": _to_tensorboard,
    "trackio": _to_trackio,
    "wandb": _to_wandb,
    "mlflow": _to_mlflow,
}
