"""Maps of ranks that are made and not drawn: drawing one takes a third of a tiny run's time."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sora_cli.adapter import plot
from sora_cli.core.atomic import write_bytes_atomic

draw = plot.save_figure
PIXEL = b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
)


def save(figure: Any, path: Path) -> None:
    """Write one pixel beside a run's adapter, and the drawn figure anywhere else."""
    if (path.parent / "adapter").is_dir():
        write_bytes_atomic(path, PIXEL)
    else:
        draw(figure, path)


def install(patch: Callable[[Any, str, Any], None] = setattr) -> None:
    """Have runs write one pixel."""
    patch(plot, "save_figure", save)
