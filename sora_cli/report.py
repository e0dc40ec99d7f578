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
_GROWING = ("history", "live_components", "non_finite_steps")  # written to history.json

Status = Literal["running", "completed", "failed", "interrupted"]

Score = Annotated[float, BeforeValidator(lambda v: math.nan if v is None else v)]
"""A metric; JSON has no NaN, which is written as null."""


class Ranks(BaseModel):
    """Rank of one module before and after training."""

    start: int = Field(description="components before training")
    end: int = Field(description="components in the saved adapter")


class Parameters(BaseModel):
    """Numbers of parameters, counted from tensor shapes; gates count in `trained` only."""

    base: int = Field(0, description="all parameters of the base model, with its head")
    trained: int = Field(0, description="all parameters with a gradient: factors, gates, head")
    adapter_start: int = Field(
        0,
        description="factors at the start: sum of r (in + out); of a baseline, its trained "
        "parameters outside the head",
    )
    adapter_end: int = Field(
        0, description="factors of the saved adapter; of a baseline, the same as at the start"
    )
    adapter_bytes: int | None = Field(
        None,
        description="bytes of the saved factors: of rounded ones their integers and scales, of "
        "others 4 for each number; null: not known (an older run)",
    )
    head: int = Field(0, description="parameters of the trained head")


class Removal(BaseModel):
    """Dead components that were removed after one step."""

    step: int = Field(description="optimiser steps before the removal")
    removed: int = Field(description="number of removed components")
    left: int = Field(description="components in the layers afterwards, dead ones included")


class Compaction(BaseModel):
    """The effect of `training.compact_every`; with `compact_only_count`, its forecast."""

    every: int = Field(description="optimiser steps between two removals")
    only_count: bool = Field(description="true: nothing was removed, only counted")
    removals: list[Removal] = Field(default_factory=list, description="in history.json")
    would_have_revived: int | None = Field(
        None,
        description="components counted as removed whose gate was later not zero; null if they "
        "were really removed, because then nobody can know",
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
            f"or more; unlike a gate at zero, a removed component cannot come back (to count "
            f"those that would: training.compact_only_count=true)"
        )


class MicroBatchChoice(BaseModel):
    """The choice of `training.micro_batch: auto`; bytes are those of the main process."""

    rows: int = Field(description="rows of a forward pass in each process")
    parts: int = Field(description="micro-batches per step in each process: gradient_accumulation")
    predicted: float | None = Field(None, description="predicted bytes at the peak of a step")
    available: float | None = Field(None, description="bytes available to the run in all")
    failed: list[int] = Field(
        default_factory=list, description="numbers of rows that ran out of memory"
    )


_WAYS = {"rule": "rule of thumb", "fork": "fork"}


class RateChoice(BaseModel):
    """The choice of `training.learning_rate: auto`."""

    chosen: float = Field(description="peak rate of the run")
    how: Literal["rule", "fork"] = Field(
        description="rule: the rule of thumb; fork: the number in the recipe of the run that this "
        "one continues"
    )
    reason: str = Field(description="reason of the choice, in words")

    def value(self) -> str:
        """Return the recipe's word and its number, for cards and pages."""
        return f"auto: {self.chosen:g}"

    @property
    def way(self) -> str:
        """The way in which the number was found, in words."""
        return _WAYS[self.how]


class Start(BaseModel):
    """The adapter or checkpoint at the start of a run."""

    directory: str = Field(description="directory of the adapter or checkpoint, as in the recipe")
    digest: str = Field(description="SHA-256 of the files there")
    step: int | None = Field(
        None,
        description="with a checkpoint: optimiser steps taken before; they count as this run's. "
        "null: an adapter",
    )
    rule: dict[str, float] = Field(
        default_factory=dict,
        description="the rule that cut the adapter before the first step; empty: none",
    )
    bits: int | None = Field(
        None, description="bits that the adapter's numbers were rounded to; null: not rounded"
    )
    head: int = Field(
        0, description="with an adapter: numbers taken over in full, such as the head"
    )
    ranks: dict[str, Ranks] = Field(
        default_factory=dict,
        description="with an adapter, by module: components at the start of the adapter's own "
        "training (stored components, if that is not known), and components at the start of this "
        "run",
    )
    replaced: int | None = Field(
        None,
        description="with an adapter: components that the method's options give without it",
    )

    def sentence(self) -> str:
        """Return the line on the start for the run's output."""
        if self.step is not None:
            return f"forked from {self.directory} after step {self.step}"
        stored = sum(m.start for m in self.ranks.values())
        kept = sum(m.end for m in self.ranks.values())
        by = "".join(f", cut by {name} {value:g}" for name, value in self.rule.items())
        by += "" if self.bits is None else f", rounded to {self.bits} bits"
        text = f"started from {self.directory}: {kept:,} of its {stored:,} components{by}"
        if self.replaced in (None, kept) or self.rule:
            return text
        return f"{text}; the recipe's rank, which would give {self.replaced:,}, is not used"


class Resumption(BaseModel):
    """A process that resumed a run."""

    step: int = Field(description="optimiser steps taken by earlier processes")
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

    sora: str | None = Field(None, description="version of sora")
    python: str | None = Field(None, description="version of Python")
    torch: _Version = None
    transformers: _Version = None
    datasets: _Version = None
    evaluate: _Version = None
    accelerate: _Version = None
    safetensors: _Version = None
    platform: str | None = Field(None, description="operating system with its version")
    processor: str | None = Field(None, description="name or kind of the processor")
    cpus: int | None = Field(None, description="number of CPUs of the machine")
    threads: int | None = Field(None, description="number of torch's threads")
    gpu: str | None = Field(None, description="name of the GPU; null: none")
    git_commit: str | None = Field(None, description="commit of the checkout; null: not a checkout")


class BaseFacts(Facts):
    """The base model of a run."""

    path: str | None = Field(None, description="model.path of the recipe")
    resolved: str | None = Field(None, description="local path of the model, or its Hub id")
    revision: str | None = Field(None, description="branch, tag or commit on the Hub")
    fingerprint: str | None = Field(None, description="fingerprint of its weights")
    hub_id: str | None = Field(None, description="Hub id, if known")
    attention: str | None = Field(None, description="implementation of attention in this run")
    missing: list[str] = Field([], description="parameters that were missing in its checkpoint")
    head: list[str] = Field([], description="modules trained besides the adapters")
    reference: str | None = Field(
        None,
        description="of preferences: the adapter directory that rewards are measured against, or "
        "'base', the base model alone; null: no rewards, or none with a reference",
    )
    reference_digest: str | None = Field(None, description="SHA-256 of that adapter's files")


class DataFacts(Facts):
    """The rows of a run, by split."""

    rows: dict[str, int] = Field({}, description="number of rows")
    encoded: dict[str, int] = Field({}, description="number of rows after encoding")
    fingerprints: dict[str, str] = Field({}, description="fingerprint of the content")
    truncated: dict[str, int] = Field({}, description="number of rows that were cut")
    longest: dict[str, int] = Field({}, description="tokens of the longest row before it is cut")
    in_training: dict[str, int] = Field(
        {}, description="number of rows that are also training rows"
    )
    contradicted: dict[str, int] = Field(
        {}, description="number of these rows that have another label in training"
    )
    classes: dict[str, dict[str, int]] = Field(
        {}, description="number of rows (or words) of each class"
    )
    selection: str | None = Field(None, description="the rows that chose the checkpoint, in words")
    revision: str | None = Field(
        None, description="branch, tag or commit of the data set on the Hub"
    )


class FileFacts(Facts):
    """Comparison of a run's files with the trained model, in the layout of `sora verify --json`."""

    inputs: str | None = Field(None, description="the inputs of both models, in words")
    effect: float | None = Field(
        None, description="relative difference that the adapter makes; null without an adapter"
    )
    effects: list[dict[str, Any]] = Field(
        [],
        description="by output, and of the hidden states: the share of the adapter's effect that "
        "is present, and the residual",
    )
    tolerance: float | None = Field(None, description="largest relative difference allowed")
    tolerance_from: str | None = Field(None, description="source of the tolerance")
    notes: list[str] = Field([], description="notes for the user")
    outputs: list[dict[str, Any]] = Field([], description="differences of each output")
    relative: float | None = Field(None, description="largest relative difference found")
    verdict: str | None = Field(None, description="same, DIFFERENT or cannot tell")
    reason: str | None = Field(None, description="reason of a verdict other than same")
    same: bool | None = Field(None, description="true: the verdict is same")


class Report(BaseModel):
    """Fields of every report; unknown keys of later versions are ignored on reading."""

    model_config = ConfigDict(extra="ignore", validate_assignment=True)

    schema_version: int = Field(SCHEMA_VERSION, description="number of the report's layout")
    status: Status = Field("running", description="state of the run")
    error: str | None = Field(None, description="reason of a failure or an interruption")
    name: str = Field(description="name of the recipe")
    command: list[str] = Field(
        default_factory=list, description="the command as typed, word by word"
    )
    started: str = Field("", description="date and time, UTC")
    finished: str | None = Field(None, description="date and time, UTC; null: still running")
    recipe: dict[str, Any] = Field(description="all values of the recipe, with defaults")
    recipe_notes: list[str] = Field(
        default_factory=list, description="notes on the recipe from loading it"
    )
    environment: Environment = Field(
        default_factory=Environment, description="versions and machine"
    )
    seconds: dict[str, float] = Field(
        default_factory=dict,
        description="wall time by phase, in seconds; in a complete run the phases add up to nearly "
        "all of the process's time",
    )
    peak_memory_bytes: int | None = Field(
        None, description="largest resident memory of the process; with a GPU, largest GPU memory"
    )


class RunReport(Report):
    """Fields of `report.json` and `history.json` of one training run."""

    base: BaseFacts = Field(default_factory=BaseFacts, description="the base model")
    data: DataFacts = Field(default_factory=DataFacts, description="the rows")
    start: Start | None = Field(
        None, description="the adapter or checkpoint at the start of the run; null: none"
    )
    micro_batch: MicroBatchChoice | None = Field(
        None, description="the choice of training.micro_batch; null: unset"
    )
    learning_rate: RateChoice | None = Field(
        None, description="the choice of training.learning_rate; null: a number of the recipe"
    )
    resumed: list[Resumption] = Field(
        default_factory=list,
        description="later processes that resumed the run; seconds and memory are those of the "
        "last process",
    )
    steps: int | None = Field(None, description="number of optimiser steps")
    skipped_steps: int = Field(
        0, description="number of optimiser steps left out, by mixed precision or as not finite"
    )
    non_finite_steps: list[int] = Field(default_factory=list)
    best_step: int | None = Field(None, description="step of the chosen checkpoint")
    history: list[dict[str, Any]] = Field(default_factory=list)
    live_components: list[int] = Field(default_factory=list)
    compaction: Compaction | None = Field(
        None, description="result of training.compact_every; null: unset"
    )
    method_details: dict[str, Any] = Field(
        default_factory=dict, description="the method's own figures, such as revivals"
    )
    metrics: dict[str, dict[str, Score]] = Field(
        default_factory=dict, description="final scores, by validation split"
    )
    main_metric: str | None = Field(None, description="metric that chose the checkpoint")
    without_adapters: dict[str, Score] = Field(
        default_factory=dict, description="the main metric without the adapters, by split"
    )
    ranks: dict[str, Ranks] = Field(default_factory=dict, description="ranks by module")
    parameters: Parameters = Field(default_factory=Parameters, description="numbers of parameters")
    events: list[str] = Field(default_factory=list, description="notes for the user")
    verification: FileFacts = Field(
        default_factory=FileFacts,
        description="comparison of the files with the trained model; empty: not compared",
    )
    digests: dict[str, str] = Field(
        default_factory=dict,
        description="digests of the result by its directory (adapter, delta or model): SHA-256 of "
        "weights and configuration, or a whole model's fingerprint; also of other files that "
        "affect answers (sora.json, with its labels). Older reports have fewer",
    )
    former: dict[str, str] = Field(
        default_factory=dict,
        description="digests of an earlier run's result in this directory, which stays until this "
        "run's result is there",
    )

    @property
    def steps_before(self) -> int:
        """Optimiser steps taken before this process; its `seconds` count the later steps only."""
        if self.resumed:
            return self.resumed[-1].step
        return (self.start.step or 0) if self.start is not None else 0


class History(BaseModel):
    """`history.json`: the fields of a run's report that grow with its steps or components."""

    started: str = Field(description="as in the report of the same run")
    history: list[dict[str, Any]] = Field(
        default_factory=list, description="logged losses, learning rates and scores"
    )
    live_components: list[int] = Field(
        default_factory=list, description="components alive after each optimiser step"
    )
    non_finite_steps: list[int] = Field(
        default_factory=list,
        description="steps left out because a loss or gradient was not finite; counted from 1",
    )
    removals: list[Removal] = Field(
        default_factory=list, description="removals by compaction, or forecasts of them"
    )
    method_details: dict[str, Any] = Field(
        default_factory=dict, description="lists and objects among the method's own figures"
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


def read_report(directory: str | Path) -> RunReport | None:
    """Return the report of a run directory; None if there is none, or if it is no valid report.

    Raises:
        OSError: the file exists and cannot be read.
    """
    try:
        return load_report(Path(directory) / FILE_NAME)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError):
        return None


def recipe_of_run(directory: str | Path) -> dict[str, Any] | None:
    """Return the resolved recipe of the run in a directory; None if there is no run."""
    report = read_report(directory)
    return None if report is None else report.recipe


def load_report(file: str | Path) -> RunReport:
    """Read a report of any version; add `history.json` beside it if both are of the same run.

    Raises:
        OSError: the report cannot be read.
        ValidationError: the file is not a run's report.
    """
    file = Path(file)
    report = RunReport.model_validate_json(file.read_bytes())
    with suppress(OSError, ValueError):  # a report without its history is still useful
        history = History.model_validate_json(file.with_name(HISTORY_FILE).read_bytes())
        if history.started == report.started:
            history.fill(report)
    return report


def now(later: float = 0.0) -> str:
    """Return the current time, plus `later` seconds, as ISO text in UTC."""
    return (datetime.now(UTC) + timedelta(seconds=later)).isoformat(timespec="seconds")
