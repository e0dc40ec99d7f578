"""The optimiser step on one batch that all step benchmarks measure."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sora_cli.model.activation_offload import offloaded
from sora_cli.train.kernels import Kernels

Batch = dict[str, Any]


@dataclass
class Stepping:
    """One model that takes optimiser steps on one batch.

    Attributes:
        precision: of the forward pass, like `training.precision`.
        offload: True moves kept activations to the CPU, like `training.activation_offload`.
        kernels: faster kernels for the model's layers, like `training.kernels`.
        clock: gives seconds; `time.process_time` counts those of processors, for a busy machine.
        loss: of a batch; a family may make it of the model's outputs.
        penalty: returns a term to add to the loss, or None.
        after: called after the optimiser's step, with the 0-based number of the step.
    """

    model: nn.Module
    batch: Batch
    precision: str = "fp32"
    optimizer: torch.optim.Optimizer | None = None
    penalty: Callable[[], Tensor | None] = lambda: None
    after: Callable[[int], None] = lambda _: None
    offload: bool = False
    kernels: Kernels | None = None
    clock: Callable[[], float] = time.perf_counter
    loss: Callable[[nn.Module, Batch], Any] = lambda model, batch: model(**batch)["loss"]
    taken: int = field(default=0, init=False)

    @property
    def device(self) -> torch.device:
        """The batch's device."""
        ids: Tensor = self.batch["input_ids"]
        return ids.device

    def step(self) -> float:
        """Take an optimiser step; return its seconds."""
        self.wait()
        start = self.clock()
        with self.running():
            with autocast(self.device, self.precision), self.moving():
                loss = self.loss(self.model, self.batch)
                penalty = self.penalty()
            (loss if penalty is None else loss + penalty).backward()
        if self.optimizer is not None:
            self.optimizer.step()
            self.after(self.taken)
            self.optimizer.zero_grad()
        self.taken += 1
        self.wait()
        return self.clock() - start

    def moving(self) -> contextlib.AbstractContextManager[None]:
        """Offload the activations kept by a forward pass if `offload` is set."""
        stays = (*self.model.parameters(), *self.model.buffers()) if self.offload else ()
        return offloaded(stays, device=self.device.type, on=self.offload)

    def running(self) -> contextlib.AbstractContextManager[None]:
        """Run the block with the side's kernels, if it has any."""
        return contextlib.nullcontext() if self.kernels is None else self.kernels.running()

    def wait(self) -> None:
        """Wait for the device: a GPU runs asynchronously, so a clock would stop too early."""
        torch.get_device_module(self.device).synchronize()


@contextlib.contextmanager
def autocast(device: torch.device, precision: str) -> Iterator[None]:
    """Run the block under autocast if the precision is not fp32."""
    if precision == "fp32":
        yield
        return
    with torch.autocast(device.type, dtype=torch.bfloat16):
        yield
