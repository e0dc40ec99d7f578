"""The trial runs of `sora_cli.verify.contract`: a tiny BERT in a Trainer, watched."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from methods.base import AdapterMethod, LowRankLinear, StepInfo, optimizer_groups
from methods.baselines import Baseline, choose
from methods.contract.net import MethodFactory
from methods.inject import inject
from sora_cli.adapter.saving import save_adapter
from sora_cli.core.hub import quiet_loading

HEAD = "classifier"
STEPS = 6
"""Optimiser steps of a run: two epochs of 7 micro-batches, in steps of 3, 3 and 1."""

_BATCH = 2
_ROWS = 7 * _BATCH
_PROBE = 5.0


class Attach(Protocol):
    """A function that lets a method train with a Trainer, as `sora_cli.train.callback.attach`."""

    def __call__(
        self, trainer: Trainer, method: AdapterMethod, layers: Mapping[str, LowRankLinear]
    ) -> Any:
        """Attach the method, before `trainer.train()`."""


@dataclass(frozen=True)
class Step:
    """An optimiser step: learning rates by group, and the number of penalties in its loss."""

    rates: dict[str, float]
    penalty: float


@dataclass(frozen=True)
class Call:
    """A call of `after_step`: its arguments, and the number of optimiser steps before it."""

    info: StepInfo
    taken: int
    without_gradient: list[str]


class Watch(TrainerCallback):  # type: ignore[misc]
    """A callback that records every optimiser step and every call of a method's hooks.

    It adds a probe to the penalty, a number that no optimiser trains. The probe's gradient counts
    the penalties in the training loss, and its value shows up in an evaluation loss that should
    have none.
    """

    def __init__(self, method: AdapterMethod, layers: Mapping[str, LowRankLinear]) -> None:
        self.calls: list[Call] = []
        self.steps: list[Step] = []
        self._probe = torch.tensor(_PROBE, requires_grad=True)
        self._layers = layers
        self._groups = [
            g["name"] for g in optimizer_groups(method, layers, lr=0.0, weight_decay=0.0)
        ]
        self._after_step, self._penalty = method.after_step, method.penalty
        method.after_step = self._watched_after_step  # type: ignore[method-assign]
        method.penalty = self._watched_penalty  # type: ignore[method-assign]

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Watch the optimiser's steps."""
        optimizer = kwargs["optimizer"]
        # accelerate wraps the optimiser; the inner one takes the steps
        getattr(optimizer, "optimizer", optimizer).register_step_post_hook(self._note_step)

    def _note_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        rates = {g.get("name"): float(g["lr"]) for g in optimizer.param_groups}
        grad, self._probe.grad = self._probe.grad, None
        times = 0.0 if grad is None else float(grad)  # d(n * probe) / d(probe) = n
        self.steps.append(Step({name: rates.get(name, math.nan) for name in self._groups}, times))

    def _watched_penalty(self, layers: Mapping[str, LowRankLinear]) -> Tensor:
        penalty = self._penalty(layers)
        return self._probe * 1 if penalty is None else penalty + self._probe

    def _watched_after_step(self, layers: Mapping[str, LowRankLinear], info: StepInfo) -> None:
        lost = [
            f"{path}.{name}"
            for path, layer in self._layers.items()
            for name, p in layer.named_parameters(recurse=False)
            if p.requires_grad and p.grad is None
        ]
        self.calls.append(Call(info, len(self.steps), lost))
        self._after_step(layers, info)


@dataclass(frozen=True)
class Trial:
    """A method in a Trainer, with the record of its run."""

    trainer: Any
    method: AdapterMethod
    layers: dict[str, LowRankLinear]
    watch: Watch

    def state(self) -> dict[str, Tensor]:
        """Return all results of training: the model's tensors, and the method's own state."""
        state: dict[str, Tensor] = dict(self.trainer.model.state_dict())
        state |= {f"{self.method.name}'s {n}": t for n, t in self.method.state_dict().items()}
        return state


def start(
    make: MethodFactory, folder: Path, attach: Attach, *, seed: int = 0, **arguments: Any
) -> Trial:
    """Attach a method to a Trainer for `STEPS` optimiser steps.

    Args:
        seed: of the adapters; the model is always the same.
        arguments: further arguments of `TrainingArguments`.
    """
    model, method = tiny_model(), make()
    generator = torch.Generator().manual_seed(seed)
    layers: dict[str, LowRankLinear] = {}
    if isinstance(method, Baseline):
        choose(model, method, head=[HEAD])
    else:
        layers = inject(model, method, trainable=[HEAD], generator=generator)
    options = {"save_strategy": "no", **arguments}
    args = TrainingArguments(
        str(folder),
        num_train_epochs=2,
        per_device_train_batch_size=_BATCH,
        gradient_accumulation_steps=3,
        learning_rate=1e-2,
        weight_decay=0.01,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        **options,
    )
    columns = batch()
    rows = [{name: column[i] for name, column in columns.items()} for i in range(_ROWS)]
    trainer = Trainer(model, args, train_dataset=rows, eval_dataset=rows)
    trainer.remove_callback(PrinterCallback)
    watch = Watch(method, layers)
    trainer.add_callback(watch)
    attach(trainer, method, layers)
    return Trial(trainer, method, layers, watch)


def trained(make: MethodFactory, folder: Path, attach: Attach) -> Trial:
    """Return a finished run; base/ holds its base model and adapter/ its adapter."""
    tiny_model().save_pretrained(folder / "base")
    trial = start(make, folder, attach)
    trial.trainer.train()
    save_adapter(
        trial.trainer.model, trial.method, folder / "adapter", base_model=str(folder / "base")
    )
    return trial


@contextmanager
def trial_folder() -> Iterator[Path]:
    """Make a temporary directory; transformers is quiet while it exists."""
    with tempfile.TemporaryDirectory(prefix="method-trial-") as folder, quiet_loading():
        yield Path(folder)


def tiny_model() -> Any:
    """Return a seeded BertForSequenceClassification of one layer, always the same."""
    config = BertConfig(
        vocab_size=32,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        num_labels=3,
        initializer_range=0.2,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return BertForSequenceClassification(config).eval()


def batch() -> dict[str, Tensor]:
    """Return all rows, for training and evaluation alike: tokens (rows, 6) and labels (rows,)."""
    g = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, 32, (_ROWS, 6), generator=g)
    return {"input_ids": tokens, "labels": torch.arange(_ROWS) % 3}


@torch.no_grad()
def logits(model: Any) -> Tensor:
    """Return the model's outputs for all rows in evaluation, (rows, labels)."""
    result: Tensor = model.eval()(input_ids=batch()["input_ids"]).logits
    return result


def load_model(directory: Path) -> Any:
    """Load a model like the tiny one from its directory."""
    return BertForSequenceClassification.from_pretrained(directory)


def contents(directory: Path) -> dict[str, bytes]:
    """Return {file name: bytes} of a flat directory."""
    return {file.name: file.read_bytes() for file in sorted(directory.iterdir())}
