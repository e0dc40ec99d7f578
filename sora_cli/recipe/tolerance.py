"""A tolerated loss as people write it: in the metric's own unit, or in points.

`0.01` is in the metric's own unit. `0.5pt` is half a point, a hundredth of a metric that ends at 1:
0.005. A bare 0.5 of such a metric would allow half of all there is, and is more likely half a
point, so it is asked back. One parser for `auto`, `prune --max-drop` and `pick --max-drop`.
"""

from __future__ import annotations

import math
import re

from sora_cli.core.errors import SoraError

CONFIDENCE = 0.95
"""The confidence with which a tolerated drop is kept, where none is given."""
AGREEMENT = "agreement"
"""Metric of a promise about answers: the share of rows answered as at full rank."""
_POINTS = re.compile(r"(.+?)\s*(?:pt|pts|points?)")
_ASKED_BACK = 0.1  # of a metric that ends at 1: ten points, which is more than anybody means


def parse_drop(value: str | float, metric: str, *, name: str = "--max-drop") -> float:
    """Return a tolerated drop in the metric's own unit.

    Args:
        value: a number, or one with `pt`.
        metric: the metric that may fall, or rise if it is a loss, by so much.
        name: the option or key, for errors.

    Raises:
        SoraError: no such number; points of a metric that does not end at 1; a bare number that
            could mean two things.
    """
    from sora_cli.recipe.families import is_share  # pydantic, which --help can do without

    shown = check_drop(value, name=name)
    points = _POINTS.fullmatch(shown)
    drop = float(points[1]) / 100 if points else float(shown)
    if is_share(metric) and drop >= (1 if points else 100):
        raise SoraError(
            f"{name} {shown} of {metric}, which ends at 1, is everything there is",
            hint=f"{name} 1pt",
        )
    if points is None:
        if is_share(metric) and drop >= _ASKED_BACK:
            raise SoraError(
                f"{name} {shown} of {metric}, which ends at 1: is that {drop:g} of a point, or "
                f"{drop * 100:g} points?",
                hint=f"{name} {drop:g}pt ({drop / 100:g}) or {name} {drop * 100:g}pt ({drop:g})",
            )
        return drop
    if not is_share(metric):
        raise SoraError(
            f"{name} {shown}: a point is a hundredth of a metric that ends at 1, and {metric} "
            "is not known to",
            hint=f"give it in the unit of {metric}: {name} 0.02",
        )
    return drop


def parse_share(value: str | float, *, name: str = "--max-differ") -> float:
    """Return a share of rows, such as 1% or 0.01, as a number from 0 to below 1.

    Args:
        name: option or key, for errors.
    """
    shown = f"{value:.12g}" if isinstance(value, int | float) else value.strip()
    percent = shown.removesuffix("%")
    try:
        share = float(percent) / (100 if percent != shown else 1)
    except ValueError as error:
        raise SoraError(
            f"{name} must be a share of the rows, not '{shown[:40]}'", hint=f"{name} 1%"
        ) from error
    if not 0 <= share < 1:
        raise SoraError(
            f"{name} must be a share of the rows from 0 to below 1, not {shown}", hint=f"{name} 1%"
        )
    return share


def check_drop(value: str | float, *, name: str = "--max-drop") -> str:
    """Check a tolerated drop as far as that needs no metric; return it as text.

    Raises:
        SoraError: no number of 0 or more, with or without `pt`.
    """
    shown = f"{value:.12g}" if isinstance(value, int | float) else value.strip()
    points = _POINTS.fullmatch(shown)
    try:
        number = float(points[1] if points else shown)
    except ValueError as error:
        raise SoraError(
            f"{name} must be a number, or one of points, not '{shown[:40]}'",
            hint=f"{name} 0.005, or {name} 0.5pt for the same of a metric that ends at 1",
        ) from error
    if not 0 <= number < math.inf:
        raise SoraError(f"{name} must be 0 or more, not {shown}", hint=f"{name} 0.005")
    return shown
