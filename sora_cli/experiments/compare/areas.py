"""AURAC: the area under the curve of a metric against the logarithm of the parameters kept.

One number for a family of sizes. Modoranu, Safaryan and Alistarh 2026 (MatryoshkaLoRA, arXiv
2605.07850) take trapezoids over the ranks that an adapter is cut to, or over their logarithms, and
divide by the width (`metrics.py` of their code: AURAC_v1 and AURAC_v2). Here the axis is the
logarithm of the parameters, since ranks differ from module to module, and curves of several
families are cut to the range that all of them have.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from sora_cli.experiments.compare.sizes import Scores, Sized, Sizes

LEAST = 3
"""Sizes that make a curve; with fewer the range of all families would be theirs."""
Curve = Sequence[tuple[float, float]]
"""Points of a curve: parameters, above 0, and metric."""


@dataclass(frozen=True)
class Area:
    """The AURAC of a family.

    Attributes:
        family: its name.
        is_simple: all its sizes are trained at a fixed rank.
        reach: smallest and largest share of the baseline's parameters of its labels.
        scores: by task and seed.
    """

    family: str
    is_simple: bool
    reach: tuple[float, float]
    scores: Scores

    @property
    def mean(self) -> float:
        """Mean over tasks of the means over seeds."""
        return statistics.fmean(statistics.fmean(of.values()) for of in self.scores.values())


@dataclass(frozen=True)
class Areas:
    """The AURAC of all families that have one, over the same sizes.

    Attributes:
        areas: none where there is no range that all families have.
        low, high: ends of that range, shares of the baseline's parameters.
        left_out: families with too few sizes.
    """

    areas: tuple[Area, ...]
    low: float
    high: float
    left_out: tuple[str, ...]


def aurac(curve: Curve, low: float, high: float) -> float:
    """Return the mean height of a curve over log(parameters) between two sizes.

    1 / (ln high - ln low) * integral of m(x) d ln x, with m joined by lines between the points:
    the sum of (ln x[i+1] - ln x[i]) * (m[i] + m[i+1]) / 2, over that width.

    Args:
        curve: points that reach from `low` or less to `high` or more; equal sizes are averaged.
        low, high: parameters, or shares of them; 0 < low < high.
    """
    heights: dict[float, list[float]] = {}
    for size, metric in sorted(curve):
        heights.setdefault(math.log(size), []).append(metric)
    points = [(x, math.fsum(metrics) / len(metrics)) for x, metrics in heights.items()]
    first, last = math.log(low), math.log(high)
    xs = [first, *(x for x, _ in points if first < x < last), last]
    ys = [_height(points, x) for x in xs]
    steps = pairwise(zip(xs, ys, strict=True))
    return math.fsum((b - a) * (m + n) / 2 for (a, m), (b, n) in steps) / (last - first)


def _height(points: Sequence[tuple[float, float]], x: float) -> float:
    """Return the height at x of lines that join the points; beyond the ends that of the end."""
    if x <= points[0][0]:
        return points[0][1]
    for (a, m), (b, n) in pairwise(points):
        if x <= b:
            return m + (n - m) * (x - a) / (b - a)
    return points[-1][1]


def areas_of(sizes: Sizes) -> Areas:
    """Return the AURAC of each family with enough sizes, over the sizes that all of them have."""
    families = sizes.families()
    curves = {name: _curves(members, sizes.tasks) for name, members in families.items()}
    left_out = tuple(name for name, found in curves.items() if not found)
    curves = {name: found for name, found in curves.items() if found}
    every = [curve for found in curves.values() for of in found.values() for curve in of.values()]
    low = max((min(curve)[0] for curve in every), default=math.inf)
    high = min((max(curve)[0] for curve in every), default=0.0)
    if low >= high:
        return Areas((), low, high, left_out)
    areas = []
    for name, found in curves.items():
        members = families[name]
        scores = {task: {seed: aurac(curve, low, high) for seed, curve in of.items()}
                  for task, of in found.items()}  # fmt: skip
        simple = all(member.is_simple for member in members)
        areas.append(Area(name, simple, (members[0].share, members[-1].share), scores))
    return Areas(tuple(areas), low, high, left_out)


def _curves(members: Sequence[Sized], tasks: Sequence[str]) -> dict[str, dict[int, Curve]]:
    """Return a family's curve for each task and each seed that all its sizes have.

    Returns:
        Nothing where there are too few sizes with parameters in each run, or a task has no seed.
    """
    alive = [member for member in members if member.reach[0] > 0]
    if len({member.share for member in alive}) < LEAST:
        return {}
    curves: dict[str, dict[int, Curve]] = {}
    for task in tasks:
        points = [member.points(task) for member in alive]
        seeds = [seed for seed in points[0] if all(seed in other for other in points)]
        if not seeds:
            return {}
        curves[task] = {seed: [of[seed] for of in points] for seed in seeds}
    return curves
