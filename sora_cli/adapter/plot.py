"""A heat map of the ranks, with its title. No global plotting state is touched."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sora_cli.adapter.ranks import Rank, RankMap, rank_map
from sora_cli.core.figures import INK, new_figure, save_figure

_CELL = 0.62, 0.36
"""Width and height of a cell, inches."""
_DEAD = "#e8e4df"


def plot_ranks(ranks: Mapping[str, int], start: Mapping[str, int], path: Path, title: str) -> None:
    """Save a heat map of the ranks, layers x kinds of modules; the suffix gives the format.

    Args:
        ranks: module path -> live components.
        start: module path -> components at the start of training.
        path: the picture, such as ranks.png; an existing file is replaced.
        title: the first lines; the last line is a summary.
    """
    table = rank_map(ranks, start)
    width, height = rank_map_size(table)
    figure = new_figure(width, height)
    draw_rank_map(figure, figure.add_subplot(), table, "rank")
    draw_title(figure, title, width, summary(table))
    save_figure(figure, path)


def rank_map_size(table: RankMap) -> tuple[float, float]:
    """Return the width and height of a heat map with its titles, in inches."""
    width = max(len(table.columns) + 1, 4) * _CELL[0] + 1.9
    return width, (len(table.rows) + 1) * _CELL[1] + 2.0


def draw_rank_map(figure: Any, axes: Any, table: RankMap, label: str) -> None:
    """Draw a heat map, layers x kinds of modules, with a labelled colour bar."""
    from matplotlib.ticker import MaxNLocator

    image = _draw_cells(axes, table)
    _draw_labels(axes, table)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, pad=0.02, aspect=3 * len(table.rows) + 8)
    bar.ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)


def draw_title(figure: Any, title: str, width: float, last: str) -> None:
    """Draw the title, wrapped to `width` inches, and a last line."""
    lines = [*textwrap.wrap(title, int(width * 11)), last]
    figure.suptitle("\n".join(lines), x=0.02, ha="left", fontsize=10)


def summary(table: RankMap) -> str:
    """Return a line with the live components and the dead modules."""
    total, dead = table.total, sum(cell.live == 0 for cell in table.cells.values())
    share = f"{total.live / total.start:.0%} of " if total.start else ""
    return f"{share}{total.start} components alive; {dead} of {len(table.cells)} modules dead"


def _draw_cells(axes: Any, table: RankMap) -> Any:
    """Draw coloured, numbered cells, and hatched cells for dead modules."""
    import numpy as np

    grid = np.full((len(table.rows), len(table.columns)), np.nan)
    for r, row in enumerate(table.rows):
        for c, column in enumerate(table.columns):
            cell = table.cells.get((row, column))
            if cell is not None and cell.live:
                grid[r, c] = cell.live
    largest = max([cell.start for cell in table.cells.values()] + [1])
    image = axes.imshow(grid, cmap="viridis_r", vmin=0, vmax=largest, aspect="auto")
    for r, row in enumerate(table.rows):
        for c, column in enumerate(table.columns):
            _draw_cell(axes, r, c, table.cells.get((row, column)), largest)
    return image


def _draw_cell(axes: Any, r: int, c: int, cell: Rank | None, largest: int) -> None:
    from matplotlib.patches import Rectangle

    if cell is None:
        return
    corner = (c - 0.5, r - 0.5)
    if cell.live == 0:
        axes.add_patch(Rectangle(corner, 1, 1, facecolor=_DEAD, hatch="////", edgecolor="#b8b0a8",
                                 linewidth=0))  # fmt: skip
    axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="white", linewidth=1.5))
    dark = cell.live > 0.55 * largest
    axes.text(c, r, str(cell.live), ha="center", va="center", fontsize=8,
              color="white" if dark else INK,
              fontweight="bold" if cell.live == 0 else "normal")  # fmt: skip


def _draw_labels(axes: Any, table: RankMap) -> None:
    """Draw names along the axes, and totals of live components in a last row and column."""
    columns, rows = len(table.columns), len(table.rows)
    axes.set_xlim(-0.5, columns + 0.5)
    axes.set_ylim(rows + 0.5, -0.5)
    axes.set_xticks(range(columns + 1), [*table.column_labels(), "all"], fontsize=8)
    axes.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    for label in axes.get_xticklabels():
        label.set(rotation=40, ha="left", va="bottom", rotation_mode="anchor")
    axes.set_yticks(range(rows + 1), [*table.row_labels(), "all"], fontsize=8)
    axes.set_ylabel("layer", fontsize=8)
    sums = [(c, rows, table.column_total(name)) for c, name in enumerate(table.columns)]
    sums += [(columns, r, table.row_total(name)) for r, name in enumerate(table.rows)]
    sums.append((columns, rows, table.total))
    for x, y, rank in sums:
        axes.text(x, y, str(rank.live), ha="center", va="center", fontsize=8, color="#666666")
    for spine in axes.spines.values():
        spine.set_visible(False)
