"""The rank map of a run's page: components by layer and kind of module, with totals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from sora_cli.adapter.modules import Module
from sora_cli.adapter.plot import summary
from sora_cli.adapter.ranks import Rank, RankMap, rank_map
from sora_cli.adapter.singular_values import components_for
from sora_cli.experiments.compare.page_parts import MapCell, RankTable, heat_table

ENERGY = 0.99
"""Share of ||dW||^2 that a module's components are counted for, where all ranks are the same."""


def rank_part(ranks: RankMap) -> RankTable:
    """Return the map of components alive, with totals as "17/24" around it."""
    live = {place: float(cell.live) for place, cell in ranks.cells.items()}
    largest = max((cell.start for cell in ranks.cells.values()), default=1)
    table = heat_table(ranks, live, largest, summary(ranks))
    rows = [
        (name, (*cells, _total(ranks.row_total(row))))
        for (name, cells), row in zip(table.rows, ranks.rows, strict=True)
    ]
    totals = [*map(ranks.column_total, ranks.columns), ranks.total]
    rows.append(("all", tuple(map(_total, totals))))
    return replace(table, columns=(*table.columns, "all"), rows=tuple(rows))


def needed_part(ranks: RankMap, modules: Mapping[str, Module]) -> RankTable:
    """Return the map of how many components hold 99 % of each module's ||dW||^2."""
    needed = rank_map({path: components_for(m.values, ENERGY) for path, m in modules.items()})
    live = {place: float(cell.live) for place, cell in needed.cells.items()}
    largest = max((cell.start for cell in ranks.cells.values()), default=1)
    shape = replace(ranks, cells=needed.cells)
    return heat_table(shape, live, largest, f"{needed.total.live} of {ranks.total.live} in all")


def is_level(ranks: RankMap) -> bool:
    """Tell whether all modules have the same rank, so that a map of it shows nothing."""
    return len({cell.live for cell in ranks.cells.values()}) <= 1


def _total(rank: Rank) -> MapCell:
    shown = str(rank.live) if rank.live == rank.start else f"{rank.live}/{rank.start}"
    return MapCell(shown, None)
