"""Means and spreads over seeds, and paired differences with a bootstrap interval."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

RESAMPLES = 10_000
LEVEL = 0.95
_SEED = 0  # so that a table is printed alike each time


@dataclass(frozen=True)
class Summary:
    """Mean, spread, best and median of one number per run."""

    n: int
    mean: float
    std: float | None
    """The standard deviation of the sample (n - 1); None for a single run."""
    best: float
    median: float


@dataclass(frozen=True)
class Difference:
    """The mean difference between runs of two groups that have a seed in common."""

    n: int
    """Pairs."""
    mean: float
    low: float | None
    high: float | None
    """Ends of the interval; None where there are not two pairs (in each of several tasks)."""


def summary(values: Sequence[float], *, greater_is_better: bool = True) -> Summary:
    """Sum up one number per run, at least one; NaN if any is."""
    n = len(values)
    if any(math.isnan(value) for value in values):
        return Summary(n, math.nan, math.nan if n > 1 else None, math.nan, math.nan)
    std = statistics.stdev(values) if n > 1 else None
    best = max(values) if greater_is_better else min(values)
    return Summary(n, statistics.fmean(values), std, best, statistics.median(values))


def pairs(values: Mapping[int, float], baseline: Mapping[int, float]) -> list[float]:
    """Return value minus baseline for each seed that both have."""
    return [value - baseline[seed] for seed, value in values.items() if seed in baseline]


def difference(tasks: Sequence[Sequence[float]]) -> Difference | None:
    """Return the mean difference, with a percentile bootstrap interval over pairs.

    Args:
        tasks: paired differences of each task. Tasks count alike, however many pairs they have;
            pairs are resampled within their task.

    Returns:
        None where a task has no pair, or there is no task.
    """
    if not tasks or not all(tasks):
        return None
    n = sum(len(values) for values in tasks)
    mean = statistics.fmean(statistics.fmean(values) for values in tasks)
    if math.isnan(mean) or any(len(values) < 2 for values in tasks):
        return Difference(n, mean, None, None)
    return Difference(n, mean, *_interval(tasks))


def _interval(tasks: Sequence[Sequence[float]]) -> tuple[float, float]:
    import numpy as np

    generator = np.random.default_rng(_SEED)
    total = np.zeros(RESAMPLES)
    for values in tasks:
        drawn = generator.integers(len(values), size=(RESAMPLES, len(values)))
        total += np.asarray(values, dtype=np.float64)[drawn].mean(axis=1)
    outside = (1 - LEVEL) / 2
    low, high = np.quantile(total / len(tasks), [outside, 1 - outside])
    return float(low), float(high)
