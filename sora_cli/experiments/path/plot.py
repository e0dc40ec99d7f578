"""`path.png`: scores against the adapter's size, and the components alive in each layer."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sora_cli.adapter.ranks import Rank, RankMap, rank_map
from sora_cli.core.figures import COLOURS, INK, QUIET, new_figure, save_figure
from sora_cli.experiments.path.record import PathReport, Stage

_GENERALISATION, _MEMORISATION, *_OTHERS = COLOURS
_DASHES = (0, (5, 2)), (0, (3, 1, 1, 1)), (0, (1, 1))
_CONTROLS = tuple(zip((*_OTHERS[:2], QUIET), _DASHES, strict=True))
"""Colour and dashes of each rule of removal, in the record's order; the first may be absent."""
_ROW_HEIGHT = 0.27  # inches


def plot_path(report: PathReport, path: Path) -> None:
    """Draw a path like the figures of Ding et al. 2023 (arXiv 2311.11696), and save the picture.

    Left: memorisation and generalisation, relative to stage 0, against the share of parameters
    left; with the controls, if there are any. Right: the share of components alive by kind of
    module and by layer, one column per stage.
    """
    rows = shares_by_place(report)
    height = max(4.2, _ROW_HEIGHT * len(rows) + 1.9)
    width = 6.0 + 2.0 + 0.5 * len(report.stages)
    figure = new_figure(width, height)
    left, right = figure.subplots(1, 2, width_ratios=[6.0, 2.0 + 0.5 * len(report.stages)])
    draw_curves(left, report)
    _draw_survivors(right, report, rows)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower left", ncols=2,
                  fontsize=8, frameon=False)  # fmt: skip
    _title(figure, report, width)
    save_figure(figure, path)


def shares_by_place(report: PathReport) -> list[tuple[str, list[Rank]]]:
    """Return rows of a name with its ranks per stage: all modules, each kind, each layer."""
    return _shares([_ranks_of(stage, report.stages[0]) for stage in report.stages])


def _title(figure: Any, report: PathReport, width: float) -> None:
    rows = ", ".join(f"{name} {n:,} rows" for name, n in report.rows.items())
    values = [stage.value for stage in report.stages]
    text = (
        f"{report.name}: {report.method}, {report.vary} from {values[0]:g} to {values[-1]:g} in "
        f"{len(values)} stages; {report.main_metric} on {rows}"
        if all(isinstance(v, int | float) for v in (values[0], values[-1]))
        else f"{report.name}: {report.method}, {report.vary} in {len(values)} stages"
    )
    lines = textwrap.wrap(text, int(width * 11))
    figure.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=10)


def draw_curves(axes: Any, report: PathReport) -> None:
    """Draw the scores of stages and controls against the share of the adapter's parameters left."""
    whole = report.stages[0].parameters or 1
    x = [100 * stage.parameters / whole for stage in report.stages]
    if report.controls is not None:
        points, rules = report.controls.points, list(report.controls.rules)
        # from the end: the first rule is absent if the method turns the basis
        for rule, (colour, dashes) in zip(rules, _CONTROLS[-len(rules) :], strict=True):
            y = [100.0, *(100 * point.relative[rule] for point in points)]
            axes.plot(x, y, color=colour, linewidth=1.3, linestyle=dashes,
                      label=f"stage 0 cut down: {rule}")  # fmt: skip
    for split, colour, marker, name in (
        (report.memorisation, _MEMORISATION, "s", "memorisation"),
        (report.generalisation, _GENERALISATION, "o", "generalisation"),
    ):
        y = [100 * stage.relative[split] for stage in report.stages]
        first = report.score(report.stages[0], split)
        axes.plot(x, y, color=colour, marker=marker, markersize=4.5, linewidth=1.8,
                  label=f"{name} ({split}; 100 % = {first:.3f})")  # fmt: skip
    axes.axhline(100, color=QUIET, linewidth=0.6, zorder=0)
    axes.set_xlim(max(*x, 100) + 2, -2)  # reversed: a path goes from large to small
    axes.set_xlabel(f"adapter parameters left, % of {whole:,}", fontsize=9)
    axes.set_ylabel(f"{report.main_metric}, % of stage 0", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(axis="y", linewidth=0.4, color="#dddddd")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _ranks_of(stage: Stage, first: Stage) -> RankMap:
    live = {path: len(indices) for path, indices in stage.alive.items()}
    return rank_map(live, {path: len(indices) for path, indices in first.alive.items()})


def _shares(maps: Sequence[RankMap]) -> list[tuple[str, list[Rank]]]:
    """Return rows of a name with its ranks per stage: all modules, each kind, each layer."""
    first = maps[0]
    rows: list[tuple[str, list[Rank]]] = [("all", [m.total for m in maps])]

    def add(labels: Sequence[str], names: Sequence[str], of: Callable[..., Rank]) -> None:
        rows.extend(
            (label, [of(m, name) for m in maps]) for label, name in zip(labels, names, strict=True)
        )

    add(first.column_labels(), first.columns, RankMap.column_total)
    if len(first.rows) > 1:
        labels = [f"layer {label}" for label in first.row_labels()]
        add(labels, first.rows, RankMap.row_total)
    return rows


def _draw_survivors(
    axes: Any, report: PathReport, rows: Sequence[tuple[str, Sequence[Rank]]]
) -> None:
    import numpy as np

    share = np.array([[r.live / r.start if r.start else 0.0 for r in ranks] for _, ranks in rows])
    axes.imshow(100 * share, cmap="viridis_r", vmin=0, vmax=100, aspect="auto")
    for y, x in np.ndindex(share.shape):
        axes.text(x, y, f"{100 * share[y, x]:.0f}", ha="center", va="center", fontsize=7,
                  color="white" if share[y, x] > 0.55 else INK)  # fmt: skip
    axes.set_yticks(range(len(rows)), [name for name, _ in rows], fontsize=8)
    labels = [f"{s.value:g}" if isinstance(s.value, float) else str(s.value) for s in report.stages]
    axes.set_xticks(range(len(labels)), labels, fontsize=8, rotation=45, ha="right")
    axes.set_xlabel(report.vary, fontsize=9)
    axes.set_title("components alive, % of stage 0", fontsize=9, loc="left")
    axes.tick_params(length=0)
    kinds = sum(not name.startswith("layer ") for name, _ in rows)
    for line in (0.5, kinds - 0.5):
        axes.axhline(line, color="white", linewidth=2.5)
    axes.spines[:].set_visible(False)
