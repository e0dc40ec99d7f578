"""Figures as objects, saved without global plotting state."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from sora_cli.core.errors import SoraError
from sora_cli.core.outputs import MARK

INK, QUIET, FAINT = "#222222", "#767676", "#e4e4e4"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#5d5d5d")
"""Okabe and Ito's palette, which colour-blind people can tell apart; the yellow darkened."""
_DPI = 150


def new_figure(width: float, height: float, *, solved: bool = True) -> Any:
    """Make an empty figure, in inches; with `solved`, a solver makes room for all labels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained" if solved else None)
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Any, path: Path) -> None:
    """Render a figure, then replace the file, so that no half a picture is left behind."""
    from sora_cli.core.atomic import write_bytes_atomic

    kind = path.suffix.lstrip(".").lower() or "png"
    known = figure.canvas.get_supported_filetypes()
    if kind not in known:
        raise SoraError(
            f"no picture can be written as .{kind}: {path}", hint=f"known: {', '.join(known)}"
        )
    buffer = io.BytesIO()
    if kind == "png":  # drawn once, where `savefig` draws twice
        figure.set_dpi(_DPI)
        figure.canvas.print_png(buffer, metadata={"Software": MARK})
    else:
        figure.savefig(buffer, format=kind, dpi=_DPI)
    write_bytes_atomic(path, buffer.getvalue())
