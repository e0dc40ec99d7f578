"""The run report: `report.json` says what was run, on what, and what came out, on about a page.

What has an entry for each step or component, such as losses, stands beside it in `history.json`.
`sora_cli.train.log` writes the two during a run; `sora_cli.run` fills in scores and ranks.
"""

from __future__ import annotations

import math
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

FILE_NAME = "report.json"
HISTORY_FILE = "history.json"
PAGE_FILE = "report.html"
SCHEMA_VERSION = 2
"""1: everything was in `report.json`; such reports are read as ever."""
MOVE_AWAY = "move it away, or train elsewhere: output.dir=DIR"
"""The hint beside a damaged record of a directory that is to be trained in."""
_GROWING = ("history", "live_components", "non_finite_steps")  # all of them in history.json

Status = Literal["running", "completed", "failed", "interrupted"]

Score = Annotated[float, BeforeValidator(lambda v: math.nan if v is None else v)]
"""A metric; JSON has no NaN, which is written as null."""


class Ranks(BaseModel):
    """Numbers of components of one module."""

    start: int = Field(description="before the training")
    end: int = Field(description="in the saved adapter")


class Parameters(BaseModel):
    """Numbers of parameters, counted from real shapes; gates count in `trained` only."""

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
    """Dead components that were taken out after one step."""

    step: int = Field(description="optimiser steps taken by then")
    removed: int = Field(description="components taken out")
    left: int = Field(description="components in the layers afterwards, dead ones among them")


class Compaction(BaseModel):
    """The effect of `training.compact_every`; with `compact_only_count`, a forecast of it."""

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
        """Components removed, in all."""
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
    """The micro-batches that `training.micro_batch: auto` chose; bytes are of the main process."""

    rows: int = Field(description="of a forward pass and process")
    parts: int = Field(description="micro-batches to a step and process: gradient_accumulation")
    predicted: float | None = Field(None, description="bytes at the peak of a step")
    available: float | None = Field(None, description="bytes that the run might take in all")
    failed: list[int] = Field(default_factory=list, description="rows that memory ran out with")


class Start(BaseModel):
    """The place where a run's weights began, if not at the method's own start."""

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
        """Return the line that a run's output has on it."""
        if self.step is not None:
            return f"forked from {self.directory} after step {self.step}"
        stored = sum(m.start for m in self.ranks.values())
        kept = sum(m.end for m in self.ranks.values())
        by = "".join(f", cut by {name} {value:g}" for name, value in self.rule.items())
        return f"started from {self.directory}: {kept:,} of its {stored:,} components{by}"


class Resumption(BaseModel):
    """A later process that resumed a run."""

    step: int = Field(description="optimiser steps taken before, by earlier processes")
    started: str = Field(description="date and time, UTC")


class Report(BaseModel):
    """The fields of every report. Unknown keys of later versions are ignored on reading."""

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
    environment: dict[str, Any] = Field(
        default_factory=dict,
        description="versions of Python and packages, platform, processor, cpus, threads, gpu, "
        "git_commit",
    )
    seconds: dict[str, float] = Field(
        default_factory=dict,
        description="wall time by phase; of a whole run they add up to nearly all of the process's",
    )
    peak_memory_bytes: int | None = Field(
        None, description="largest resident memory of the process; with a GPU, the GPU's"
    )


class RunReport(Report):
    """The fields of `report.json` and `history.json` of one training run."""

    base: dict[str, Any] = Field(
        default_factory=dict,
        description="the base model: path, resolved, revision, fingerprint of its weights; "
        "attention (the implementation that it ran with), missing (parameters that it did not "
        "supply), head (modules trained beside the adapters)",
    )
    data: dict[str, Any] = Field(
        default_factory=dict,
        description="by split: rows, encoded (rows after encoding), fingerprints, truncated (rows "
        "that were cut), longest (tokens), in_training (rows that are training rows, too), "
        "contradicted (those of them with another label), classes (rows of each class, or words); "
        "selection (which rows chose the checkpoint), revision",
    )
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
    verification: dict[str, Any] = Field(
        default_factory=dict,
        description="how the files compare with the trained model, as `sora verify --json` says "
        "it: verdict, and by output the share of the adapter's effect and the residual; empty if "
        "they were not compared",
    )
    digests: dict[str, str] = Field(
        default_factory=dict,
        description="of the result, by its directory (adapter, delta or model): SHA-256 of weights "
        "and configuration, or a whole model's fingerprint; and of files in it that decide answers "
        "beside the weights (sora.json: its labels and the like); fewer in older reports",
    )

    @property
    def steps_before(self) -> int:
        """The optimiser steps that this process found taken: its seconds are of those after."""
        if self.resumed:
            return self.resumed[-1].step
        return (self.start.step or 0) if self.start is not None else 0


class History(BaseModel):
    """`history.json`: those fields of a run's report that grow with its steps or components."""

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
        """Take a report's growing fields."""
        details = report.method_details.items()
        return cls(
            started=report.started,
            **{name: getattr(report, name) for name in _GROWING},
            removals=report.compaction.removals if report.compaction else [],
            method_details={key: v for key, v in details if isinstance(v, dict | list)},
        )

    def fill(self, report: RunReport) -> None:
        """Put the fields back into the report that they were taken from."""
        for name in _GROWING:
            setattr(report, name, getattr(self, name))
        if report.compaction is not None:
            report.compaction.removals = self.removals
        report.method_details.update(self.method_details)

    def fields_of_report(self) -> dict[str, Any]:
        """Return what the report leaves out, as pydantic's `exclude`."""
        whole: dict[str, Any] = dict.fromkeys(_GROWING, True)
        return whole | {"compaction": {"removals"}, "method_details": set(self.method_details)}


def read_report(directory: Path) -> RunReport | None:
    """Return the report of a run directory; None if there is none.

    Raises:
        OSError: there is something that the system lets nobody read.
    """
    try:
        return load_report(directory / FILE_NAME)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError):
        return None


def load_report(file: Path) -> RunReport:
    """Read a report of any version, with the history beside it if there is one that belongs to it.

    Raises:
        OSError: the report cannot be read.
        ValidationError: it is no run's report.
    """
    report = RunReport.model_validate_json(file.read_bytes())
    with suppress(OSError, ValueError):  # without its history it is a report all the same
        history = History.model_validate_json(file.with_name(HISTORY_FILE).read_bytes())
        if history.started == report.started:
            history.fill(report)
    return report


def now(later: float = 0.0) -> str:
    """Return the time in so many seconds."""
    return (datetime.now(UTC) + timedelta(seconds=later)).isoformat(timespec="seconds")
