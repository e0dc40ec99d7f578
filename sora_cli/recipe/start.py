"""The recipe's `start` block: another run's result or checkpoint, from which a run begins."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from sora_cli.recipe.types import Block, Moment

RULES = ("mean_rank", "rank", "max_params", "energy")
"""The keys that cut an adapter before the first step; at most one is given."""
_Directory = Annotated[str, Field(min_length=1)]


class StartBlock(Block):
    """The place where training begins, if not at the method's own start.

    With `adapter`: a finished adapter's update, cut by at most one rule, and its head; optimiser,
    schedule and data order are this run's. With `checkpoint`: the middle of another run, whose
    optimiser, schedule, generators and data order go on; only the method and its own options may
    be others from there on.
    """

    adapter: _Directory | None = Field(
        None,
        description="run directory or adapter directory (also another tool's PEFT LoRA) whose "
        "update and head the training begins with",
    )
    mean_rank: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="cut the adapter first, to so many components per module, the strongest over "
        "all modules",
    )
    rank: int | None = Field(
        None, ge=1, description="cut the adapter first: largest rank of a module"
    )
    max_params: int | None = Field(
        None, ge=1, description="cut the adapter first: numbers in all factors together"
    )
    energy: float | None = Field(
        None,
        gt=0,
        le=1,
        description="cut the adapter first: share of each module's squared singular values to keep",
    )
    checkpoint: _Directory | None = Field(
        None,
        description="checkpoint directory of another run, or its run directory with step: training "
        "goes on from there under this recipe, which may differ in the method's options",
    )
    step: Moment | None = Field(
        None, description="step of the checkpoint in a run directory; below 1: a share of the run"
    )

    def rule(self) -> dict[str, float]:
        """Return the rule that cuts the adapter, by its key; empty if there is none."""
        return {name: value for name in RULES if (value := getattr(self, name)) is not None}

    @model_validator(mode="after")
    def _consistent(self) -> StartBlock:
        if (self.adapter is None) == (self.checkpoint is None):
            raise ValueError("give either adapter or checkpoint")
        rules = list(self.rule())
        if len(rules) > 1:
            raise ValueError(f"{' and '.join(rules)} exclude each other: give one of them")
        if rules and self.adapter is None:
            raise ValueError(f"{rules[0]} cuts an adapter, and none is given")
        if self.step is not None and self.checkpoint is None:
            raise ValueError("step goes with checkpoint")
        return self
