"""The columns and rows of a comparison: raw values, and scores formatted for people."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sora_cli.core.console import count, size
from sora_cli.core.table import Cell, Column
from sora_cli.experiments.compare.runs import Group, Run
from sora_cli.experiments.compare.stats import Difference, summary

Raw = str | int | float | list[int] | list[float] | Cell | None
NONE = "\N{EN DASH}"
DIFFERENCE, SIMPLE = "difference", "simple_difference"
"""Keys of the differences to the baseline, and to the strongest simple method of a budget."""
_SCORES = ("best", "median", "paper")


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f}" if seconds < 100 else count(seconds)


def column(
    key: str, title: str, about: str, form: str | Callable[[Any], str] = "", *, raw: bool = False
) -> Column:
    """Return a column of a comparison; `row_of` formats its scores.

    Args:
        about: description for the JSON format.
        form: format of the column's other numbers.
        raw: True for a column that only CSV and JSON contain.
    """
    return Column(title, form, none=NONE, key=key, about=about, raw_only=raw)


LABEL = column("label", "method", "name of the group, unique within its task")
PARAMETERS = column(
    "parameters", "parameters", "mean parameters left in the adapter, without the head", count
)
METRIC = (
    column("task", "task", "data set or its configuration; null: mean over all tasks", raw=True),
    column("method", "method's name", "method.name of the recipe", raw=True),
    LABEL,
    column("n", "n", "runs", count),
    column("seeds", "seeds", "training.seed of each run", raw=True),
    column("metric_name", "metric's name", "the metric compared", raw=True),
    column("split", "split", "the rows it was measured on", raw=True),
    column("metric", "mean ± std", "mean of the metric over the runs, in its own unit"),
    column("std", "std", "sample standard deviation (n - 1) of the metric", raw=True),
    column("best", "best", "best of the metric over the runs"),
    column("median", "median", "median of the metric over the runs"),
    column("values", "values", "the metric of each run, in the order of seeds", raw=True),
)
PAPER = (column("paper", "paper", "value printed in the paper, in the metric's own unit"),)
COST = (
    PARAMETERS,
    column("components", "kept", "mean share of live components, of those at the start", ".0%"),
    column("mean_rank", "rank", "mean number of live components per adapted module", ".2f"),
    column("seconds", "seconds", "mean wall time of a whole run", _seconds),
    column("training_seconds", "training", "mean seconds of the optimiser steps alone", _seconds),
    column("memory", "memory", "mean peak memory, bytes", size),
)
_AVERAGED = ("metric", "best", "median", *(cost.key for cost in COST))


def difference_columns(baseline: str, *, key: str = DIFFERENCE) -> tuple[Column, ...]:
    """Return the columns of a difference to a baseline; `difference_values` fills them."""
    pair = "metric minus the baseline's, mean over common seeds"
    return (
        column(key, f"minus {baseline}", f"{pair} ({baseline})"),
        column(f"{key}_low", "low", "lower end of its 95 % interval", raw=True),
        column(f"{key}_high", "high", "upper end of its 95 % interval", raw=True),
        column(f"{key}_n", "pairs", "common seeds, over all tasks together", raw=True),
    )


def difference_values(difference: Difference | None, *, key: str = DIFFERENCE) -> dict[str, Raw]:
    """Return the raw values for `difference_columns` with the same key."""
    d = difference
    mean, low, high, n = (None, None, None, 0) if d is None else (d.mean, d.low, d.high, d.n)
    return {key: mean, f"{key}_low": low, f"{key}_high": high, f"{key}_n": n}


def group_values(group: Group) -> dict[str, Raw]:
    """Return the raw values of a group's row."""
    first, runs = group.first, group.runs
    score = summary(group.metrics, greater_is_better=first.greater_is_better)
    # the report of a resumed run knows the time and memory of its last process only
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
    """Average the rows of a label over the tasks; a mean is None if one task has no value."""
    first = rows[0]
    means: dict[str, Raw] = {key: _mean([_number(row[key]) for row in rows]) for key in _AVERAGED}
    runs = sum(int(_number(row["n"]) or 0) for row in rows)
    return {**dict.fromkeys(first), "method": first["method"], "label": first["label"], "n": runs,
            **means}  # fmt: skip


def row_of(columns: Sequence[Column], values: Mapping[str, Raw], *, percent: bool) -> list[Raw]:
    """Return a row of cells in the order of the columns; scores get their text here.

    The text of a score depends on other values of the row: its deviation, interval and pairs.

    Args:
        values: raw values of the whole row by key; also `mark`, the mark of a paper's footnote.
        percent: show the metric times 100.
    """
    texts = {key: _difference(key, values, percent) for key in (DIFFERENCE, SIMPLE)}
    texts |= {key: score(_number(values.get(key)), percent) for key in _SCORES}
    texts["paper"] += f" {values['mark']}" if "mark" in values else ""
    std = _number(values["std"])
    spread = "" if std is None else f" ± {score(std, percent)}"
    alone = f" ± {NONE}" if values["n"] == 1 else spread
    texts["metric"] = f"{score(_number(values['metric']), percent)}{alone}"
    row = {c.key: values.get(c.key) for c in columns}
    return [Cell(raw, texts[key]) if key in texts else raw for key, raw in row.items()]


def score(value: float | None, percent: bool, sign: str = "") -> str:
    """Format a metric as papers print it: in percent with two decimals, otherwise with four."""
    if value is None:
        return NONE
    return f"{100 * value:{sign}.2f}" if percent else f"{value:{sign}.4f}"


def _difference(key: str, values: Mapping[str, Raw], percent: bool) -> str:
    """Format mean, interval and pairs of a difference: "+0.41 [-0.10, +0.93] (5)"."""
    mean, low, high = (_number(values.get(name)) for name in (key, f"{key}_low", f"{key}_high"))
    if mean is None:
        return NONE
    ends = "" if low is None else f" [{score(low, percent, '+')}, {score(high, percent, '+')}]"
    return f"{score(mean, percent, '+')}{ends} ({values[f'{key}_n']})"


def _mean(values: Sequence[float | None]) -> float | None:
    """Return the mean; None if a value is None, or without values."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known and len(known) == len(values) else None


def _share(run: Run) -> float | None:
    kept = run.components
    return kept.live / kept.start if kept.start else None


def _number(raw: Raw) -> float | None:
    return float(raw) if isinstance(raw, int | float) else None
