"""The report of a run: `report.json` holds its recipe, data, scores and ranks on about a page.

Lists with an entry per step or component, such as losses, are in `history.json` beside it.
`sora_cli.train.log` writes both files during a run; `sora_cli.run` fills in scores and ranks.
"""

from __future__ import annotations

import math
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
)

FILE_NAME = "report.json"
HISTORY_FILE = "history.json"
PAGE_FILE = "report.html"
SCHEMA_VERSION = 2
"""Layout 1 had everything in `report.json`; such reports can still be read."""
MOVE_AWAY = "move it away, or train elsewhere: output.dir=DIR"
"""Hint of the error for a damaged record in a run's output directory."""
_GROWING = ("history", "live_components", "non_finite_steps")  # all of them in history.json

Status = Literal["running", "completed", "failed", "interrupted"]

Score = Annotated[float, BeforeValidator(lambda v: math.nan if v is None else v)]
"""A metric; JSON has no NaN, which is written as null."""


class Ranks(BaseModel):
    """Rank of one module before and after training."""

    start: int = Field(description="before the training")
    end: int = Field(description="in the saved adapter")


class Parameters(BaseModel):
    """Numbers of parameters, counted from tensor shapes; gates count in `trained` only."""

    base: int = Field(0, description="all of the base model, its head among them")
    trained: int = Field(0, description="everything with a gradient: factors, gates, head")
    adapter_start: int = Field(
        0,
        description="factors at the start: sum of r (in + out); of a baseline, what it trains "
        "outside the head",
    )
    adapter_end: int = Field(
        0, description="factors of the saved adapter; of a baseline, as at the start"
    )
    head: int = Field(0, description="the trained head")


class Removal(BaseModel):
    """Dead components that were removed after one step."""

    step: int = Field(description="optimiser steps taken by then")
    removed: int = Field(description="components taken out")
    left: int = Field(description="components in the layers afterwards, dead ones among them")


class Compaction(BaseModel):
    """The effect of `training.compact_every`; with `compact_only_count`, its forecast."""

    every: int = Field(description="optimiser steps")
    only_count: bool = Field(description="nothing was taken out, only counted")
    removals: list[Removal] = Field(default_factory=list, description="in history.json")
    would_have_revived: int | None = Field(
        None,
        description="components counted as removed whose gate was not zero later; null if they "
        "were really removed, since nobody knows then",
    )

    @property
    def removed(self) -> int:
        """Number of removed components."""
        return sum(removal.removed for removal in self.removals)

    def event(self) -> str:
        """Return the sentence for the report's events."""
        if self.only_count:
            return (
                f"compaction every {self.every} steps would have removed {self.removed} "
                f"components; {self.would_have_revived} of them came back later"
            )
        return (
            f"compaction removed {self.removed} components that were dead for {self.every} steps "
            f"or more; what is removed cannot come back, as a gate at zero can (how many would: "
            f"training.compact_only_count=true)"
        )


class MicroBatchChoice(BaseModel):
    """The choice of `training.micro_batch: auto`; bytes are those of the main process."""

    rows: int = Field(description="of a forward pass and process")
    parts: int = Field(description="micro-batches to a step and process: gradient_accumulation")
    predicted: float | None = Field(None, description="bytes at the peak of a step")
    available: float | None = Field(None, description="bytes that the run might take in all")
    failed: list[int] = Field(default_factory=list, description="rows that memory ran out with")


class Start(BaseModel):
    """The adapter or checkpoint at the start of a run."""

    directory: str = Field(description="of the adapter or the checkpoint, as the recipe names it")
    digest: str = Field(description="of what lay there: SHA-256")
    step: int | None = Field(
        None, description="of a checkpoint: optimiser steps taken there, which count as this run's"
    )
    rule: dict[str, float] = Field(
        default_factory=dict, description="what cut the adapter before the first step"
    )
    head: int = Field(0, description="of an adapter: numbers taken over in full, such as the head")
    ranks: dict[str, Ranks] = Field(
        default_factory=dict,
        description="of an adapter, by module: components that its own training began with (stored "
        "ones, where that is not known), and those that this run began with",
    )

    def sentence(self) -> str:
        """Return the line on the start for the run's output."""
        if self.step is not None:
            return f"forked from {self.directory} after step {self.step}"
        stored = sum(m.start for m in self.ranks.values())
        kept = sum(m.end for m in self.ranks.values())
        by = "".join(f", cut by {name} {value:g}" for name, value in self.rule.items())
        return f"started from {self.directory}: {kept:,} of its {stored:,} components{by}"


class Resumption(BaseModel):
    """A process that resumed a run."""

    step: int = Field(description="optimiser steps taken before, by earlier processes")
    started: str = Field(description="date and time, UTC")


class Facts(BaseModel):
    """Part of a report with the keys of the version that wrote it; unknown keys are kept.

    Keys that were not given are not written.
    """

    model_config = ConfigDict(extra="allow")

    @model_serializer(mode="wrap")
    def _given(self, whole: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in whole(self).items() if key in self.model_fields_set}


_Version = Annotated[str | None, Field(description="version of the package")]


class Environment(Facts):
    """Versions, machine and git commit of a run."""

    sora: str | None = Field(None, description="version of this program")
    python: str | None = Field(None, description="version of Python")
    torch: _Version = None
    transformers: _Version = None
    datasets: _Version = None
    evaluate: _Version = None
    accelerate: _Version = None
    safetensors: _Version = None
    platform: str | None = Field(None, description="the system, with its version")
    processor: str | None = Field(None, description="its name, or else its kind")
    cpus: int | None = Field(None, description="of the machine")
    threads: int | None = Field(None, description="that torch computed with")
    gpu: str | None = Field(None, description="its name; null: none")
    git_commit: str | None = Field(None, description="of the checkout; null outside of one")


class BaseFacts(Facts):
    """The base model of a run."""

    path: str | None = Field(None, description="as the recipe names it")
    resolved: str | None = Field(None, description="the local path it stood for, or the Hub id")
    revision: str | None = Field(None, description="Hub branch, tag or commit")
    fingerprint: str | None = Field(None, description="of its weights")
    hub_id: str | None = Field(None, description="its id on the Hub, where that is known")
    attention: str | None = Field(None, description="the implementation that it ran with")
    missing: list[str] = Field([], description="parameters that it did not supply")
    head: list[str] = Field([], description="modules trained beside the adapters")


class DataFacts(Facts):
    """The rows of a run, by split."""

    rows: dict[str, int] = Field({}, description="how many")
    encoded: dict[str, int] = Field({}, description="rows after encoding")
    fingerprints: dict[str, str] = Field({}, description="of their content")
    truncated: dict[str, int] = Field({}, description="rows that were cut")
    longest: dict[str, int] = Field({}, description="tokens of the longest row")
    in_training: dict[str, int] = Field({}, description="rows that are training rows, too")
    contradicted: dict[str, int] = Field({}, description="those of them with another label")
    classes: dict[str, dict[str, int]] = Field({}, description="rows of each class, or words")
    selection: str | None = Field(None, description="which rows chose the checkpoint")
    revision: str | None = Field(None, description="of the data set: Hub branch, tag or commit")


class FileFacts(Facts):
    """Comparison of a run's files with the trained model, in the layout of `sora verify --json`."""

    inputs: str | None = Field(None, description="what both were given")
    effect: float | None = Field(
        None, description="relative difference that the adapter makes; null without an adapter"
    )
    effects: list[dict[str, Any]] = Field(
        [],
        description="by output, and of the hidden states: the share of the adapter's effect that "
        "is there, and the residual",
    )
    tolerance: float | None = Field(None, description="the largest relative difference allowed")
    tolerance_from: str | None = Field(None, description="where it comes from")
    notes: list[str] = Field([], description="what a person should know")
    outputs: list[dict[str, Any]] = Field([], description="the differences of each output")
    relative: float | None = Field(None, description="the largest relative difference found")
    verdict: str | None = Field(None, description="same, DIFFERENT or cannot tell")
    reason: str | None = Field(None, description="of any verdict but same")
    same: bool | None = Field(None, description="whether the verdict is same")


class Report(BaseModel):
    """Fields of every report; unknown keys of later versions are ignored on reading."""

    model_config = ConfigDict(extra="ignore", validate_assignment=True)

    schema_version: int = Field(SCHEMA_VERSION, description="of the report's layout")
    status: Status = Field("running", description="how the run ended, if it has")
    error: str | None = Field(None, description="why it failed or was interrupted")
    name: str = Field(description="the recipe's name")
    command: list[str] = Field(default_factory=list, description="as it was typed, word by word")
    started: str = Field("", description="date and time, UTC")
    finished: str | None = Field(None, description="date and time, UTC; null while it runs")
    recipe: dict[str, Any] = Field(description="every value the run used, defaults included")
    recipe_notes: list[str] = Field(
        default_factory=list, description="what was said about the recipe as it was read"
    )
    environment: Environment = Field(
        default_factory=Environment, description="versions and the machine"
    )
    seconds: dict[str, float] = Field(
        default_factory=dict,
        description="wall time by phase; of a whole run they add up to nearly all of the process's",
    )
    peak_memory_bytes: int | None = Field(
        None, description="largest resident memory of the process; with a GPU, the GPU's"
    )


class RunReport(Report):
    """Fields of `report.json` and `history.json` of one training run."""

    base: BaseFacts = Field(default_factory=BaseFacts, description="the base model")
    data: DataFacts = Field(default_factory=DataFacts, description="the rows")
    start: Start | None = Field(
        None, description="the adapter or the checkpoint that the run began with; null: none"
    )
    micro_batch: MicroBatchChoice | None = Field(
        None, description="null where training.micro_batch is unset"
    )
    resumed: list[Resumption] = Field(
        default_factory=list,
        description="processes after the first one; seconds and memory are those of the last",
    )
    steps: int | None = Field(None, description="optimiser steps taken")
    skipped_steps: int = Field(
        0, description="optimiser steps left out, by mixed precision or as not finite"
    )
    non_finite_steps: list[int] = Field(default_factory=list)
    best_step: int | None = Field(None, description="the step whose checkpoint was chosen")
    history: list[dict[str, Any]] = Field(default_factory=list)
    live_components: list[int] = Field(default_factory=list)
    compaction: Compaction | None = Field(None, description="null where none was asked for")
    method_details: dict[str, Any] = Field(
        default_factory=dict, description="what the method itself reports, such as revivals"
    )
    metrics: dict[str, dict[str, Score]] = Field(
        default_factory=dict, description="final scores by reported split"
    )
    main_metric: str | None = Field(None, description="the metric that chose the checkpoint")
    without_adapters: dict[str, Score] = Field(
        default_factory=dict, description="the main metric with the adapters left out, by split"
    )
    ranks: dict[str, Ranks] = Field(default_factory=dict, description="by module")
    parameters: Parameters = Field(default_factory=Parameters, description="numbers of parameters")
    events: list[str] = Field(default_factory=list, description="what a person should know")
    verification: FileFacts = Field(
        default_factory=FileFacts,
        description="how the files compare with the trained model; empty if they were not compared",
    )
    digests: dict[str, str] = Field(
        default_factory=dict,
        description="of the result, by its directory (adapter, delta or model): SHA-256 of weights "
        "and configuration, or a whole model's fingerprint; and of files in it that decide answers "
        "beside the weights (sora.json: its labels and the like); fewer in older reports",
    )

    @property
    def steps_before(self) -> int:
        """Optimiser steps taken before this process; its `seconds` count the later steps only."""
        if self.resumed:
            return self.resumed[-1].step
        return (self.start.step or 0) if self.start is not None else 0


class History(BaseModel):
    """`history.json`: the fields of a run's report that grow with its steps or components."""

    started: str = Field(description="as in the report that it belongs to")
    history: list[dict[str, Any]] = Field(
        default_factory=list, description="losses, learning rates and scores as they were logged"
    )
    live_components: list[int] = Field(
        default_factory=list, description="components alive after each optimiser step"
    )
    non_finite_steps: list[int] = Field(
        default_factory=list,
        description="steps left out for a loss or gradient that was not finite; from 1",
    )
    removals: list[Removal] = Field(
        default_factory=list, description="what compaction took out, or would have"
    )
    method_details: dict[str, Any] = Field(
        default_factory=dict, description="lists and objects that the method itself reports"
    )

    @classmethod
    def of(cls, report: RunReport) -> History:
        """Copy the growing fields of a report."""
        details = report.method_details.items()
        return cls(
            started=report.started,
            **{name: getattr(report, name) for name in _GROWING},
            removals=report.compaction.removals if report.compaction else [],
            method_details={key: v for key, v in details if isinstance(v, dict | list)},
        )

    def fill(self, report: RunReport) -> None:
        """Copy the fields back into their report."""
        for name in _GROWING:
            setattr(report, name, getattr(self, name))
        if report.compaction is not None:
            report.compaction.removals = self.removals
        report.method_details.update(self.method_details)

    def fields_of_report(self) -> dict[str, Any]:
        """Return the fields to leave out of `report.json`, for pydantic's `exclude`."""
        whole: dict[str, Any] = dict.fromkeys(_GROWING, True)
        return whole | {"compaction": {"removals"}, "method_details": set(self.method_details)}


def read_report(directory: Path) -> RunReport | None:
    """Return the report of a run directory; None if there is none, or if it is no valid report.

    Raises:
        OSError: the file exists and cannot be read.
    """
    try:
        return load_report(directory / FILE_NAME)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError):
        return None


def load_report(file: Path) -> RunReport:
    """Read a report of any version; add `history.json` beside it if both are of the same run.

    Raises:
        OSError: the report cannot be read.
        ValidationError: the file is not a run's report.
    """
    report = RunReport.model_validate_json(file.read_bytes())
    with suppress(OSError, ValueError):  # without its history it is a report all the same
        history = History.model_validate_json(file.with_name(HISTORY_FILE).read_bytes())
        if history.started == report.started:
            history.fill(report)
    return report


def now(later: float = 0.0) -> str:
    """Return the current time, plus `later` seconds, as ISO text in UTC."""
    return (datetime.now(UTC) + timedelta(seconds=later)).isoformat(timespec="seconds")
