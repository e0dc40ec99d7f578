"""The pictures of `sora compare --plot`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sora_cli.core.figures import save_figure
from sora_cli.experiments.compare.budget_table import groups_shown
from sora_cli.experiments.compare.plot_curves import draw_curves
from sora_cli.experiments.compare.plot_points import draw_points
from sora_cli.experiments.compare.plot_ranks import draw_places
from sora_cli.experiments.compare.plot_sizes import draw_sizes
from sora_cli.experiments.compare.runs import Group
from sora_cli.experiments.compare.sizes import Sizes

_BESIDE = ("ranks", "curves")
"""Pictures beside that of a comparison, where there is something to draw: STEM-NAME."""


def picture_files(path: Path) -> list[Path]:
    """Return all files that a comparison's pictures may be written to, `path` first."""
    return [path, *(_beside(path, name) for name in _BESIDE)]


def plot_sizes(sizes: Sizes, budgets: Sequence[float], path: Path) -> list[Path]:
    """Save a comparison at equal size, and mean ranks; files that are there are replaced.

    Args:
        sizes: what is compared.
        budgets: shares of the baseline's parameters.
        path: of the difference to the baseline against the size, a line for each family. Beside
            it, where there is something to draw: STEM-ranks, mean ranks by kind of module and layer
            of the groups that the budgets' tables hold.

    Returns:
        The files written, `path` first.

    Raises:
        SoraError: the suffix is of no kind of picture.
    """
    save_figure(draw_sizes(sizes, budgets), path)
    return [path, *_save_beside(path, {"ranks": draw_places(groups_shown(sizes, budgets))})]


def plot_comparison(groups: Sequence[Group], path: Path) -> list[Path]:
    """Save up to three pictures; files that are there are replaced.

    Args:
        groups: as `sora compare` has made them.
        path: of metric against parameters, a panel per task, with the Pareto front. Beside it,
            where there is something to draw: STEM-ranks, mean ranks by kind of module and layer
            for each group whose ranks changed, and STEM-curves, metric and parameters against
            each number that groups of one method differ in alone. The suffix gives the format.

    Returns:
        The files written, `path` first.

    Raises:
        SoraError: the suffix is of no kind of picture.
    """
    save_figure(draw_points(groups), path)
    others = {"ranks": draw_places(groups), "curves": draw_curves(groups)}
    return [path, *_save_beside(path, others)]


def _save_beside(path: Path, figures: Mapping[str, Any | None]) -> list[Path]:
    """Save figures beside another; return the files of those that there are."""
    written = []
    for name, figure in figures.items():
        if figure is not None:
            save_figure(figure, _beside(path, name))
            written.append(_beside(path, name))
    return written


def _beside(path: Path, name: str) -> Path:
    return path.with_name(f"{path.stem}-{name}{path.suffix}")
