"""The recipe's `path` block: the stages of a regularisation path."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from methods.schedules import ramp
from sora_cli.recipe.types import Block, Count, Seed


class Schedule(Block):
    """The values of the varied option, one per stage."""

    kind: Literal["linear", "log_linear", "exp_linear", "list"] = Field(
        "linear",
        description="linear: equal differences. exp_linear: equal ratios. log_linear: logarithms "
        "of equally spaced values from exp(start) to exp(stop). list: the given values",
    )
    start: float | None = Field(
        None,
        description="value of the first stage; 0 is possible with linear, but not with exp_linear",
    )
    stop: float | None = Field(None, description="value of the last stage")
    num: int | None = Field(None, ge=2, le=10_000, description="number of stages")
    values: list[bool | int | float | str] | None = Field(
        None, min_length=2, description="with kind: list, the value of every stage"
    )

    def stage_values(self) -> list[Any]:
        """Return the value of each stage, in order."""
        if self.values is not None:
            return list(self.values)
        assert self.kind != "list"
        assert self.start is not None
        assert self.stop is not None
        assert self.num is not None
        return list(ramp(self.kind, self.start, self.stop, self.num))

    @model_validator(mode="after")
    def _complete(self) -> Schedule:
        given = self.model_dump(exclude_none=True)
        wanted = ["values"] if self.kind == "list" else ["start", "stop", "num"]
        for key in ("start", "stop", "num", "values"):
            if key in wanted and key not in given:
                raise ValueError(f"kind {self.kind} needs {' and '.join(wanted)}; no {key} is set")
            if key not in wanted and key in given:
                raise ValueError(f"{key} does not go with kind {self.kind}; set {key}: null")
        self.stage_values()  # raises ValueError for impossible bounds, such as exp_linear from 0
        return self


class PathBlock(Block):
    """A regularisation path (`sora path`): stages that change one option, each warm-started."""

    vary: str = Field(
        description="option that changes from stage to stage, such as method.threshold; sora "
        "methods lists the possible options"
    )
    schedule: Schedule = Field(description="values of the option, one per stage")
    epochs: float | None = Field(
        None,
        gt=0,
        le=1e6,
        description="epochs of each stage after the first. Default: as the first stage",
    )
    memorisation_rows: Count = Field(
        1000,
        description="number of training rows to score after each stage; they are a fixed random "
        "subset",
    )
    memorisation_seed: Seed = Field(42, description="seed of this subset")
