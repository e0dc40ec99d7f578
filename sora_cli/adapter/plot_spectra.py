"""The picture of `sora inspect --plot`: ranks by module beside the spectra by kind of module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sora_cli.adapter.plot import draw_rank_map, draw_title, rank_map_size, summary
from sora_cli.adapter.ranks import RankMap, rank_map, shortest_names
from sora_cli.core.figures import new_figure, save_figure

_CURVES = 5.2
"""Width of the curves, inches."""
_LEAST = 6.2
"""Height that two panels of curves need, inches."""
_FLOOR = 1e-4
"""Smallest share of the energy that is drawn."""
_GREY = "#888888"


def plot_inspection(
    ranks: Mapping[str, int],
    start: Mapping[str, int],
    spectra: Mapping[str, Sequence[float]],
    path: Path,
    title: str,
) -> None:
    """Save a heat map and two panels of curves, one curve per kind of module.

    The heat map shows ranks. If all of them are equal, a map of one colour would show nothing: then
    it shows how many components hold 99 % of each module's ||dW||^2.

    Args:
        ranks: module path -> live components.
        start: module path -> components at the start of training.
        spectra: module path -> singular values, descending, for the modules stored.
        path: the picture; the suffix gives the format; an existing file is replaced.
        title: the first lines; the last line is a summary.
    """
    live = rank_map(ranks, start)
    table, label, last = _map_to_draw(live, ranks, spectra)
    width, height = rank_map_size(table)
    height = max(height, _LEAST)
    figure = new_figure(width + _CURVES, height)
    grid = figure.add_gridspec(2, 2, width_ratios=[width, _CURVES])
    draw_rank_map(figure, figure.add_subplot(grid[:, 0]), table, label)
    curves = _curves(spectra)
    names = dict(zip(curves, shortest_names(list(curves)), strict=True))
    _draw_values(figure.add_subplot(grid[0, 1]), curves, names)
    _draw_losses(figure.add_subplot(grid[1, 1]), curves, names)
    draw_title(figure, title, width + _CURVES, last)
    save_figure(figure, path)


def _map_to_draw(
    live: RankMap, ranks: Mapping[str, int], spectra: Mapping[str, Sequence[float]]
) -> tuple[RankMap, str, str]:
    """Return the heat map, the label of its colour bar, and the last line of the title."""
    if len(set(ranks.values())) > 1 or not any(ranks.values()):
        return live, "rank", summary(live)
    needed = rank_map({path: _needed(spectra[path]) for path in ranks}, ranks)
    same = next(iter(ranks.values()))
    last = f"rank {same} everywhere; the map shows how many components hold 99 % of ||dW||²"
    return needed, "components for 99 %", last


def _needed(values: Sequence[float]) -> int:
    import torch

    from methods.factors import rank_for_energy
    from sora_cli.adapter.spectra import HIGH

    return rank_for_energy(torch.tensor(values, dtype=torch.float64), HIGH)


def _curves(spectra: Mapping[str, Sequence[float]]) -> dict[str, list[Any]]:
    """Return {kind of module: spectra of its live modules, relative to their largest values}."""
    import numpy as np

    curves: dict[str, list[Any]] = {}
    for path, values in spectra.items():
        kind = rank_map({path: 0}).columns[0]
        if len(values) and values[0] > 0:
            curves.setdefault(kind, []).append(np.asarray(values) / values[0])
    return curves


def _median(curves: Sequence[Any]) -> Any:
    """Return the median over modules at each index; after its end a spectrum counts as zero."""
    import numpy as np

    length = max(len(curve) for curve in curves)
    return np.median([np.pad(curve, (0, length - len(curve))) for curve in curves], axis=0)


def _draw_values(axes: Any, curves: Mapping[str, list[Any]], names: Mapping[str, str]) -> None:
    """Draw the singular values relative to the largest."""
    import numpy as np

    for i, (kind, group) in enumerate(curves.items()):
        values = _median(group)
        values = np.where(values > 0, values, np.nan)
        style = _style(i, names[kind], len(values))
        axes.plot(np.arange(1, len(values) + 1), values, **style)
    axes.set_yscale("log")
    axes.set_ylim(min(axes.get_ylim()[0], 0.08), 1.3)
    axes.set_xlim(*_span(1, _longest(curves)))
    _finish(axes, "component", "singular value / the largest", "spectrum (median over layers)")
    if curves:
        axes.legend(fontsize=7.5, frameon=False, ncols=2 if len(curves) > 4 else 1)


def _draw_losses(axes: Any, curves: Mapping[str, list[Any]], names: Mapping[str, str]) -> None:
    """Draw the share of the energy lost by a cut to each rank; a loss of zero is below the axis."""
    import numpy as np

    for i, (kind, group) in enumerate(curves.items()):
        losses = _median([_losses(curve) for curve in group])
        style = _style(i, names[kind], len(losses))
        axes.plot(np.arange(len(losses)), np.maximum(losses, _FLOOR / 10), **style)
    axes.set_yscale("log")
    axes.set_ylim(_FLOOR, 1.3)
    axes.set_xlim(*_span(0, _longest(curves)))
    for share, text in ((0.1, "90 % kept"), (0.01, "99 % kept")):
        axes.axhline(share, color=_GREY, linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
        axes.annotate(text, (1, share), xycoords=("axes fraction", "data"), xytext=(-2, 2),
                      textcoords="offset points", ha="right", fontsize=7.5,
                      color=_GREY)  # fmt: skip
    _finish(axes, "rank kept", "share of ||dW||² lost", "loss by pruning to a rank")


def _losses(curve: Any) -> Any:
    """Return the share of the energy beyond the first 0, 1, ... components."""
    import numpy as np

    # summed from the small end: 1 - cumsum would lose the digits of small losses
    tail = np.cumsum((curve**2)[::-1])[::-1]
    return np.append(tail, 0.0) / tail[0]


def _longest(curves: Mapping[str, list[Any]]) -> int:
    return max((len(curve) for group in curves.values() for curve in group), default=1)


def _span(first: int, last: int) -> tuple[float, float]:
    """Return the limits of an axis from `first` to `last` or a little further, with some room."""
    last = max(last, first + 1)
    room = 0.02 * (last - first)
    return first - room, last + room


def _style(i: int, label: str, points: int) -> dict[str, Any]:
    """Return a curve's style: ten colours, then dashes; dots where there are few points."""
    dash = ("-", (0, (4, 1.5)), (0, (1, 1)))[i // 10 % 3]
    marker = {"marker": "o", "markersize": 3} if points <= 16 else {}
    return {"color": f"C{i % 10}", "linestyle": dash, "linewidth": 1.6, "label": label, **marker}


def _finish(axes: Any, x: str, y: str, title: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_title(title, fontsize=9, loc="left")
    axes.set_xlabel(x, fontsize=8)
    axes.set_ylabel(y, fontsize=8)
    axes.tick_params(labelsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(color="#eeeeee", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
