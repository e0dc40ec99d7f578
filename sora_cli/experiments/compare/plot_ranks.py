"""Mean ranks by kind of module and layer, a heat map per task and group.

The figure follows the SoRA paper (Ding et al. 2023, arXiv 2311.11696, figure 5).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sora_cli.adapter.ranks import RankMap
from sora_cli.core.figures import INK, QUIET, new_figure, plain
from sora_cli.experiments.compare.grouping import by_task
from sora_cli.experiments.compare.plot_style import Spread
from sora_cli.experiments.compare.runs import Group

_CELL = 0.31, 0.19
"""Width and height of a cell, inches."""
_MARGIN = 0.55, 0.95
"""Room for the labels around a heat map, inches."""
_PAGE = 8.2
"""Width for maps side by side, inches."""
_MOST = 40
"""Heat maps in a figure; more could not be read."""


@dataclass(frozen=True)
class MeanRanks:
    """Mean ranks of a group's modules over seeds.

    Attributes:
        shape: rows, columns and their names.
        live: (row, column) -> mean number of live components.
        largest: largest rank of a module at the start.
        kept: share of live components in each run, 0 to 1.
    """

    shape: RankMap
    live: Mapping[tuple[str, str], float]
    largest: int
    kept: Spread

    @classmethod
    def of(cls, group: Group) -> MeanRanks | None:
        """Average a group's ranks; None if it has no ranks, or no rank changed."""
        maps = [run.ranks for run in group.runs if run.ranks.cells]
        if not any(cell.live != cell.start for ranks in maps for cell in ranks.cells.values()):
            return None
        live = {
            place: Spread.of(m.cells[place].live for m in maps if place in m.cells).mean
            for place in maps[0].cells
        }
        largest = max(cell.start for ranks in maps for cell in ranks.cells.values())
        kept = Spread.of(ranks.total.live / max(ranks.total.start, 1) for ranks in maps)
        return cls(maps[0], live, largest, kept)

    def summary(self) -> str:
        """Return the share kept as text: "43 ± 2 % kept"."""
        spread = f" ± {100 * self.kept.deviation:.0f}" if self.kept.deviation else ""
        return f"{100 * self.kept.mean:.0f}{spread} % kept"


def draw_rank_maps(groups: Sequence[Group]) -> Any | None:
    """Draw a heat map for each group with changed ranks; None if no group has any."""
    tasks = {}
    for task, members in by_task(groups).items():
        maps = [(group, ranks) for group in members if (ranks := MeanRanks.of(group))]
        if maps:
            tasks[task] = maps
    if not tasks:
        return None
    every = [ranks for maps in tasks.values() for _, ranks in maps]
    width = max(len(ranks.shape.columns) for ranks in every) * _CELL[0] + _MARGIN[0]
    height = max(len(ranks.shape.rows) for ranks in every) * _CELL[1] + _MARGIN[1]
    columns = min(max(int(_PAGE / width), 1), max(len(maps) for maps in tasks.values()))
    lines = _lines(tasks, columns)
    figure = new_figure(max(columns * width + 0.8, 4.0), len(lines) * height + 0.5)
    grid = figure.subplots(len(lines), columns, squeeze=False)
    largest = max(ranks.largest for ranks in every)
    image = None
    for row, line in zip(grid, lines, strict=True):
        for axes, (group, ranks) in zip(row, line, strict=False):
            image = _draw_map(axes, group, ranks, largest)
        for axes in row[len(line) :]:
            axes.set_visible(False)
    _draw_bar(figure, grid, image, len(lines), len(every))
    return figure


def _lines(
    tasks: Mapping[str, Sequence[tuple[Group, MeanRanks]]], columns: int
) -> list[list[tuple[Group, MeanRanks]]]:
    """Arrange the maps in lines; each task starts a new line."""
    lines: list[list[tuple[Group, MeanRanks]]] = []
    left = _MOST
    for maps in tasks.values():
        shown = list(maps)[:left]
        left -= len(shown)
        lines += [shown[i : i + columns] for i in range(0, len(shown), columns)]
    return lines


def _draw_map(axes: Any, group: Group, ranks: MeanRanks, largest: int) -> Any:
    import numpy as np

    shape = ranks.shape
    grid = np.array([[ranks.live.get((row, column), np.nan) for column in shape.columns]
                     for row in shape.rows])  # fmt: skip
    image = axes.imshow(grid, cmap="viridis_r", vmin=0, vmax=largest, aspect="auto")
    for (y, x), value in np.ndenumerate(grid):
        if np.isfinite(value):
            axes.text(x, y, rank_text(value), ha="center", va="center", fontsize=5.5,
                      # viridis_r darkens with the value: white text on its darker half
                      color="white" if value > 0.48 * largest else INK,
                      in_layout=False)  # fmt: skip
    columns = [plain(name, 24) for name in shape.column_labels()]
    axes.set_xticks(range(len(columns)), columns, fontsize=6, rotation=40, ha="right",
                    rotation_mode="anchor")  # fmt: skip
    rows = [plain(name, 16) for name in shape.row_labels()]
    axes.set_yticks(range(len(rows)), rows, fontsize=6)
    axes.tick_params(length=0, pad=2, colors=INK)
    title = f"{plain(group.task, 30)}: {plain(group.label, 30)}\n{ranks.summary()}"
    axes.set_title(title, fontsize=7, loc="left", color=INK)
    axes.spines[:].set_visible(False)
    return image


def rank_text(value: float) -> str:
    """Format a mean rank for a cell: "0" if it is 0 in all seeds, "<.1" if it is below 0.05."""
    if value == 0 or value >= 9.95:
        return f"{value:.0f}"
    return "<.1" if value < 0.05 else f"{value:.1f}".removesuffix(".0")


def _draw_bar(figure: Any, grid: Any, image: Any, lines: int, maps: int) -> None:
    from matplotlib.ticker import MaxNLocator

    bar = figure.colorbar(image, ax=grid, shrink=min(1.0, 2.2 / lines), aspect=30, pad=0.01)
    bar.ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    bar.ax.tick_params(labelsize=7, colors=INK)
    bar.outline.set_visible(False)
    bar.set_label("components alive, mean over seeds", fontsize=7, color=INK)
    if maps > _MOST:
        figure.suptitle(f"the first {_MOST} of {maps} groups with ranks that changed", x=0.01,
                        ha="left", fontsize=8, color=QUIET)  # fmt: skip
