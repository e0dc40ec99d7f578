"""`training.compact_every`: remove components that stay dead during training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import Trainer, TrainerCallback

from methods.base import AdapterMethod, Layers
from methods.compaction import DeadSteps, remove_components
from sora_cli.core.errors import SoraError
from sora_cli.report import Compaction, Removal
from sora_cli.train.checkpoint.resumable import Resumable
from sora_cli.train.checkpoint.trainer_internals import plain_optimizer
from sora_cli.train.moments import plain_moments


class Compactor(TrainerCallback, Resumable):  # type: ignore[misc]
    """Removes, at every N-th step, the components that were dead in each of the last N steps.

    Args:
        every: N, in optimiser steps.
        only_count: remove nothing; count the components that would be removed, and their revivals.
        after_removal: called after each removal.

    Attributes:
        record: removals so far, for the report.
    """

    def __init__(
        self,
        trainer: Trainer,
        method: AdapterMethod,
        layers: Layers,
        *,
        every: int,
        only_count: bool,
        after_removal: Callable[[], None] = lambda: None,
    ) -> None:
        if trainer.args.world_size > 1:
            raise SoraError(
                "training.compact_every works on one process only",
                where=f"this run has {trainer.args.world_size}",
            )
        self.trainer, self.method, self.layers = trainer, method, layers
        self.record = Compaction(every=every, only_count=only_count)
        self.after_removal = after_removal
        self._dead_steps = DeadSteps(layers)
        self._chosen = torch.zeros_like(self._dead_steps.alive())  # only_count: would be removed
        self._returned = torch.zeros_like(self._chosen)  # ... and revived later

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count the dead components; at every N-th step remove those dead for N steps."""
        self._dead_steps.step()
        if self.record.only_count:
            self._returned |= self._chosen & self._dead_steps.alive()
        if state.global_step % self.record.every:
            return
        gone = self._dead_steps.at_least(self.record.every)
        if self.record.only_count:
            gone &= ~self._chosen
            self._chosen |= gone
        if not bool(gone.any()):
            return
        if not self.record.only_count:
            with plain_moments(plain_optimizer(self.trainer)) as moments:
                self.method.removed(remove_components(self.layers, gone, moments))
            self._dead_steps.drop(gone)
            self.after_removal()
        left = sum(layer.rank for layer in self.layers.values())
        removal = Removal(step=state.global_step, removed=int(gone.sum()), left=left)
        self.record.removals.append(removal)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Record the number of components that revived after they would have been removed."""
        if self.record.only_count:
            self.record.would_have_revived = int(self._returned.sum())

    def progress(self) -> dict[str, Any]:
        """Return the record and the counts, JSON-able."""
        return {
            "record": self.record.model_dump(),
            "spells": self._dead_steps.steps.tolist(),
            "chosen": self._chosen.tolist(),
            "returned": self._returned.tolist(),
        }

    def restore(self, progress: dict[str, Any]) -> None:
        """Continue from the record and counts of `progress`."""
        self.record = Compaction.model_validate(progress["record"])
        device = self._chosen.device
        self._dead_steps.steps = torch.tensor(progress["spells"], device=device)
        self._chosen = torch.tensor(progress["chosen"], dtype=torch.bool, device=device)
        self._returned = torch.tensor(progress["returned"], dtype=torch.bool, device=device)
