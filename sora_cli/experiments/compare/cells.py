"""The columns of a comparison: what each holds, and how its values are shown to people."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sora_cli.core.console import count, size
from sora_cli.experiments.compare.runs import Group, Run
from sora_cli.experiments.compare.stats import Difference, summary

Raw = str | int | float | list[int] | list[float] | None
NONE = "\N{EN DASH}"
DIFFERENCE, SIMPLE = "difference", "simple_difference"
"""Keys of the differences to the baseline, and to the strongest simple method of a budget."""
_ENDS = {f"{key}_{end}" for key in (DIFFERENCE, SIMPLE) for end in ("low", "high")}
_SCORES = {"std", "best", "median", "paper", *_ENDS}


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        key: for programs.
        title: for people.
        about: what it holds, and in which unit the raw value is.
        raw_only: left out where people read it.
    """

    key: str
    title: str
    about: str
    raw_only: bool = False


@dataclass(frozen=True)
class Cell:
    """A value and how it is shown."""

    raw: Raw
    shown: str


LABEL = Column("label", "method", "what tells the group from the others of its task")
METRIC = (
    Column("task", "task", "the data set's configuration; null: mean over all tasks", True),
    Column("method", "method's name", "method.name of the recipe", True),
    LABEL,
    Column("n", "n", "runs"),
    Column("seeds", "seeds", "training.seed of each run", True),
    Column("metric_name", "metric's name", "the metric compared", True),
    Column("split", "split", "the rows it was measured on", True),
    Column("metric", "mean ± std", "mean of the metric over the runs, in its own unit"),
    Column("std", "std", "sample standard deviation (n - 1) of the metric", True),
    Column("best", "best", "best of the metric over the runs"),
    Column("median", "median", "median of the metric over the runs"),
    Column("values", "values", "the metric of each run, in the order of seeds", True),
)
PAPER = (Column("paper", "paper", "what the paper prints, in the metric's own unit"),)
COST = (
    Column("parameters", "parameters", "mean numbers learned beside the head that are left"),
    Column("components", "kept", "mean share of the components at the start that are alive"),
    Column("mean_rank", "rank", "mean components alive per adapted module"),
    Column("seconds", "seconds", "mean wall time of a whole run"),
    Column("training_seconds", "training", "mean seconds of the optimiser steps alone"),
    Column("memory", "memory", "mean peak memory, bytes"),
)
_AVERAGED = ("metric", "best", "median", *(column.key for column in COST))


def difference_columns(baseline: str, *, key: str = DIFFERENCE) -> tuple[Column, ...]:
    """Return the columns that `difference_values` fills under the same key."""
    pair = "metric minus the baseline's, mean over common seeds"
    return (
        Column(key, f"minus {baseline}", f"{pair} ({baseline})"),
        Column(f"{key}_low", "low", "lower end of its 95 % interval", True),
        Column(f"{key}_high", "high", "upper end of its 95 % interval", True),
        Column(f"{key}_n", "pairs", "common seeds, over all tasks together", True),
    )


def difference_values(difference: Difference | None, *, key: str = DIFFERENCE) -> dict[str, Raw]:
    """Return the raw values of the columns of a difference."""
    d = difference
    mean, low, high, n = (None, None, None, 0) if d is None else (d.mean, d.low, d.high, d.n)
    return {key: mean, f"{key}_low": low, f"{key}_high": high, f"{key}_n": n}


def group_values(group: Group) -> dict[str, Raw]:
    """Return the raw values of a group's row."""
    first, runs = group.first, group.runs
    score = summary(group.metrics, greater_is_better=first.greater_is_better)
    timed = [run for run in runs if not run.report.resumed]
    return {
        "task": group.task,
        "method": group.method,
        "label": group.label,
        "n": score.n,
        "seeds": [run.seed for run in runs],
        "metric_name": first.metric_name,
        "split": first.split,
        "metric": score.mean,
        "std": score.std,
        "best": score.best,
        "median": score.median,
        "values": group.metrics,
        "parameters": _mean([run.parameters for run in runs]),
        "components": _mean([_share(run) for run in runs]),
        "mean_rank": _mean([run.mean_rank for run in runs]),
        "seconds": _mean([run.seconds for run in timed]),
        "training_seconds": _mean([run.training_seconds for run in timed]),
        "memory": _mean([run.report.peak_memory_bytes for run in timed]),
    }


def average_values(rows: Sequence[Mapping[str, Raw]]) -> dict[str, Raw]:
    """Return the mean over tasks of one label's rows; None where a task has no value."""
    first = rows[0]
    means: dict[str, Raw] = {key: _mean([_number(row[key]) for row in rows]) for key in _AVERAGED}
    runs = sum(int(_number(row["n"]) or 0) for row in rows)
    return {**dict.fromkeys(first), "method": first["method"], "label": first["label"], "n": runs,
            **means}  # fmt: skip


def shown_cell(key: str, values: Mapping[str, Raw], *, percent: bool) -> Cell:
    """Return a cell of a row.

    Args:
        values: raw values of the whole row.
        percent: show the metric times 100.
    """
    raw = values.get(key)
    if key in (DIFFERENCE, SIMPLE):
        return Cell(raw, _difference(key, values, percent))
    if key == "metric":
        std = _number(values["std"])
        spread = "" if std is None else f" ± {score(std, percent)}"
        alone = f" ± {NONE}" if values["n"] == 1 else spread
        return Cell(raw, f"{score(_number(raw), percent)}{alone}")
    if key in _SCORES:
        return Cell(raw, score(_number(raw), percent))
    number = _number(raw)
    if number is None:
        return Cell(raw, NONE if raw is None else str(raw))
    match key:
        case "parameters" | "n":
            return Cell(raw, count(number))
        case "components":
            return Cell(raw, f"{number:.0%}")
        case "mean_rank":
            return Cell(raw, f"{number:.2f}")
        case "memory":
            return Cell(raw, size(number))
        case "seconds" | "training_seconds":
            return Cell(raw, f"{number:.1f}" if number < 100 else count(number))
    return Cell(raw, str(raw))


def score(value: float | None, percent: bool, sign: str = "") -> str:
    """Show a metric as papers print it: times 100 with two decimals, or else with four."""
    if value is None:
        return NONE
    return f"{100 * value:{sign}.2f}" if percent else f"{value:{sign}.4f}"


def _difference(key: str, values: Mapping[str, Raw], percent: bool) -> str:
    """Show mean, interval and pairs: "+0.41 [-0.10, +0.93] (5)"."""
    mean, low, high = (_number(values.get(name)) for name in (key, f"{key}_low", f"{key}_high"))
    if mean is None:
        return NONE
    ends = "" if low is None else f" [{score(low, percent, '+')}, {score(high, percent, '+')}]"
    return f"{score(mean, percent, '+')}{ends} ({values[f'{key}_n']})"


def _mean(values: Sequence[float | None]) -> float | None:
    """Return the mean; None if a value is None, or there is none."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known and len(known) == len(values) else None


def _share(run: Run) -> float | None:
    kept = run.components
    return kept.live / kept.start if kept.start else None


def _number(raw: Raw) -> float | None:
    return float(raw) if isinstance(raw, int | float) else None
