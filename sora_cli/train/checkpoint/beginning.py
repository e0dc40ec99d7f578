"""The start of training: the first step, the run's own checkpoint, or another run's checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sora_cli.recipe.recipe import Recipe
from sora_cli.train.checkpoint.fork import describe_fork, read_fork
from sora_cli.train.checkpoint.resume import find_checkpoint, identity_of

if TYPE_CHECKING:
    from torch import nn

    from methods.base import Layers
    from sora_cli.report import RunReport
    from sora_cli.train.checkpoint.files import Checkpoint


@dataclass(frozen=True)
class Beginning:
    """The checkpoint from which training begins.

    Attributes:
        checkpoint: None: training begins at its first step.
        forked: the checkpoint belongs to the run named in the recipe's `start`, not to this run.
    """

    checkpoint: Checkpoint | None
    forked: bool

    @property
    def resumed(self) -> Checkpoint | None:
        """The checkpoint, if it is this run's own; else None."""
        return None if self.forked else self.checkpoint


def find_beginning(
    recipe: Recipe,
    report: RunReport,
    output: Path,
    model: nn.Module,
    layers: Layers,
    *,
    resume: bool,
    force: bool = False,
) -> Beginning:
    """Find the checkpoint from which training begins.

    The run's own checkpoint takes precedence over the one it was forked from.

    Args:
        report: holds the run's setup; the start of a fork and accepted changes are added to it.
        output: the run's directory.
        model, layers: prepared for this run's training.
        resume: look for a checkpoint of this run.
        force: accept safe changes of the recipe.
    """
    inputs, fork = identity_of(report)["inputs"], describe_fork(recipe)
    if fork is not None:
        report.start = fork
    if resume:
        own = find_checkpoint(output, identity_of(report), report.recipe_notes, force=force)
        if own is not None:
            return Beginning(own, forked=False)
    if fork is None:
        return Beginning(None, forked=False)
    return Beginning(read_fork(recipe, fork, inputs, model, layers), forked=True)
