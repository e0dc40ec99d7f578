"""Metric against parameters kept, a panel per task, with the Pareto front."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sora_cli.core.figures import INK, QUIET, arrange, finish, new_figure, plain
from sora_cli.experiments.compare.grouping import by_task
from sora_cli.experiments.compare.plot_labels import Label, Line, place_labels
from sora_cli.experiments.compare.plot_style import (
    Scale,
    Spread,
    metric_axis,
    metric_spread,
    parameter_spread,
    percent_factor,
    styles,
)
from sora_cli.experiments.compare.runs import Group

_PANEL = 3.9, 3.2
"""Width and height of a panel, inches: two side by side fill the width of an A4 page."""
_SINGLE = 5.6, 3.6
_KEYS = 7
"""Entries in a row of the legend."""
_LABELLED = 16
"""Most labels in a panel; points on the Pareto front get theirs first."""
_LONGEST = 30  # characters of a label
Looks = Mapping[str, tuple[str, str]]
"""Method -> colour and marker."""


@dataclass(frozen=True)
class _Point:
    group: Group
    x: Spread
    y: Spread


@dataclass(frozen=True)
class _Panel:
    """The contents of a panel: points (the Pareto front first) and straight lines."""

    axes: Any
    scale: Scale
    points: tuple[_Point, ...]
    lines: tuple[Line, ...]


def draw_points(groups: Sequence[Group]) -> Any:
    """Draw mean metric against mean parameters kept, a panel per task.

    Bars show one standard deviation over seeds. Groups without a finite metric are left out. A grey
    line marks the Pareto front: no other group is better with as few parameters.
    """
    from matplotlib.lines import Line2D

    tasks = by_task(groups)
    columns = min(len(tasks), 2)
    rows = -(-len(tasks) // columns)
    width, height = _SINGLE if len(tasks) == 1 else _PANEL
    looks = styles(groups)
    below = 0.1 + 0.22 * math.ceil((len(looks) + 1) / _KEYS)
    figure = new_figure(columns * width, rows * height + below, solved=False)
    grid = figure.subplots(rows, columns, squeeze=False)
    panels = []
    for axes, (task, members) in zip(grid.flat, tasks.items(), strict=False):
        panels.append(_draw_panel(axes, task, members, looks))
    for axes in grid.flat[len(tasks) :]:
        axes.set_visible(False)
    keys = [Line2D([], [], color=c, marker=m, markersize=5, linestyle="", label=plain(name))
            for name, (c, m) in looks.items()]  # fmt: skip
    keys.append(Line2D([], [], color=QUIET, linewidth=1, label="Pareto front"))
    figure.legend(handles=keys, loc="lower center", ncols=min(len(keys), _KEYS), fontsize=8,
                  frameon=False, labelcolor=INK)  # fmt: skip
    arrange(figure, rows, columns, below=below)  # labels need to know where everything is
    for panel in panels:
        _write_labels(figure, panel)
    return figure


def pareto_front(points: Sequence[tuple[float, float]], *, greater_is_better: bool) -> list[int]:
    """Return the indices of the points on the Pareto front, from few to many parameters.

    Args:
        points: parameters and metric.
    """
    sign = 1 if greater_is_better else -1
    order = sorted(range(len(points)), key=lambda i: (points[i][0], -sign * points[i][1]))
    front: list[int] = []
    for i in order:
        if not front or sign * points[i][1] > sign * points[front[-1]][1]:
            front.append(i)
    return front


def _draw_panel(axes: Any, task: str, groups: Sequence[Group], looks: Looks) -> _Panel:
    """Draw the points of a task, their bars and the Pareto front."""
    factor = percent_factor(groups)
    points = [_Point(g, parameter_spread(g), metric_spread(g, factor)) for g in groups]
    points = [point for point in points if math.isfinite(point.y.mean)]
    reach = [x for point in points for x in (point.x.mean, point.x.mean + point.x.deviation)]
    scale = Scale.of(reach, from_zero=True)
    finish(axes, plain(task), "parameters kept", metric_axis(groups, factor))
    scale.apply(axes)
    lines = []
    for point in points:
        colour, marker = looks[point.group.method]
        x, y = scale.at(point.x.mean), point.y.mean
        # a bar to the left of 0 has no place on a logarithmic axis
        left, right = min(point.x.deviation, 0.9 * point.x.mean), point.x.deviation
        across = [[left], [right]] if left else None
        axes.errorbar(x, y, yerr=point.y.deviation or None, xerr=across, color=colour,
                      marker=marker, markersize=5, elinewidth=0.9, linestyle="",
                      zorder=3)  # fmt: skip
        lines += [((x - left, y), (x + right, y)),
                  ((x, y - point.y.deviation), (x, y + point.y.deviation))]  # fmt: skip
    better = groups[0].first.greater_is_better
    front = pareto_front([(p.x.mean, p.y.mean) for p in points], greater_is_better=better)
    first = [points[i] for i in front]
    lines += _draw_front(axes, scale, first)
    axes.margins(y=0.16)  # room for labels above and below
    rest = [point for i, point in enumerate(points) if i not in front]
    return _Panel(axes, scale, (*first, *rest), tuple(lines))


def _draw_front(axes: Any, scale: Scale, front: Sequence[_Point]) -> list[Line]:
    """Draw the Pareto front as steps, up to the right edge; return the line segments."""
    if not front:
        return []
    limits = axes.get_xlim()
    x = [*(scale.at(point.x.mean) for point in front), limits[1]]
    y = [*(point.y.mean for point in front), front[-1].y.mean]
    axes.step(x, y, where="post", color=QUIET, linewidth=1, zorder=2)
    axes.set_xlim(limits)
    flat = [((x[i], y[i]), (x[i + 1], y[i])) for i in range(len(front))]
    return [*flat, *(((x[i], y[i - 1]), (x[i], y[i])) for i in range(1, len(front)))]


def _write_labels(figure: Any, panel: _Panel) -> None:
    """Write names beside the points, and a note if some did not fit."""
    labels = [
        Label(panel.scale.at(point.x.mean), point.y.mean, plain(point.group.label, _LONGEST))
        for point in panel.points
    ]
    missing = len(labels[_LABELLED:])
    missing += place_labels(figure, panel.axes, labels[:_LABELLED], panel.lines)
    if missing:
        panel.axes.set_title(f"{missing} of {len(labels)} points not named", fontsize=7,
                             loc="right", color=QUIET)  # fmt: skip
