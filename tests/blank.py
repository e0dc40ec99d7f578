"""What runs of tests do without: drawn maps of ranks, hashes of rows in memory, waits for the disk.

A map takes a third of a tiny run's time. Each process lays out one of each kind, and none is drawn.
`datasets` hashes rows in memory to find what its cache holds of them: it caches files only, and
nothing of ours reads the hash. No test cuts the power, which alone shows what is on the disk.
"""

from __future__ import annotations

import os
from base64 import b64decode
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

from datasets import arrow_dataset

from sora_cli.adapter import plot
from sora_cli.adapter.ranks import RankMap
from sora_cli.core.atomic import write_bytes_atomic

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


def lay_out_once(figure: Any, axes: Any, table: RankMap, label: str) -> None:
    """Lay out a run's map if it is the first with these rows, columns, modules and dead modules."""
    dead = frozenset(place for place, cell in table.cells.items() if not cell.live)
    kind = (table.rows, table.columns, frozenset(table.cells), dead)
    if kind not in _laid_out:
        _laid_out.add(kind)
        lay_out(figure, axes, table, label)


_laid_out: set[Any] = set()
_numbers = count()


def install(patch: Callable[[Any, str, Any], None] = setattr) -> None:
    """Have runs do without."""
    patch(plot, "save_figure", save)
    patch(plot, "draw_rank_map", lay_out_once)
    patch(arrow_dataset, "generate_fingerprint", lambda _: f"{next(_numbers):016x}")
    patch(os, "fsync", lambda _: None)
