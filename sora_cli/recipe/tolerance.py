"""The accepted drop as users write it: in the metric's own unit, or in points.

`0.01` is in the metric's own unit. `0.5pt` is half a point; a point is a hundredth of a metric that
ends at 1, so that it means 0.005. A bare 0.5 of such a metric would allow half of its whole range;
the user more likely means half a point, and gets an error that asks. `auto`, `prune --max-drop` and
`pick --max-drop` share this parser.
"""

from __future__ import annotations

import math
import re

from sora_cli.core.errors import SoraError

CONFIDENCE = 0.95
"""Default confidence of a certified drop."""
AGREEMENT = "agreement"
"""Metric of a promise about answers: the share of rows answered as at full rank."""
_POINTS = re.compile(r"(.+?)\s*(?:pt|pts|points?)")
_ASKED_BACK = 0.1  # ten points of a metric that ends at 1: larger than any useful promise


def parse_drop(value: str | float, metric: str, *, name: str = "--max-drop") -> float:
    """Return an accepted drop in the metric's own unit.

    Points of a metric that does not end at 1, and a bare number of 0.1 or more of one that does,
    are errors.

    Args:
        value: a number, or a number with `pt`.
        metric: the metric that may get worse by this much.
        name: the option or key, for errors.
    """
    from sora_cli.recipe.metric_facts import facts_of

    shown = check_drop(value, name=name)
    points = _POINTS.fullmatch(shown)
    drop = float(points[1]) / 100 if points else float(shown)
    if facts_of(metric).ends_at_1 and drop >= (1 if points else 100):
        raise SoraError(
            f"{_set(name, shown)} allows any score: {metric} ends at 1",
            hint=f"for one point: {_set(name, '1pt')}",
        )
    if points is None:
        if facts_of(metric).ends_at_1 and drop >= _ASKED_BACK:
            raise SoraError(
                f"{_set(name, shown)} for {metric}, which ends at 1: is that {_points_of(drop)}, "
                f"or {drop * 100:g} points?",
                hint=f"{_set(name, f'{drop:g}pt')} (a drop of {drop / 100:g}), or "
                f"{_set(name, f'{drop * 100:g}pt')} (a drop of {drop:g})",
            )
        return drop
    if not facts_of(metric).ends_at_1:
        raise SoraError(
            f"{_set(name, shown)}: {metric} has no points (a point is 0.01 of a metric that ends "
            "at 1)",
            hint=f"give the drop in the unit of {metric}: {_set(name, '0.02')}",
        )
    return drop


def parse_share(value: str | float, *, name: str = "--max-differ") -> float:
    """Return a share of rows, such as 1% or 0.01, as a number above 0 and below 1.

    Args:
        name: option or key, for errors.
    """
    shown = f"{value:.12g}" if isinstance(value, int | float) else value.strip()
    percent = shown.removesuffix("%")
    points = _POINTS.fullmatch(shown)
    try:
        number = float(points[1] if points else percent)
    except ValueError as error:
        raise SoraError(
            f"{name} must be a share of the rows, not '{shown[:40]}'", hint=_set(name, "1%")
        ) from error
    share = number / (100 if percent != shown else 1)
    if points or not 0 < share < 1:
        why = "; no number of rows can certify 0" if number == 0 else ""
        # 5 and 5pt are probably five per cent
        is_percent = percent == shown and 0 < number < 100
        near = f"{number:g}%" if is_percent else "1%"
        raise SoraError(
            f"{name} must be a share of the rows, above 0 and below 1, not {shown[:40]}{why}",
            hint=_set(name, near),
        )
    return share


def check_drop(value: str | float, *, name: str = "--max-drop") -> str:
    """Return an accepted drop as text; raise `SoraError` unless it is 0 or more, perhaps in pt."""
    shown = f"{value:.12g}" if isinstance(value, int | float) else value.strip()
    points = _POINTS.fullmatch(shown)
    try:
        number = float(points[1] if points else shown)
    except ValueError as error:
        raise SoraError(
            f"{name} must be a number, with or without pt, not '{shown[:40]}'",
            hint=f"for half a point of a metric that ends at 1: {_set(name, '0.5pt')}, or "
            f"{_set(name, '0.005')}",
        ) from error
    if not 0 <= number < math.inf:
        raise SoraError(f"{name} must be 0 or more, not {shown}", hint=_set(name, "0.005"))
    return shown


def _set(name: str, value: str) -> str:
    """Return the words for the command line: `--max-drop 1pt`, or `auto.max_drop=1pt` for a key."""
    return f"{name} {value}" if name.startswith("-") else f"{name}={value}"


def _points_of(drop: float) -> str:
    """Return a number of points in words: "0.5 of a point", "1 point", "5 points"."""
    return f"{drop:g} of a point" if drop < 1 else f"{drop:g} point{'s' if drop != 1 else ''}"
