"""Heat maps of whole numbers, such as ranks, for the page."""

from __future__ import annotations

from dataclasses import dataclass

from sora_cli.adapter.ranks import RankMap

_LEVELS = 10
"""Colours of the scale above 0."""


@dataclass(frozen=True)
class MapCell:
    """A number and its colour level, 0 to 10; a total has no level (None)."""

    text: str
    level: int | None


@dataclass(frozen=True)
class RankTable:
    """A heat map: a column per kind of module, a row per layer, None for a missing module."""

    summary: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[MapCell | None, ...]], ...]


def heat_table(ranks: RankMap, largest: int, summary: str) -> RankTable:
    """Return a heat map of live components by layer and kind of module.

    Args:
        largest: number that gets the darkest colour.
        summary: last line of the caption.
    """
    rows = []
    for row, name in zip(ranks.rows, ranks.row_labels(), strict=True):
        cells = [ranks.cells.get((row, column)) for column in ranks.columns]
        rows.append((name, tuple(None if c is None else map_cell(c.live, largest) for c in cells)))
    return RankTable(summary, tuple(ranks.column_labels()), tuple(rows))


def map_cell(number: int, largest: int) -> MapCell:
    """Return a cell of a heat map; the number `largest` gets the darkest colour."""
    # level 0 means none alive: a small number gets at least the lightest colour
    level = 0 if number == 0 else max(1, round(_LEVELS * number / max(largest, 1)))
    return MapCell(str(number), min(level, _LEVELS))
