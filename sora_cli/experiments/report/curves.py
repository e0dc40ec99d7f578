"""Learning curves of a run: loss, main metric, live components."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sora_cli.core.figures import INK, arrange, colour, finish, new_figure, plain, short_number
from sora_cli.report import RunReport

SIZE = 3.9, 2.5
"""Width and height of a panel, inches."""
_FEW = 40
"""Curves with at most this many points get markers."""

Points = list[tuple[int, float]]
"""Step and value."""


@dataclass(frozen=True)
class Curves:
    """Curves of a run's history by step; a curve without values is empty."""

    loss: Points
    selection_loss: Points
    metric: Points
    alive: Points

    @classmethod
    def of(cls, report: RunReport) -> Curves:
        """Extract the curves from a report's history."""
        history = report.history
        alive = list(enumerate(map(float, report.live_components), start=1))
        return cls(
            loss=_points(history, "loss"),
            selection_loss=_points(history, "eval_loss"),
            metric=_points(history, f"eval_{report.main_metric}"),
            alive=[] if _is_level(alive) else alive,
        )


def _points(history: Sequence[Mapping[str, Any]], key: str) -> Points:
    """Return step and value of the history entries with finite numbers for this key."""
    values = ((entry.get("step"), entry.get(key)) for entry in history)
    return [
        (step, float(value))
        for step, value in values
        if isinstance(step, int) and isinstance(value, int | float) and math.isfinite(value)
    ]


def _is_level(points: Points) -> bool:
    return len({value for _, value in points}) <= 1


def draw_loss(curves: Curves) -> Any | None:
    """Draw the loss on the training and the selection rows; None if both are empty."""
    lines = {"training": curves.loss, "selection rows": curves.selection_loss}
    return _draw("loss", {name: points for name, points in lines.items() if points})


def draw_metric(curves: Curves, name: str, best_step: int | None) -> Any | None:
    """Draw the main metric on the selection rows; None if it was not measured in training.

    Args:
        name: of the metric.
        best_step: step of the chosen weights, to be marked; None marks no step.
    """
    if not curves.metric:
        return None
    return _draw(name, {"selection rows": curves.metric}, marked=best_step)


def draw_alive(curves: Curves) -> Any | None:
    """Draw the live components after each step; None if their number never changed."""
    if not curves.alive:
        return None
    # a step curve is the same from its changes alone, and the SVG has far fewer points
    changes = [
        point
        for i, point in enumerate(curves.alive)
        if i in (0, len(curves.alive) - 1) or point[1] != curves.alive[i - 1][1]
    ]
    return _draw("components alive", {"": changes}, stepped=True)


def _draw(
    name: str, lines: Mapping[str, Points], *, marked: int | None = None, stepped: bool = False
) -> Any | None:
    if not lines:
        return None
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    figure = new_figure(*SIZE, solved=False)
    axes = figure.subplots()
    finish(axes, plain(name, 40), "step", "")
    for i, (label, points) in enumerate(lines.items()):
        x, y = zip(*points, strict=True)
        axes.plot(x, y, color=colour(i), linewidth=1.5, label=label or None, markersize=3.5,
                  marker="o" if len(points) <= _FEW and not stepped else "",
                  drawstyle="steps-post" if stepped else "default")  # fmt: skip
        if marked is not None and marked in x:
            axes.plot([marked], [y[x.index(marked)]], marker="o", markersize=9, fillstyle="none",
                      color=INK, linestyle="", label="chosen")  # fmt: skip
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: short_number(x)))
    if stepped:
        axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
    if any(lines):
        axes.legend(fontsize=7.5, frameon=False, labelcolor=INK)
    arrange(figure, 1, 1, below=0.0)
    return figure
