"""The place where training begins: its first step, the run's own checkpoint, or another run's."""

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
    """The checkpoint that training begins with.

    Attributes:
        checkpoint: None: training begins at its first step.
        forked: it is the checkpoint of the run that the recipe's `start` names, not this run's.
    """

    checkpoint: Checkpoint | None
    forked: bool

    @property
    def resumed(self) -> Checkpoint | None:
        """The checkpoint, if it is this run's own."""
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
    """Find the checkpoint that a run begins with; its own goes before the one it left another at.

    Args:
        report: with the run's setup; what a fork starts from is added, and accepted changes.
        output: the run's directory.
        model, layers: as this run would train them.
        resume: look for a checkpoint of this run.
        force: accept changes of the recipe that are safe.

    Raises:
        SoraError: see `find_checkpoint`, `describe_fork` and `read_fork`.
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
