"""Mean and deviation over seeds, and paired differences with a bootstrap interval."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

RESAMPLES = 10_000
LEVEL = 0.95
_SEED = 0  # fixed: the same runs must print the same interval each time


@dataclass(frozen=True)
class Summary:
    """Mean, deviation, best and median of one number per run."""

    n: int
    mean: float
    std: float | None
    """The standard deviation of the sample (n - 1); None for a single run."""
    best: float
    median: float


@dataclass(frozen=True)
class Difference:
    """The mean difference between two groups, over their common seeds."""

    n: int
    """Number of pairs."""
    mean: float
    low: float | None
    high: float | None
    """Ends of the interval; None if a task has fewer than two pairs."""


def summary(values: Sequence[float], *, greater_is_better: bool = True) -> Summary:
    """Summarise one number per run, of at least one run; all is NaN if a number is NaN."""
    n = len(values)
    if any(math.isnan(value) for value in values):
        return Summary(n, math.nan, math.nan if n > 1 else None, math.nan, math.nan)
    std = statistics.stdev(values) if n > 1 else None
    best = max(values) if greater_is_better else min(values)
    return Summary(n, statistics.fmean(values), std, best, statistics.median(values))


def pairs(values: Mapping[int, float], baseline: Mapping[int, float]) -> list[float]:
    """Return value minus baseline for each common seed."""
    return [value - baseline[seed] for seed, value in values.items() if seed in baseline]


def difference(tasks: Sequence[Sequence[float]]) -> Difference | None:
    """Return the mean difference, with a percentile bootstrap interval over pairs.

    Pairs are resampled within their task, and all tasks have equal weight: the tasks are fixed, so
    the interval says nothing about other tasks.

    Args:
        tasks: paired differences of each task.

    Returns:
        None without tasks, or if a task has no pair.
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

    # quantiles of resampled means: the percentile interval (Efron and Tibshirani 1993, chapter 13)
    generator = np.random.default_rng(_SEED)
    total = np.zeros(RESAMPLES)
    for values in tasks:
        drawn = generator.integers(len(values), size=(RESAMPLES, len(values)))
        total += np.asarray(values, dtype=np.float64)[drawn].mean(axis=1)
    outside = (1 - LEVEL) / 2
    low, high = np.quantile(total / len(tasks), [outside, 1 - outside])
    return float(low), float(high)
