"""Settings as YAML, and heat maps of ranks, for HTML pages."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sora_cli.adapter.ranks import RankMap

_LEVELS = 10
"""Colours of the scale above 0."""


@dataclass(frozen=True)
class Line:
    """A line of YAML; the page highlights marked lines and explains the mark."""

    text: str
    marked: bool


@dataclass(frozen=True)
class MapCell:
    """A rank and its colour level, 0 to 10; a total has no level (None)."""

    text: str
    level: int | None


@dataclass(frozen=True)
class RankTable:
    """A heat map: a column per kind of module, a row per layer, None for a missing module."""

    summary: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[MapCell | None, ...]], ...]


def recipe_lines(settings: Mapping[str, Any], marked: Iterable[str] = ()) -> tuple[Line, ...]:
    """Return settings as the YAML lines of a recipe; mark the lines of some keys.

    Args:
        settings: dotted key -> value.
        marked: dotted keys to mark.
    """
    keys = set(marked)
    lines: list[Line] = []
    open_blocks: list[str] = []
    for key, value in settings.items():
        *blocks, name = key.split(".")
        same = 0  # leading blocks shared with the key before: their lines are there already
        while same < min(len(blocks), len(open_blocks)) and blocks[same] == open_blocks[same]:
            same += 1
        for depth in range(same, len(blocks)):
            lines.append(Line(f"{'  ' * depth}{blocks[depth]}:", False))
        open_blocks = blocks
        text = _yaml(json.dumps(value, sort_keys=True, default=str))
        lines.append(Line(f"{'  ' * len(blocks)}{name}: {text}", key in keys))
    return tuple(lines)


@lru_cache(maxsize=4096)
def _yaml(value: str) -> str:
    """Convert a value from JSON to YAML on one line.

    JSON can be a key of the cache, unlike lists and mappings; groups of runs repeat most values.
    """
    import yaml

    text: str = yaml.safe_dump(json.loads(value), default_flow_style=True, width=10**6)
    return text.strip().removesuffix("...").strip()


def heat_table(
    shape: RankMap, live: Mapping[tuple[str, str], float], largest: int, summary: str
) -> RankTable:
    """Return a heat map of numbers by layer and kind of module.

    Args:
        shape: rows, columns and their names.
        live: (row, column) -> number.
        largest: number that gets the darkest colour.
        summary: last line of the caption.
    """
    rows = []
    for row, name in zip(shape.rows, shape.row_labels(), strict=True):
        numbers = [live.get((row, column)) for column in shape.columns]
        rows.append((name, tuple(None if n is None else map_cell(n, largest) for n in numbers)))
    return RankTable(summary, tuple(shape.column_labels()), tuple(rows))


def map_cell(live: float, largest: int) -> MapCell:
    """Return a cell of a heat map; the number `largest` gets the darkest colour."""
    # level 0 means none alive in any seed: a small mean gets at least the lightest colour
    level = 0 if live == 0 else max(1, round(_LEVELS * live / max(largest, 1)))
    return MapCell(rank_text(live), min(level, _LEVELS))


def rank_text(value: float) -> str:
    """Format a mean rank for a cell: "0" if it is 0 in all seeds, "<.1" if it is below 0.05."""
    if value == 0 or value >= 9.95:
        return f"{value:.0f}"
    return "<.1" if value < 0.05 else f"{value:.1f}".removesuffix(".0")
