"""The pictures of `sora compare --plot`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sora_cli.core.figures import save_figure
from sora_cli.experiments.compare.budget_table import groups_near_budgets
from sora_cli.experiments.compare.plot_curves import draw_curves
from sora_cli.experiments.compare.plot_points import draw_points
from sora_cli.experiments.compare.plot_ranks import draw_rank_maps
from sora_cli.experiments.compare.plot_sizes import draw_sizes
from sora_cli.experiments.compare.runs import Group
from sora_cli.experiments.compare.sizes import Sizes

_BESIDE = ("ranks", "curves")
"""Names of additional pictures, written as STEM-NAME if there is something to draw."""


def picture_files(path: Path) -> list[Path]:
    """Return all files that `plot_comparison` and `plot_sizes` may write, `path` first."""
    return [path, *(_beside(path, name) for name in _BESIDE)]


def plot_sizes(sizes: Sizes, budgets: Sequence[float], path: Path) -> list[Path]:
    """Save the pictures of a comparison at equal size; existing files are replaced.

    Args:
        budgets: shares of the baseline's parameters.
        path: for the difference to the baseline against the size, a line per family. The suffix
            gives the format. STEM-ranks, if ranks changed, shows the mean ranks by kind of module
            and layer of the groups in the budgets' tables.

    Returns:
        The files written, `path` first.
    """
    save_figure(draw_sizes(sizes, budgets), path)
    return [
        path,
        *_save_beside(path, {"ranks": draw_rank_maps(groups_near_budgets(sizes, budgets))}),
    ]


def plot_comparison(groups: Sequence[Group], path: Path) -> list[Path]:
    """Save up to three pictures of a comparison; existing files are replaced.

    Args:
        groups: from `group_runs`.
        path: for metric against parameters, a panel per task, with the Pareto front. The suffix
            gives the format. Two more pictures are written if there is something to draw:
            STEM-ranks, mean ranks by kind of module and layer for each group with changed ranks,
            and STEM-curves, metric and parameters for groups that differ in one number.

    Returns:
        The files written, `path` first.
    """
    save_figure(draw_points(groups), path)
    others = {"ranks": draw_rank_maps(groups), "curves": draw_curves(groups)}
    return [path, *_save_beside(path, others)]


def _save_beside(path: Path, figures: Mapping[str, Any | None]) -> list[Path]:
    """Save the figures that are not None as STEM-NAME; return their files."""
    written = []
    for name, figure in figures.items():
        if figure is not None:
            save_figure(figure, _beside(path, name))
            written.append(_beside(path, name))
    return written


def _beside(path: Path, name: str) -> Path:
    return path.with_name(f"{path.stem}-{name}{path.suffix}")
