"""Read and restore the internal state of transformers' Trainer.

Every private name of Trainer that this project uses is in this file: adapt it to new versions here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from transformers import Trainer, TrainingArguments

from methods.sharding import is_sharded, like
from sora_cli.core.errors import SoraError
from sora_cli.train.checkpoint import generators
from sora_cli.train.checkpoint.files import Checkpoint, cpu_copy, with_prefix

_DECIDING = ("initial_lr", "weight_decay", "betas", "eps")


class ResumingTrainer(Trainer):  # type: ignore[misc]
    """A Trainer with our own checkpoints: it neither writes nor reads pickle files.

    Attributes:
        checkpoints: its `save` replaces Trainer's saving; None: nothing is saved.
        resumed: loaded by `train(resume_from_checkpoint=resumed.path)`.
        forked: `resumed` belongs to another run, so the optimiser's groups must be compared.
    """

    checkpoints: Any = None
    resumed: Checkpoint | None = None
    forked: bool = False

    def largest(self, number: int) -> int:
        """Return the largest number among all processes."""
        if self.args.world_size == 1:
            return number
        return int(self.accelerator.gather(torch.tensor([number], device=self.args.device)).max())

    # Trainer (transformers 5.24) has no public hook that replaces these five methods
    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if self.checkpoints is not None:
            self.store_flos()
            self.checkpoints.save()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Do nothing: the code that sets `resumed` has loaded the weights."""

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if self.resumed is None:
            return
        run, tensors = self.resumed.run, with_prefix(self.resumed.tensors, "optimizer.")
        if self.forked:
            _check_groups(run["optimizer"], self.optimizer.param_groups, self.resumed.path)
        state = _optimizer_state(run["optimizer"], tensors)
        _shard(state, self.optimizer.param_groups)
        self.optimizer.load_state_dict(state)
        # JSON cannot hold LambdaLR's functions: None keeps the functions that Trainer made
        self.lr_scheduler.load_state_dict(
            {**run["schedule"], "lr_lambdas": [None] * len(run["optimizer"])}
        )

    def _load_scaler(self, checkpoint: str | None) -> None:
        if self.resumed is not None and self.resumed.run["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(self.resumed.run["scaler"])

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Restore each process's own generators; processes beyond the stored number keep theirs."""
        assert self.resumed is not None
        me, processes = self.args.process_index, self.resumed.run["processes"]
        if me < len(processes):
            states = with_prefix(self.resumed.tensors, f"random.{me}.")
            generators.restore(states, processes[me]["random"])


def use_one_gpu(arguments: TrainingArguments) -> None:
    """Let a process compute on one GPU, as if it saw no others.

    Without a launcher Trainer would split each batch over all GPUs (`nn.DataParallel`), take the
    mean of their mean losses, and copy the adapters in every step.
    """
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1


def plain_optimizer(trainer: Trainer) -> torch.optim.Optimizer:
    """Return the optimiser inside accelerate's wrapper.

    A gradient scaler may skip the wrapper's step, so hooks belong on the inner optimiser.
    """
    optimizer: torch.optim.Optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    return optimizer


def state_tensors(trainer: Trainer) -> dict[str, Tensor]:
    """Return the optimiser's moments as "optimizer.<number>.<name>"."""
    return {
        f"optimizer.{index}.{name}": cpu_copy(torch.as_tensor(value))
        for index, entry in trainer.optimizer.state_dict()["state"].items()
        for name, value in _flat(entry)
    }


def _flat(entry: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield an optimiser's values for one parameter; bitsandbytes nests some in another dict."""
    for name, value in entry.items():
        if isinstance(value, dict):
            yield from _flat(value)
        else:
            yield name, value


def run_state(trainer: Trainer) -> dict[str, Any]:
    """Return the options of optimiser, schedule and loss scaler, JSON-able."""
    schedule = trainer.lr_scheduler.state_dict()
    scaler = trainer.accelerator.scaler
    return {
        "optimizer": trainer.optimizer.state_dict()["param_groups"],
        "schedule": {k: v for k, v in schedule.items() if k != "lr_lambdas"},
        "scaler": None if scaler is None else scaler.state_dict(),
    }


def per_process(trainer: Trainer, tensors: dict[str, Tensor]) -> list[dict[str, Any]]:
    """Return the state that differs between processes, by process; generators go to `tensors`."""
    # Trainer averages `_tr_loss` (on the device, since the last log) for the history, and
    # `_total_loss_scalar` (all that was logged) for `train_loss`
    mine = {
        "generators": generators.torch_states(),
        "random": generators.other_states(),
        "loss": float(trainer._tr_loss),
        "total_loss": float(trainer._total_loss_scalar),
        "last_logged": trainer._globalstep_last_logged,
    }
    processes = gather_object([mine])
    for number, process in enumerate(processes):
        for name, state in process.pop("generators").items():
            tensors[f"random.{number}.{name}"] = state
    return list(processes)


def restore_losses(trainer: Trainer, process: Mapping[str, Any]) -> None:
    """Restore the losses summed since the last history entry."""
    trainer._tr_loss += process["loss"]
    trainer._total_loss_scalar = process["total_loss"]
    trainer._globalstep_last_logged = process["last_logged"]


def _check_groups(there: list[dict[str, Any]], here: list[dict[str, Any]], path: Path) -> None:
    """Check that a checkpoint's optimiser groups equal the groups that this run created."""
    names = [", ".join(f"{len(g['params'])} {g['name']}" for g in some) for some in (there, here)]
    if names[0] != names[1]:
        raise SoraError(
            f"the optimiser's parameter groups differ: {names[0]} in {path}, {names[1]} in this run"
        )
    for old, new in zip(there, here, strict=True):
        for key in _DECIDING:
            before, now = _as_json(old.get(key)), _as_json(new.get(key))
            if before != now:
                raise SoraError(
                    f"{key} of the optimiser's group '{old['name']}' was {before} in {path}, and "
                    f"is {now} in this run",
                    hint="a fork keeps the optimiser's options: set the old value",
                )


def _as_json(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _shard(state: dict[str, Any], groups: list[dict[str, Any]]) -> None:
    """Shard the moments of sharded parameters in the same way."""
    parameters = [p for group in groups for p in group["params"]]
    for index, moments in state["state"].items():
        for name, value in moments.items():
            if is_sharded(parameters[index]) and value.shape == parameters[index].shape:
                moments[name] = like(value, parameters[index])


def running_loss(trainer: Trainer) -> Tensor:
    """Return Trainer's sum of losses since the last log entry; change it in place."""
    loss: Tensor = trainer._tr_loss
    return loss


def first_step(trainer: Trainer) -> int:
    """Return the step from which Trainer counts the steps of its mean loss."""
    # older versions count from 0
    # until: transformers 5.19
    return int(getattr(trainer, "_initial_global_step", 0))


def prepare_inputs(trainer: Trainer, inputs: Any) -> Any:
    """Move a batch to the model's device."""
    return trainer._prepare_inputs(inputs)


def call_on_resume(trainer: Trainer, note: Callable[[Path], None]) -> None:
    """Call a function with the directory of the resumed checkpoint, when the trainer reads it."""
    inner = trainer._load_from_checkpoint

    def load_from_checkpoint(checkpoint: str, *args: Any, **kwargs: Any) -> Any:
        note(Path(checkpoint))
        return inner(checkpoint, *args, **kwargs)

    trainer._load_from_checkpoint = load_from_checkpoint


def mean_loss(trainer: Trainer) -> float:
    """Return the mean loss over all optimiser steps; call it after the last step."""
    mean: float = trainer._total_loss_scalar / max(trainer.state.global_step, 1)
    return mean


def _optimizer_state(groups: list[dict[str, Any]], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the state in `Optimizer.state_dict`'s form; JSON had turned its tuples into lists."""
    state: dict[int, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        counts = tensor.dim() == 0 and not tensor.is_floating_point()  # bitsandbytes: an int
        state.setdefault(int(index), {})[key] = tensor.item() if counts else tensor
    restored = [
        {k: tuple(v) if isinstance(v, list) and k != "params" else v for k, v in group.items()}
        for group in groups
    ]
    return {"state": state, "param_groups": restored}
