"""What runs of tests do without: pictures, collected garbage, hashes of rows, waits for the disk.

A map takes a third of a tiny run's time. Each process lays out one of each kind, and none is drawn;
of a search's curves and of a path's, each process draws the first. Trainer's collection of garbage
after each training takes a tenth of it: Python's own collections stay.
`datasets` hashes rows in memory to find what its cache holds of them: it caches files only, and
nothing of ours reads the hash. No test cuts the power, which alone shows what is on the disk.
"""

from __future__ import annotations

import gc
import os
from base64 import b64decode
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from accelerate.utils import memory
from datasets import arrow_dataset

from sora_cli.adapter import plot
from sora_cli.adapter.ranks import RankMap
from sora_cli.core.atomic import write_bytes_atomic
from sora_cli.core.figures import save_figure
from sora_cli.experiments.auto import plot as curve
from sora_cli.experiments.path import plot as path_plot

draw, lay_out = plot.save_figure, plot.draw_rank_map
PIXEL = b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
)


def save(figure: Any, path: Path) -> None:
    """Write one pixel beside a run's adapter, and the drawn figure anywhere else."""
    if (path.parent / "adapter").is_dir():
        write_bytes_atomic(path, PIXEL)
    else:
        draw(figure, path)


def save_one(figure: Any, path: Path) -> None:
    """Draw the first picture of its name beside a run's record, and write one pixel after it."""
    recorded = any((path.parent / name).exists() for name in ("auto.json", "path.json"))
    if recorded and path.name in _drawn:
        write_bytes_atomic(path, PIXEL)
    else:
        save_figure(figure, path)
        _drawn.add(path.name)


def lay_out_once(figure: Any, axes: Any, table: RankMap, label: str) -> None:
    """Lay out a run's map if it is the first with these rows, columns, modules and dead modules."""
    dead = frozenset(place for place, cell in table.cells.items() if not cell.live)
    kind = (table.rows, table.columns, frozenset(table.cells), dead)
    if kind not in _laid_out:
        _laid_out.add(kind)
        lay_out(figure, axes, table, label)


_laid_out: set[Any] = set()
_drawn: set[str] = set()
_numbers = count()


def install(patch: Callable[[Any, str, Any], None] = setattr) -> None:
    """Have runs do without."""
    patch(plot, "save_figure", save)
    patch(plot, "draw_rank_map", lay_out_once)
    patch(curve, "save_figure", save_one)
    patch(path_plot, "save_figure", save_one)
    patch(memory, "gc", SimpleNamespace(**{**vars(gc), "collect": lambda: 0}))
    patch(arrow_dataset, "generate_fingerprint", lambda _: f"{next(_numbers):016x}")
    patch(os, "fsync", lambda _: None)
