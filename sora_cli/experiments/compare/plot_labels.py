"""Labels beside points, placed so that they cover no other label and no point."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sora_cli.core.figures import INK, QUIET

_SIZE = 7.0  # points
_DISTANCES = (6.0, 10.0, 16.0, 25.0, 36.0, 50.0)  # points
_ANGLES = (0, 180, 90, 270, 45, 135, 315, 225, 20, 160, 340, 200, 65, 115, 245, 295)
_CROWD = 14
"""If there are more labels, all stay close to their points: that many leader lines would tangle."""
_LEADER = 8.0  # points; labels further away get a line to their point
_MARK = 3.5  # half the size of a point that is kept clear, points

Box = tuple[float, float, float, float]
"""Left, bottom, right, top in pixels."""
Line = tuple[tuple[float, float], tuple[float, float]]
"""Two ends, x and y in data."""


@dataclass(frozen=True)
class Label:
    """A text that belongs to a point.

    Attributes:
        x, y: the point, in data coordinates.
        colour: of the text.
    """

    x: float
    y: float
    text: str
    colour: str = INK


def place_labels(
    figure: Any, axes: Any, labels: Sequence[Label], lines: Sequence[Line] = ()
) -> int:
    """Write each label at its best free place, in the given order; skip it if no place is free.

    The figure's layout must be final. The first label is always written.

    Args:
        lines: horizontal and vertical lines, in data coordinates, that labels should not cross.

    Returns:
        The number of labels that were skipped.
    """
    pixels = figure.dpi / 72
    points = [tuple(axes.transData.transform((label.x, label.y))) for label in labels]
    taken = [_grown((*point, *point), _MARK * pixels) for point in points]
    extent = axes.get_window_extent()
    frame = (extent.x0 + 2, extent.y0 + 2, extent.x1, extent.y1)
    crossed = [_line_box(axes, line) for line in lines]
    missing = 0
    for i, (label, point) in enumerate(zip(labels, points, strict=True)):
        size = _size(figure, label.text)
        places = [
            _rated(_box(point, size, d * pixels, angle), d, taken, crossed, frame)
            for d in (_DISTANCES if len(labels) <= _CROWD else _DISTANCES[:3])
            for angle in _ANGLES
        ]
        best = min(places, key=lambda place: place.cost)
        if best.covered > 0 and i > 0:
            missing += 1
            continue
        taken.append(_grown(best.box, 1.0))
        _write(axes, label, point, best.box, pixels)
    return missing


@dataclass(frozen=True)
class _Place:
    box: Box
    covered: float
    """Area over other labels and points or outside the frame, in square pixels."""
    cost: float


def _rated(
    box: Box, distance: float, taken: Sequence[Box], crossed: Sequence[Box], frame: Box
) -> _Place:
    outside = (box[2] - box[0]) * (box[3] - box[1]) - _common(box, frame)
    covered = round(outside + sum(_common(box, other) for other in taken), 3)
    lines = sum(_common(box, other) for other in crossed)
    # to cover something costs most; crossed lines are weighed against the distance
    return _Place(box, covered, 100 * covered + lines + 3 * distance)


def _size(figure: Any, text: str) -> tuple[float, float]:
    """Return width and height of a label in pixels."""
    from matplotlib.text import Text

    made = Text(0, 0, text, fontsize=_SIZE, figure=figure)
    extent = made.get_window_extent(figure.canvas.get_renderer())
    return extent.width, extent.height


def _box(point: tuple[float, float], size: tuple[float, float], distance: float, angle: int) -> Box:
    """Return the box of a text with its nearest edge or corner at a distance from a point."""
    across, up = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    x = point[0] + distance * across + 0.5 * size[0] * _side(across)
    y = point[1] + distance * up + 0.5 * size[1] * _side(up)
    return x - size[0] / 2, y - size[1] / 2, x + size[0] / 2, y + size[1] / 2


def _side(part: float) -> float:
    """Return the side of the text along one axis: -1 to 1, near 0 for directions across it."""
    return max(-1.0, min(1.0, 1.6 * part))


def _common(a: Box, b: Box) -> float:
    """Return the area that two boxes have in common."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return width * height if width > 0 and height > 0 else 0.0


def _grown(box: Box, by: float) -> Box:
    return box[0] - by, box[1] - by, box[2] + by, box[3] + by


def _line_box(axes: Any, line: Line) -> Box:
    """Return the box around a line, in pixels."""
    (x0, y0), (x1, y1) = axes.transData.transform(line)
    return _grown((min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)), 1.0)


def _write(axes: Any, label: Label, point: tuple[float, float], box: Box, pixels: float) -> None:
    """Write the text; if it is far from its point, draw a leader line."""
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    place = axes.transAxes.inverted().transform((x, y))
    axes.text(*place, label.text, transform=axes.transAxes, ha="center", va="center",
              fontsize=_SIZE, color=label.colour, zorder=4)  # fmt: skip
    near = min(max(point[0], box[0]), box[2]), min(max(point[1], box[1]), box[3])
    if math.dist(near, point) < _LEADER * pixels:
        return
    ends = axes.transAxes.inverted().transform([point, near])
    axes.plot(ends[:, 0], ends[:, 1], transform=axes.transAxes, color=QUIET,
              linewidth=0.5, zorder=1.5, scalex=False, scaley=False)  # fmt: skip
