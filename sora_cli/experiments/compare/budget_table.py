"""The tables of a comparison at equal size: one for each budget, and the AURAC over all sizes.

sizes = sizes_of(groups, "lora-r8")
comparison = budget_tables(sizes, parse_budgets("50,15,8"))
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence

from sora_cli.core.console import count
from sora_cli.core.errors import SoraError
from sora_cli.core.table import Cell, Column, Table
from sora_cli.core.words import first_few
from sora_cli.experiments.compare.areas import LEAST, Area, Areas, areas_of
from sora_cli.experiments.compare.cells import (
    LABEL,
    NONE,
    PARAMETERS,
    SIMPLE,
    Raw,
    average_values,
    column,
    difference_columns,
    difference_values,
    group_values,
    row_of,
)
from sora_cli.experiments.compare.notes import difference_note
from sora_cli.experiments.compare.runs import Group, Unit
from sora_cli.experiments.compare.sizes import TOLERANCE, Sized, Sizes, nearest, paired
from sora_cli.experiments.compare.table import Tables

_RANGE = 0.005
"""Shares of runs that differ by this much or more are shown as a range."""
COLUMNS = (
    column("budget", "budget", "share of the baseline's size; null: all sizes", raw=True),
    LABEL,
    column("n", "n", "runs; of a family: pairs of task and seed with all of its sizes", count),
    column("share", "share", "mean share of the baseline's size; null for a family"),
    column("share_low", "smallest", "smallest share of a run, or of a family's labels", raw=True),
    column("share_high", "largest", "largest share of a run, or of a family's labels", raw=True),
    PARAMETERS,
    column("metric", "mean", "mean of the metric over the tasks; of a family: its AURAC"),
)
_BYTES = column("bytes", "bytes", "mean bytes of the stored factors, without the head", count)
_SIMPLE = column("simple", "simple", "label that `simple_difference` is measured from", raw=True)


def parse_budgets(text: str) -> tuple[float, ...]:
    """Parse budgets: "50,15,8" means 50, 15 and 8 % of the baseline's size."""
    try:
        budgets = tuple(float(word.strip().removesuffix("%")) / 100 for word in text.split(","))
    except ValueError:
        budgets = ()
    if not budgets or not all(0 < budget < float("inf") for budget in budgets):
        raise SoraError(
            f"'{text}' is not a list of numbers above 0", where="--budgets",
            hint="give percentages of the baseline's size: --budgets 50,15,8",
        )  # fmt: skip
    if len(set(budgets)) < len(budgets):
        raise SoraError(f"'{text}' has the same budget twice", where="--budgets")
    return budgets


def percent(share: float) -> str:
    """Format a share in per cent, with at most one decimal: "12.5%", "50%"."""
    return f"{100 * share:.1f}".removesuffix(".0") + "%"


def groups_near_budgets(sizes: Sizes, budgets: Sequence[float]) -> list[Group]:
    """Return the groups of all labels that belong to some budget, task by task."""
    labels = [label for label in sizes.labels if nearest(label.share, budgets) is not None]
    return [label.groups[task] for task in sizes.tasks for label in labels]


def budget_tables(sizes: Sizes, budgets: Sequence[float]) -> Tables:
    """Build a table of labels for each budget, then a table of families over all sizes.

    The table of a budget holds the labels with a share near this budget, and always the baseline
    and the strongest simple label.
    """
    baseline = sizes.baseline.label
    counted = [_BYTES if c is PARAMETERS and sizes.unit == "bytes" else c for c in COLUMNS]
    columns = (*counted, *difference_columns(baseline), _SIMPLE,
               *difference_columns("simple", key=SIMPLE))  # fmt: skip
    tables: dict[str | None, Table] = {}
    for budget in budgets:
        simple = sizes.strongest_simple(budget)
        rows = [_label_values(sizes, label, simple) | {"budget": budget}
                for label in _members(sizes, budget, budgets, simple)]  # fmt: skip
        tables[percent(budget)] = _table(_caption(sizes, budget, simple), columns, rows, sizes)
    areas = areas_of(sizes)
    if areas.areas:
        best = _best_simple(areas, sizes)
        sign = 1 if sizes.greater_is_better else -1
        ordered = sorted(areas.areas, key=lambda area: -sign * area.mean)
        rows = [_area_values(sizes, area, best) for area in ordered]
        tables[None] = _table(_area_caption(sizes, areas, best), columns, rows, sizes)
    notes = [*_notes(sizes, budgets), *_area_notes(areas, sizes.unit), difference_note(baseline)]
    return Tables(tables, tuple(notes), baseline, by="budget")


def _table(
    title: str, columns: Sequence[Column], rows: Sequence[dict[str, Raw]], sizes: Sizes
) -> Table:
    shown = (values | {"share": Cell(values.get("share"), _share_text(values))} for values in rows)
    return Table(title, columns, [row_of(columns, v, percent=sizes.percent) for v in shown])


def _members(
    sizes: Sizes, budget: float, budgets: Sequence[float], simple: Sized | None
) -> list[Sized]:
    """Return the labels of a table: first the baseline, then the others from best to worst."""
    here = [label for label in sizes.labels if nearest(label.share, budgets) == budget]
    here += [simple] if simple is not None and simple not in here else []
    others = [label for label in here if label is not sizes.baseline]
    sign = 1 if sizes.greater_is_better else -1

    def key(label: Sized) -> float:
        difference = label.minus(sizes.baseline)
        return float("inf") if difference is None else -sign * difference.mean

    return [sizes.baseline, *sorted(others, key=key)]


def _label_values(sizes: Sizes, label: Sized, simple: Sized | None) -> dict[str, Raw]:
    values = average_values([group_values(group) for group in label.groups.values()])
    low, high = label.reach
    values |= {"share": label.share, "share_low": low, "share_high": high,
               "bytes": statistics.fmean(g.size("bytes") for g in label.groups.values()),
               "simple": None if simple is None else simple.label}  # fmt: skip
    if label is not sizes.baseline:
        values |= difference_values(label.minus(sizes.baseline))
    if simple is not None and label is not simple:
        values |= difference_values(label.minus(simple), key=SIMPLE)
    return values


def _area_values(sizes: Sizes, area: Area, simple: Area | None) -> dict[str, Raw]:
    values: dict[str, Raw] = {
        "label": area.family,
        "n": sum(map(len, area.scores.values())),
        "share_low": area.reach[0],
        "share_high": area.reach[1],
        "metric": area.mean,
        "std": None,
        "simple": None if simple is None else simple.family,
        **difference_values(paired(area.scores, sizes.baseline.scores)),
    }
    if simple is not None and area is not simple:
        values |= difference_values(paired(area.scores, simple.scores), key=SIMPLE)
    return values


def _best_simple(areas: Areas, sizes: Sizes) -> Area | None:
    """Return the simple family with the best mean difference to the baseline."""
    sign = 1 if sizes.greater_is_better else -1
    differences = [(area, paired(area.scores, sizes.baseline.scores))
             for area in areas.areas if area.is_simple]  # fmt: skip
    known = [(sign * d.mean, area) for area, d in differences if d is not None]
    return max(known, key=lambda pair: pair[0])[1] if known else None


def _share_text(values: Mapping[str, Raw]) -> str:
    mean, low, high = (values.get(key) for key in ("share", "share_low", "share_high"))
    if not isinstance(low, float) or not isinstance(high, float):
        return NONE
    reach = f"{percent(low)} to {percent(high)}"
    if not isinstance(mean, float):
        return reach
    return percent(mean) if high - low < _RANGE else f"{percent(mean)} ({reach})"


def _caption(sizes: Sizes, budget: float, simple: Sized | None) -> str:
    """Return a caption: "15% of lora-r8: mean over 3 tasks, x 100; simple: lora-r1 (12.5%)"."""
    best = "none" if simple is None else f"{simple.label} ({percent(simple.share)})"
    size = f"{percent(budget)} of {sizes.baseline.label} ({_window(budget)})"
    return f"{size}: {_mean(sizes)}; simple: {best}"


def _area_caption(sizes: Sizes, areas: Areas, simple: Area | None) -> str:
    over = f"{percent(areas.low)} to {percent(areas.high)} of {sizes.baseline.label}"
    best = "none" if simple is None else simple.family
    return f"AURAC, all sizes from {over}: {_mean(sizes)}; simple: {best}"


def _mean(sizes: Sizes) -> str:
    n = len(sizes.tasks)
    times = ", x 100" if sizes.percent else ""
    worse = "" if sizes.greater_is_better else ", smaller is better"
    over = f"mean over {n} tasks" if n > 1 else sizes.tasks[0]
    return f"{over}{times}{worse}"


def _window(budget: float) -> str:
    return f"{percent(budget / TOLERANCE)} to {percent(budget * TOLERANCE)}"


def _notes(sizes: Sizes, budgets: Sequence[float]) -> Iterator[str]:
    yield from sizes.notes
    baseline = sizes.baseline.label
    yield (
        f"each table has the methods with a share of {baseline}'s {sizes.unit} near its budget "
        f"({1 / TOLERANCE:g} to {TOLERANCE:g} times the budget, which must be the nearest one), "
        f"and always {baseline} and the simple method"
    )
    outside = [f"{label.label} ({percent(label.share)})" for label in sizes.labels
               if label is not sizes.baseline
               and nearest(label.share, budgets) is None]  # fmt: skip
    if outside:
        yield f"in no table, because no budget is near their size: {first_few(outside, 6)}"
    yield (
        "minus simple: difference to the best method that has a fixed rank, does not start from "
        f"another run, and has at most the budget's {sizes.unit} (or the fewest, if all have "
        f"more); best by the mean difference to {baseline}"
    )


def _area_notes(areas: Areas, unit: Unit) -> Iterator[str]:
    if areas.areas:
        yield (
            f"AURAC: mean of the metric over log({unit}), with straight lines between the sizes "
            "of a family (labels that differ only in the number at their end), by task and seed; "
            "its difference to the baseline is to the baseline's metric"
        )
    else:
        yield f"no AURAC: families with {LEAST} sizes or more have no range of sizes in common"
    if areas.areas and areas.left_out:
        yield f"without AURAC, because of fewer than {LEAST} sizes: {first_few(areas.left_out, 12)}"
