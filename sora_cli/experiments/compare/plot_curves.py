"""Ablations as curves: metric and parameters against the setting that varies."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sora_cli.core.figures import (
    INK,
    QUIET,
    arrange,
    colour,
    finish,
    new_figure,
    plain,
    short_number,
)
from sora_cli.experiments.compare.grouping import by_task, differing, frozen
from sora_cli.experiments.compare.plot_style import (
    MARKERS,
    Scale,
    Spread,
    metric_axis,
    metric_spread,
    parameter_spread,
    percent_factor,
)
from sora_cli.experiments.compare.runs import Group

_SIZE = 3.9, 2.5
"""Width and height of a panel, inches."""
_MOST = 16
"""Rows of panels in a figure."""
_CURVES = 8
"""Curves in a panel."""
_LEGEND = 60
"""Characters that fit in a row of the legend, about; the line and gaps of an entry count as 7."""


@dataclass(frozen=True)
class Curve:
    """Groups of one task and method that differ in one numeric setting.

    Attributes:
        points: value of the setting -> group, ascending.
        name: the other settings that distinguish this curve in its panel; "" for a single curve.
    """

    points: Mapping[float, Group]
    name: str


@dataclass(frozen=True)
class Ablation:
    """All curves of a task and method over the same setting, such as "method.threshold"."""

    task: str
    method: str
    key: str
    curves: tuple[Curve, ...]

    @property
    def groups(self) -> list[Group]:
        """The groups of all curves."""
        return [group for curve in self.curves for group in curve.points.values()]


def find_ablations(groups: Sequence[Group]) -> list[Ablation]:
    """Find curves by task and method: groups that differ in a single numeric setting."""
    ablations = []
    for task, members in by_task(groups).items():
        for method in dict.fromkeys(group.method for group in members):
            same = [group for group in members if group.method == method]
            keys = differing([group.settings for group in same])
            for key in keys:
                curves = _curves(same, key, [other for other in keys if other != key])
                if curves:
                    ablations.append(Ablation(task, method, key, curves))
    return ablations


def draw_curves(groups: Sequence[Group]) -> Any | None:
    """Draw a row of two panels per ablation: metric and parameters kept against the setting.

    Bars show one standard deviation over seeds.

    Returns:
        The figure; None without an ablation.
    """
    ablations = find_ablations(groups)
    if not ablations:
        return None
    shown = ablations[:_MOST]
    above = 0.3 if len(ablations) > _MOST else 0.05
    figure = new_figure(2 * _SIZE[0], len(shown) * _SIZE[1] + above, solved=False)
    grid = figure.subplots(len(shown), 2, squeeze=False)
    for row, ablation in zip(grid, shown, strict=True):
        _draw_row(row, ablation)
    if len(ablations) > _MOST:
        figure.suptitle(f"the first {_MOST} of {len(ablations)} ablations", x=0.01, ha="left",
                        fontsize=8, color=QUIET)  # fmt: skip
    arrange(figure, len(shown), 2, below=0.0, above=above)
    return figure


def _curves(groups: Sequence[Group], key: str, others: Sequence[str]) -> tuple[Curve, ...]:
    """Return the curves over a key: two or more groups that agree in all other keys."""
    buckets: dict[tuple[str, ...], list[Group]] = {}
    for group in groups:
        if _is_number(group.settings.get(key)):
            rest = tuple(frozen(group.settings.get(other)) for other in others)
            buckets.setdefault(rest, []).append(group)
    several = [bucket for bucket in buckets.values() if len(bucket) > 1]
    telling = differing([bucket[0].settings for bucket in several])
    curves = []
    for bucket in several:
        points = sorted((float(group.settings[key]), i) for i, group in enumerate(bucket))
        first = bucket[0].settings
        name = ", ".join(
            f"{k.rpartition('.')[2]} {_value_text(first.get(k))}" for k in telling if k != key
        )
        curves.append(Curve({value: bucket[i] for value, i in points}, name))
    return tuple(curves)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _value_text(value: Any) -> str:
    return short_number(value) if _is_number(value) else str(value)


def _draw_row(row: Any, ablation: Ablation) -> None:
    from matplotlib.ticker import FuncFormatter

    left, right = row
    factor = percent_factor(ablation.groups)
    values = sorted({value for curve in ablation.curves for value in curve.points})
    scale = Scale.of(values)
    head, key = plain(f"{ablation.task}, {ablation.method}"), plain(ablation.key)
    finish(left, head, key, metric_axis(ablation.groups, factor))
    finish(right, "", key, "parameters kept")
    for i, curve in enumerate(ablation.curves[:_CURVES]):
        x = [scale.at(value) for value in curve.points]
        metrics = [metric_spread(group, factor) for group in curve.points.values()]
        parameters = [parameter_spread(group) for group in curve.points.values()]
        _draw_curve(left, x, metrics, i)
        _draw_curve(right, x, parameters, i, curve.name)
    for axes in row:
        scale.apply(axes, values)
    right.yaxis.set_major_formatter(FuncFormatter(lambda y, _: short_number(y)))
    names = [curve.name for curve in ablation.curves[:_CURVES]]
    if any(names):  # above the right panel, which has no title
        right.legend(loc="lower left", bbox_to_anchor=(-0.02, 0.98), borderpad=0, fontsize=6.5,
                     frameon=False, labelcolor=INK, columnspacing=1.2, handlelength=1.8,
                     ncols=max(1, min(4, _LEGEND // (max(map(len, names)) + 7))))  # fmt: skip
    if len(ablation.curves) > _CURVES:
        left.set_title(f"the first {_CURVES} of {len(ablation.curves)} curves", fontsize=7,
                       loc="right", color=QUIET)  # fmt: skip


def _draw_curve(
    axes: Any, x: Sequence[float], values: Sequence[Spread], i: int, name: str = ""
) -> None:
    """Draw the means as a line, with bars of one standard deviation."""
    y = [value.mean for value in values]
    bars = [value.deviation for value in values]
    dashes = ("-", (0, (4, 1.5)))[i // len(MARKERS) % 2]  # where colours repeat
    axes.errorbar(x, y, yerr=bars if any(bars) else None, color=colour(i), linestyle=dashes,
                  marker=MARKERS[i % len(MARKERS)], markersize=4, linewidth=1.4, elinewidth=0.9,
                  label=plain(name, 44) or None)  # fmt: skip
