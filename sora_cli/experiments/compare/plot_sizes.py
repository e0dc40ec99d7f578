"""The picture of a comparison at equal size: the loss of each family against its size."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
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
from sora_cli.experiments.compare.plot_labels import Label, Line, place_labels
from sora_cli.experiments.compare.plot_style import MARKERS
from sora_cli.experiments.compare.sizes import Sized, Sizes

_SIZE = 7.2, 4.4
"""Inches."""
_LARGEST = 2.0
"""Labels with a larger share of the baseline's parameters are left out."""
_FENCE = 3.0
"""The axis ends this many interquartile ranges beyond the quartiles (Tukey's outer fences):
otherwise a label that has learned nothing would flatten all others."""
_PIECES = 24
"""Pieces per line: labels avoid boxes, and the box of a long sloping line would be too large."""
_LONGEST = 28  # characters of a label


Look = tuple[str, str, Any]
"""Colour, marker and dashes."""


@dataclass(frozen=True)
class Point:
    """A label's share of the baseline's parameters in per cent, mean difference and interval."""

    x: float
    y: float
    low: float
    high: float


def family_lines(sizes: Sizes) -> dict[str, list[Point]]:
    """Return the points of each family, from small to large.

    Differences are in points if the metric is printed times 100. Without an interval, both ends are
    the mean.
    """
    lines = {
        name: [point for member in members if (point := _point(sizes, member))]
        for name, members in sizes.families().items()
    }
    return {name: points for name, points in lines.items() if points}


def draw_sizes(sizes: Sizes, budgets: Sequence[float]) -> Any:
    """Draw the mean difference to the baseline against the share of its parameters.

    Each family has a line, with the 95 % interval as a band; families of simple methods are black
    and dashed. The baseline is at 100 % and 0.

    Args:
        budgets: shares that get a tick, in addition to 100 %.
    """
    lines = family_lines(sizes)
    figure = new_figure(*_SIZE, solved=False)
    axes = figure.subplots()
    finish(axes, _title(sizes), f"% of the {sizes.unit} of {plain(sizes.baseline.label)}",
           f"metric{' x 100' if sizes.percent else ''} minus {plain(sizes.baseline.label)}"
           + ("" if sizes.greater_is_better else " (smaller is better)"))  # fmt: skip
    _set_axis(axes, lines, budgets)
    axes.axhline(0, color=QUIET, linewidth=1, zorder=1)
    simple = {name for name, members in sizes.families().items()
              if all(member.is_simple for member in members)}  # fmt: skip
    looks = _looks(lines, simple)
    for name, points in lines.items():
        _draw_family(axes, points, *looks[name])
    outside = _set_height(axes, lines)
    arrange(figure, 1, 1, below=0.0)  # labels need to know where everything is
    missing = _write_labels(figure, axes, lines, looks)
    notes = ["bands: 95 % intervals"]
    notes += [f"points outside of the picture: {outside}"] if outside else []
    notes += [f"families not named: {missing}"] if missing else []
    axes.set_title("; ".join(notes), fontsize=7, loc="right", color=QUIET)
    return figure


def _title(sizes: Sizes) -> str:
    tasks = sizes.tasks
    return f"mean over {len(tasks)} tasks" if len(tasks) > 1 else plain(tasks[0])


def _point(sizes: Sizes, label: Sized) -> Point | None:
    difference = label.minus(sizes.baseline)
    if difference is None or difference.mean != difference.mean or not 0 < label.share <= _LARGEST:
        return None
    factor = 100 if sizes.percent else 1
    low, high = (
        difference.mean if end is None else end for end in (difference.low, difference.high)
    )
    return Point(100 * label.share, factor * difference.mean, factor * low, factor * high)


def _looks(lines: Mapping[str, object], simple: set[str]) -> dict[str, Look]:
    """Assign a colour, a marker and dashes to each family; simple families are black."""
    looks: dict[str, Look] = {}
    others = [name for name in lines if name not in simple]
    for i, name in enumerate(others):
        round_ = i // len(MARKERS)  # colours repeat; markers and dashes do not with them
        dashes = ("-", (0, (4, 1.5)), (0, (1, 1)))[round_ % 3]
        looks[name] = colour(i), MARKERS[(i + round_) % len(MARKERS)], dashes
    for i, name in enumerate(name for name in lines if name in simple):
        looks[name] = INK, MARKERS[i % len(MARKERS)], (0, (3, 1.5))
    return looks


def _draw_family(axes: Any, points: Sequence[Point], shade: str, marker: str, dashes: Any) -> None:
    x, y = [p.x for p in points], [p.y for p in points]
    if len(points) > 1:
        axes.fill_between(x, [p.low for p in points], [p.high for p in points], color=shade,
                          alpha=0.13, linewidth=0, zorder=1.5)  # fmt: skip
        axes.plot(x, y, color=shade, linestyle=dashes, linewidth=1.4, zorder=2.5)
    else:
        (p,) = points
        axes.errorbar(x, y, yerr=[[p.y - p.low], [p.high - p.y]], color=shade, elinewidth=0.9,
                      zorder=2.5)  # fmt: skip
    axes.plot(x, y, color=shade, marker=marker, markersize=4.5, linestyle="", zorder=3)


def _set_axis(axes: Any, lines: Mapping[str, Sequence[Point]], budgets: Sequence[float]) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    shares = [point.x for points in lines.values() for point in points]
    low, high = min([*shares, 100 * min(budgets)]), max([*shares, 100.0])
    ticks = {100.0, *(100 * budget for budget in budgets)}
    ticks |= {200.0} if high > 150 else set()
    axes.set_xscale("log")
    axes.set_xlim(low / (high / low) ** 0.12, high * (high / low) ** 0.04)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_locator(FixedLocator(sorted(ticks)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: short_number(x)))


def _set_height(axes: Any, lines: Mapping[str, Sequence[Point]]) -> int:
    """Set the limits of the y axis; return the number of points outside of them."""
    points = [point for line in lines.values() for point in line]
    heights = [point.y for point in points]
    bottom, top = min(p.low for p in points), max(p.high for p in points)
    if len(heights) > 3:
        first, _, third = statistics.quantiles(heights, n=4, method="inclusive")
        reach = _FENCE * (third - first)
        if reach:
            bottom, top = max(bottom, first - reach), min(top, third + reach)
    room = 0.06 * ((top - bottom) or 1.0)
    bottom, top = min(bottom, 0) - room, max(top, 0) + room
    axes.set_ylim(bottom, top)
    return sum(not bottom <= height <= top for height in heights)


def _write_labels(
    figure: Any, axes: Any, lines: Mapping[str, Sequence[Point]], looks: Mapping[str, Look]
) -> int:
    """Name each family at its smallest visible size; return the number of families not named."""
    bottom, top = axes.get_ylim()
    labels, missing = [], 0
    for name, points in lines.items():
        seen = next((point for point in points if bottom <= point.y <= top), None)
        if seen is None:
            missing += 1
        else:
            labels.append(Label(seen.x, seen.y, plain(name, _LONGEST), looks[name][0]))
    labels.sort(key=lambda label: (label.x, label.y))
    crossed = [piece for points in lines.values() for piece in _pieces(points)]
    return missing + place_labels(figure, axes, labels, crossed)


def _pieces(points: Sequence[Point]) -> list[Line]:
    """Return the lines between points in short pieces, in data coordinates."""
    pieces: list[Line] = []
    for a, b in pairwise(points):
        steps = [i / _PIECES for i in range(_PIECES + 1)]
        # straight on a logarithmic x axis
        along = [(a.x * (b.x / a.x) ** t, a.y + t * (b.y - a.y)) for t in steps]
        pieces += pairwise(along)
    return pieces
