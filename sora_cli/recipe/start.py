"""The recipe's `start` block: a run that begins with another run's result or checkpoint."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from methods.keep import Bits, KeepOptions
from sora_cli.recipe.types import Block, Moment

_Directory = Annotated[str, Field(min_length=1)]


class StartBlock(Block, KeepOptions):
    """The adapter or checkpoint that training begins with; without it, the method's own start.

    With `adapter`, training begins with a finished adapter's update (cut by at most one of the
    rules) and its head; optimiser, schedule and data order are this run's. With `checkpoint`,
    another run goes on from its middle, with its optimiser, schedule, generators and data order;
    only the method and its options may differ from there on.
    """

    bits: Bits | None = Field(
        None,
        description="round the adapter's numbers to this many bits, after a cut, as sora prune "
        "--bits does. Goes with training.max_steps: 0, since training would leave the grid",
    )
    adapter: _Directory | None = Field(
        None,
        description="run directory or adapter directory (also a PEFT LoRA of another tool); "
        "training begins with its update and head",
    )
    checkpoint: _Directory | None = Field(
        None,
        description="checkpoint directory of another run, or its run directory together with step. "
        "Training goes on from there under this recipe, which may have another method and "
        "other options of it",
    )
    step: Moment | None = Field(
        None, description="step of the checkpoint in a run directory; below 1: a share of the run"
    )

    @model_validator(mode="after")
    def _consistent(self) -> StartBlock:
        if (self.adapter is None) == (self.checkpoint is None):
            raise ValueError("give either adapter or checkpoint")
        rules = list(self.keep().given())
        rules += ["bits"] if self.bits is not None else []
        if rules and self.adapter is None:
            raise ValueError(f"{rules[0]} changes an adapter, and none is given")
        if self.step is not None and self.checkpoint is None:
            raise ValueError("step goes with checkpoint")
        return self
