"""The spectra of a run's adapter: per module and pooled, with the sizes that cuts would leave."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sora_cli.adapter.modules import Module, SmallerCut, cuts
from sora_cli.adapter.ranks import rank_map, shortest_names
from sora_cli.core.console import count
from sora_cli.core.figures import (
    COLOURS,
    INK,
    QUIET,
    arrange,
    colour,
    finish,
    new_figure,
    plain,
    short_number,
)
from sora_cli.core.shell import quote
from sora_cli.core.table import Column, Table
from sora_cli.experiments.report.curves import SIZE

_FLOOR = 1e-6
"""Smallest singular value that is drawn, relative to the largest."""
_FEW = 1000
"""Pictures with at most this many points have markers."""


def cut_table(modules: Mapping[str, Module]) -> Table:
    """Return a table of cuts by `sora prune` and their results, as in `sora inspect`."""
    columns = [Column("cut to", ".0%"), Column("parameters", count), Column("components", count),
               Column("mean rank", ".2f"), Column("of ||dW||²", ".1%")]  # fmt: skip
    rows = [(cut.share, cut.parameters, cut.components, cut.components / len(modules), cut.energy)
            for cut in cuts(modules)]  # fmt: skip
    return Table(None, columns, rows)


def cut_commands(modules: Mapping[str, Module], run: Path) -> list[str]:
    """Return the command for each row of `cut_table`."""
    return [f"sora prune {quote(str(run))} -o OUT --max-params {cut.max_params}"
            for cut in cuts(modules)]  # fmt: skip


def draw_modules(modules: Mapping[str, Module]) -> Any | None:
    """Draw the singular values of each module, coloured by kind; None if all are zero."""
    kinds: dict[str, list[Sequence[float]]] = {}
    for path, module in modules.items():
        if module.values and module.values[0] > 0:
            kinds.setdefault(rank_map({path: 0}).columns[0], []).append(module.values)
    if not kinds:
        return None
    from matplotlib.ticker import MaxNLocator

    few = sum(len(values) for group in kinds.values() for values in group) <= _FEW
    largest = max(values[0] for group in kinds.values() for values in group)
    figure = new_figure(SIZE[0], SIZE[1] + 0.5, solved=False)
    axes = figure.subplots()
    finish(axes, "each module by itself", "component", "singular value")
    names = dict(zip(kinds, shortest_names(list(kinds)), strict=True))
    for i, (kind, group) in enumerate(kinds.items()):
        for n, values in enumerate(group):
            # NaN leaves a gap: values near 0 would stretch a logarithmic axis
            shown = [value if value > _FLOOR * largest else math.nan for value in values]
            axes.plot(range(1, len(shown) + 1), shown, color=colour(i), linewidth=0.9, alpha=0.8,
                      linestyle=("-", (0, (4, 1.5)), (0, (1, 1)))[i // len(COLOURS) % 3],
                      marker="o" if few else "", markersize=2,
                      label=None if n else plain(names[kind], 30))  # fmt: skip
    _set_log_scale(axes)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    figure.legend(*axes.get_legend_handles_labels(), loc="lower left", ncols=2, fontsize=7,
                  frameon=False, labelcolor=INK, borderpad=0.3)  # fmt: skip
    arrange(figure, 1, 1, below=0.13 * math.ceil(len(kinds) / 2) + 0.1)
    return figure


def pooled(modules: Mapping[str, Module]) -> tuple[list[float], list[float]]:
    """Return the singular values of all modules in the order of a cut, kept components first.

    Returns:
        The share of the adapter's parameters up to and including each component; and for each the
        singular value / sqrt(parameters of the component), relative to the largest.
    """
    stored = sum(m.stored * m.cost for m in modules.values())
    # a cut keeps the components with the most squared norm per parameter: value^2 / cost
    worth = sorted(
        ((value / math.sqrt(m.cost), m.cost) for m in modules.values() for value in m.values),
        key=lambda pair: -pair[0],
    )
    sizes, values, size = [], [], 0
    for value, cost in worth:
        size += cost
        sizes.append(size / stored)
        values.append(value / (worth[0][0] or 1.0))
    return sizes, values


def draw_pooled(modules: Mapping[str, Module]) -> Any | None:
    """Draw the singular values in the order of a cut, with a line at each possible cut."""
    sizes, values = pooled(modules)
    if not values or not values[0]:
        return None
    figure = new_figure(SIZE[0], SIZE[1] + 0.5, solved=False)
    axes = figure.subplots()
    finish(axes, "all modules together", "adapter parameters kept, %",
           "singular value / √cost")  # fmt: skip
    shown = [value if value > _FLOOR else math.nan for value in values]
    axes.plot([100 * share for share in sizes], shown, color=colour(0), linewidth=1.6)
    _set_log_scale(axes)
    axes.set_xlim(0, 102)
    middle = math.prod(axes.get_ylim()) ** 0.5  # geometric mean: the middle of a logarithmic axis
    for cut in cuts(modules):
        reached = next((v for size, v in zip(sizes, values, strict=True) if size >= cut.share), 0)
        _mark(axes, cut, below=reached > middle)
    arrange(figure, 1, 1, below=0.0)
    return figure


def _set_log_scale(axes: Any) -> None:
    """Make the y axis logarithmic, with few ticks as plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    steps = (1.0, 2.0, 5.0) if high < 1e3 * low else (1.0,)
    axes.yaxis.set_major_locator(LogLocator(subs=steps, numticks=8))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: short_number(y)))
    axes.yaxis.set_minor_locator(NullLocator())


def _mark(axes: Any, cut: SmallerCut, *, below: bool) -> None:
    """Draw a line at a cut, and beside the line the share of ||dW||^2 that the cut keeps.

    Args:
        below: write at the bottom, where the curve is above the middle.
    """
    axes.axvline(100 * cut.share, color=QUIET, linewidth=0.9, linestyle=(0, (4, 3)))
    axes.annotate(f"{cut.share:.0%}: keeps {cut.energy:.1%}",
                  (100 * cut.share, 0.02 if below else 0.98),
                  xycoords=("data", "axes fraction"), xytext=(2, 0), textcoords="offset points",
                  rotation=90, va="bottom" if below else "top", ha="left", fontsize=7,
                  color=QUIET)  # fmt: skip
