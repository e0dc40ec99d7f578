"""The pictures of `sora compare --plot`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sora_cli.core.figures import save_figure
from sora_cli.experiments.compare.plot_curves import draw_curves
from sora_cli.experiments.compare.plot_points import draw_points
from sora_cli.experiments.compare.plot_ranks import draw_places
from sora_cli.experiments.compare.runs import Group


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
    written = [path]
    for name, figure in (("ranks", draw_places(groups)), ("curves", draw_curves(groups))):
        if figure is not None:
            beside = path.with_name(f"{path.stem}-{name}{path.suffix}")
            save_figure(figure, beside)
            written.append(beside)
    return written
