"""AURAC: the area under the curve of a metric against the logarithm of the parameters kept.

It sums up a family of sizes in one number. Modoranu, Safaryan and Alistarh 2026 (MatryoshkaLoRA,
arXiv 2605.07850) apply the trapezoidal rule over the ranks that an adapter is cut to, or over the
logarithms of the ranks, and divide by the width (`metrics.py` of their code: AURAC_v1, AURAC_v2).
Here the axis is the logarithm of the parameters, because ranks differ between modules. The curves
of several families are limited to the range that all of them cover.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from sora_cli.experiments.compare.sizes import Scores, Sized, Sizes

LEAST = 3
"""Fewest sizes that make a curve. All families are limited to their common range, so a family with
one or two sizes would shrink the range of all others."""
Curve = Sequence[tuple[float, float]]
"""Points of a curve: parameters (above 0) and metric."""


@dataclass(frozen=True)
class Area:
    """The AURAC of a family.

    Attributes:
        family: name of the family.
        is_simple: True if all its sizes are trained at a fixed rank.
        reach: its smallest and largest size, as shares of the baseline's parameters.
        scores: AURAC by task and seed.
    """

    family: str
    is_simple: bool
    reach: tuple[float, float]
    scores: Scores

    @property
    def mean(self) -> float:
        """Mean over tasks of the mean over seeds."""
        return statistics.fmean(
            statistics.fmean(by_seed.values()) for by_seed in self.scores.values()
        )


@dataclass(frozen=True)
class Areas:
    """The AURAC of all families with enough sizes, over their common range.

    Attributes:
        areas: empty if the families have no range in common.
        low, high: ends of the common range, as shares of the baseline's parameters.
        left_out: families with too few sizes.
    """

    areas: tuple[Area, ...]
    low: float
    high: float
    left_out: tuple[str, ...]


def aurac(curve: Curve, low: float, high: float) -> float:
    """Return the mean height of a curve over log(parameters) between two sizes.

    AURAC = 1 / (ln high - ln low) * integral of m(x) d ln x, where m is linear in ln x between the
    points: the sum of (ln x[i+1] - ln x[i]) * (m[i] + m[i+1]) / 2, divided by the width.

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
    """Interpolate the points linearly at x; beyond either end, return the height of that end."""
    if x <= points[0][0]:
        return points[0][1]
    for (a, m), (b, n) in pairwise(points):
        if x <= b:
            return m + (n - m) * (x - a) / (b - a)
    return points[-1][1]


def areas_of(sizes: Sizes) -> Areas:
    """Compute the AURAC of each family with enough sizes, over their common range."""
    families = sizes.families()
    curves = {name: _curves(members, sizes.tasks) for name, members in families.items()}
    left_out = tuple(name for name, by_task in curves.items() if not by_task)
    curves = {name: by_task for name, by_task in curves.items() if by_task}
    # the common range reaches from the largest of the smallest sizes to the smallest of the largest
    every = [
        curve
        for by_task in curves.values()
        for seeds in by_task.values()
        for curve in seeds.values()
    ]
    low = max((min(curve)[0] for curve in every), default=math.inf)
    high = min((max(curve)[0] for curve in every), default=0.0)
    if low >= high:
        return Areas((), low, high, left_out)
    areas = []
    for name, by_task in curves.items():
        members = families[name]
        scores = {task: {seed: aurac(curve, low, high) for seed, curve in by_seed.items()}
                  for task, by_seed in by_task.items()}  # fmt: skip
        simple = all(member.is_simple for member in members)
        areas.append(Area(name, simple, (members[0].share, members[-1].share), scores))
    return Areas(tuple(areas), low, high, left_out)


def _curves(members: Sequence[Sized], tasks: Sequence[str]) -> dict[str, dict[int, Curve]]:
    """Return a family's curve for each task and each seed that all its sizes share.

    Returns:
        Empty if too few sizes have parameters left in every run, or if some task has no such seed.
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
        curves[task] = {seed: [by_seed[seed] for by_seed in points] for seed in seeds}
    return curves
