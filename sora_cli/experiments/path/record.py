"""`path.json`: the results of every stage of a regularisation path. No torch here.

Scores are stored by split. `memorisation` names the fixed subset of training rows, `generalisation`
the reported validation split, `choice` the split that `sora pick` uses.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from sora_cli.core.records import read_record
from sora_cli.report import MOVE_AWAY, RateChoice, Report, Score

FILE_NAME = "path.json"
PICTURE = "path.png"
STAGES = "stages"
"""Folder in a path's directory that holds the directories of all stages."""
TRAIN_SUBSET = "train-subset"
SELECTION = "selection"


class Stage(BaseModel):
    """The results of one finished stage."""

    index: int = Field(description="from 0")
    value: Any = Field(description="this stage's value of the option that varies")
    directory: str = Field(description="directory of its adapter and report, inside the path's")
    epochs: float = Field(description="passes over the training rows")
    steps: int = Field(description="optimiser steps")
    live: int = Field(description="live components at the end")
    total: int = Field(description="components before any was removed")
    alive: dict[str, list[int]] = Field(description="numbers of the live components, by module")
    parameters: int = Field(description="numbers in the adapter's factors")
    metrics: dict[str, dict[str, Score]] = Field(description="scores by split")
    relative: dict[str, Score] = Field(description="main metric / stage 0's main metric, by split")
    norm: float = Field(description="||dW||_F over all modules")
    energy_removed: float | None = Field(
        description="share of the previous stage's ||dW||_F^2 in components that have died since; "
        "null for the first stage, and for a method that turns the basis of the factors: component "
        "i of one stage is then not component i of the next"
    )
    seconds: float = Field(description="wall time of the stage")

    @property
    def share(self) -> float:
        """Share of the components that are alive."""
        return self.live / self.total if self.total else 0.0


class ControlPoint(BaseModel):
    """Scores of stage 0 without as many components as the path had lost by one stage."""

    stage: int = Field(description="index of the stage")
    removed: int = Field(description="number of components removed")
    scores: dict[str, list[Score]] = Field(
        description="main metric on the generalisation split, by rule of removal, for each draw"
    )
    relative: dict[str, Score] = Field(description="mean of the scores / stage 0's metric")


class Controls(BaseModel):
    """Results of removing components from stage 0 by several rules, without further training."""

    rules: dict[str, str] = Field(description="each rule: its name, and the components it removes")
    draws: int = Field(description="random draws per stage")
    floor: Score = Field(description="the metric with every component removed")
    points: list[ControlPoint] = Field(description="one for each stage after the first")
    gap: dict[str, Score] = Field(
        description="mean over the stages of |relative metric - the path's relative metric|"
    )
    falls_at: dict[str, float | None] = Field(
        description="share of components alive at the first stage below 90 % of stage 0's metric; "
        "null: no such stage"
    )
    verdict: str = Field(description="the answer, as a sentence")


class PathReport(Report):
    """The content of `path.json`."""

    vary: str = Field(description="the option that changes from stage to stage")
    method: str = Field(description="name of the method")
    main_metric: str = Field("", description="the metric that stages are compared by")
    greater_is_better: bool = Field(True, description="whether a larger main_metric is better")
    memorisation: str = Field(TRAIN_SUBSET, description="name of the scored training rows")
    generalisation: str = Field("", description="name of the reported validation split")
    choice: str = Field("", description="name of the split that sora pick chooses on")
    rows: dict[str, int] = Field(default_factory=dict, description="rows per scored split")
    selection: str = Field("", description="how the rows of the splits were chosen")
    head_parameters: int = Field(0, description="numbers in the trained head")
    learning_rate: RateChoice | None = Field(
        None,
        description="the choice of training.learning_rate, made by the first stage; null: a number "
        "of the recipe",
    )
    stage_count: int = Field(description="number of stages of the finished path")
    stages: list[Stage] = Field(default_factory=list, description="the finished stages")
    controls: Controls | None = Field(None, description="results of --controls; null: not run")

    def score(self, stage: Stage, split: str) -> float:
        """Return a stage's main metric on a split."""
        return stage.metrics[split][self.main_metric]

    def ratio(self, score: float, split: str) -> float:
        """Divide a score by stage 0's score; NaN if that is not above zero."""
        return relative_to(self.score(self.stages[0], split), score)


def relative_to(first: float, score: float) -> float:
    """Divide a score by the first stage's score; NaN if that is not above zero."""
    # a share of a correlation of 0 or below means nothing
    return score / first if first > 0 else math.nan


def read_path(directory: Path) -> PathReport | None:
    """Read the record in a directory; None if there is none."""
    return read_record(directory / FILE_NAME, PathReport, hint=MOVE_AWAY)
