"""The sweep file's `search` block: what Optuna may choose, and what for. No Optuna here."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from sora_cli.blocks import Block, Count, Seed

Choice = bool | int | float | str | None
Objective = Literal["metric", "parameters"]


class Range(Block):
    """Numbers between two bounds, or one of some values."""

    low: int | float | None = Field(None, description="smallest; whole if high is, too")
    high: int | float | None = Field(None, description="largest")
    log: bool = Field(False, description="equal ratios are equally likely, not differences")
    step: int | float | None = Field(
        None, gt=0, description="distance between values; not with log"
    )
    choices: Annotated[list[Choice], Field(min_length=2)] | None = Field(
        None, description="the values themselves"
    )

    @property
    def whole(self) -> bool:
        """Whether only whole numbers are meant."""
        return all(isinstance(n, int) for n in (self.low, self.high, self.step or 1))

    @model_validator(mode="after")
    def _one_kind(self) -> Range:
        bounds = self.low is not None and self.high is not None
        if (self.choices is not None) == (self.low is not None or self.high is not None):
            raise ValueError("give low and high, or choices")
        if self.choices is None and not bounds:
            raise ValueError("low and high go together")
        if self.choices is not None and (self.log or self.step):
            raise ValueError("log and step go with low and high")
        if bounds and self.low is not None and self.high is not None and self.low >= self.high:
            raise ValueError(f"low must be below high, not {self.low:g} and {self.high:g}")
        if self.log and self.low is not None and self.low <= 0:
            raise ValueError("log needs a low above 0")
        if self.log and self.step:
            raise ValueError("step does not go with log")
        return self


class SearchBlock(Block):
    """A search: the runs are trials, each with values that Optuna chooses."""

    space: Annotated[dict[str, Range], Field(min_length=1)] = Field(
        description="recipe key -> {low, high, log, step} or {choices}"
    )
    objectives: Annotated[list[Objective], Field(min_length=1, max_length=2)] = Field(
        ["metric"],
        description="metric: the best that the rows for selection gave; parameters: of what is "
        "left (fewer is better). Both: the Pareto front of the two",
    )
    trials: Count = Field(20, description="runs, pruned ones included")
    seed: Seed = Field(0, description="of the sampler")
    pruning: bool = Field(
        False, description="stop trials whose evaluations fall behind the median of the others"
    )
    startup_trials: Count = Field(5, description="trials drawn at random first; none is pruned")

    @model_validator(mode="after")
    def _possible(self) -> SearchBlock:
        if len(set(self.objectives)) < len(self.objectives):
            raise ValueError("an objective is there twice")
        if self.pruning and len(self.objectives) > 1:
            raise ValueError("pruning needs a single objective; there are two")
        if self.pruning and self.objectives == ["parameters"]:
            raise ValueError("pruning goes by the metric; the objective is parameters")
        return self
