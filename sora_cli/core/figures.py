"""Figures in one style, drawn without matplotlib's global state."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from sora_cli.core.console import printable
from sora_cli.core.errors import SoraError
from sora_cli.core.outputs import MARK

INK, QUIET, FAINT = "#222222", "#767676", "#e4e4e4"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#5d5d5d")
"""Palette of Okabe and Ito, made for colour-blind readers; the yellow is darkened."""
_DPI = 150
_MARGINS = 0.68, 0.2, 0.32, 0.48
"""Inches to the left, to the right, above and below a panel, for labels and ticks."""


def new_figure(width: float, height: float, *, solved: bool = True) -> Any:
    """Make an empty figure of a size in inches.

    Args:
        solved: let matplotlib's constraint solver make room for all labels.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained" if solved else None)
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Any, path: Path) -> None:
    """Render a figure in memory, then replace the file: no half-written picture remains."""
    from sora_cli.core.atomic import write_bytes_atomic

    kind = path.suffix.lstrip(".").lower() or "png"
    known = figure.canvas.get_supported_filetypes()
    if kind not in known:
        raise SoraError(
            f"no picture can be written as .{kind}: {path}", hint=f"known: {', '.join(known)}"
        )
    buffer = io.BytesIO()
    if kind == "png":  # `savefig` would draw the figure twice
        figure.set_dpi(_DPI)
        figure.canvas.print_png(buffer, metadata={"Software": MARK})
    else:
        figure.savefig(buffer, format=kind, dpi=_DPI)
    write_bytes_atomic(path, buffer.getvalue())


def colour(i: int) -> str:
    """Return the i-th colour, from 0; after the last colour the first one follows."""
    return COLOURS[i % len(COLOURS)]


def plain(text: str, length: int = 80) -> str:
    """Prepare text for a picture: one line, no formulas; a long text is cut in the middle."""
    text = printable(text)
    if len(text) > length:
        tail = (length - 1) // 2
        text = f"{text[: length - 1 - tail]}…{text[len(text) - tail :]}"
    return text.replace("$", r"\$")


def short_number(value: float) -> str:
    """Format a number briefly: 1500000 -> "1.5M", 20000 -> "20k", 0.001 -> "0.001"."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.3g}"


def finish(axes: Any, title: str, x: str, y: str) -> None:
    """Set the title, the axis labels and a light frame."""
    axes.set_title(title, fontsize=9, loc="left", color=INK)
    axes.set_xlabel(x, fontsize=8, color=INK)
    axes.set_ylabel(y, fontsize=8, color=INK)
    axes.tick_params(labelsize=7.5, colors=INK, width=0.6, length=3)
    axes.grid(color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set(color=QUIET, linewidth=0.6)


def arrange(figure: Any, rows: int, columns: int, *, below: float, above: float = 0.0) -> None:
    """Lay out a grid of panels with fixed margins.

    matplotlib's constraint solver would take longer than all the drawing.

    Args:
        below: inches below the grid, for a legend.
        above: inches above the grid, for a title.
    """
    width, height = figure.get_size_inches()
    left, right, top, bottom = _MARGINS
    inner_width = width / columns - left - right
    inner_height = (height - below - above) / rows - top - bottom
    figure.subplots_adjust(
        left=left / width,
        right=1 - right / width,
        bottom=(below + bottom) / height,
        top=1 - (above + top) / height,
        wspace=(left + right) / inner_width,
        hspace=(top + bottom) / inner_height,
    )
    for axes in figure.axes:  # autoscaling is lazy: asking for the limits makes it happen now
        axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())
