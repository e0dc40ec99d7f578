"""Runs by size: each label's share of the baseline's parameters, and the simple method to beat.

A task counts only if an adapter has something to learn there: the baseline must be clearly better
than the runs that train nothing but the head.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from methods.errors import MethodError
from methods.registry import config_class
from methods.words import did_you_mean
from sora_cli.core.errors import SoraError
from sora_cli.core.words import first_few
from sora_cli.experiments.compare.grouping import by_task
from sora_cli.experiments.compare.runs import Group, Unit
from sora_cli.experiments.compare.stats import Difference, difference, pairs

TOLERANCE = 1.25
"""A label belongs to a budget if its share is between 1/1.25 and 1.25 times the budget."""
MIN_GAIN = 5.0
"""Smallest gain over the head alone, in points, of the baseline on a task that counts."""
_ROUNDING = 1e-9
"""Relative slack: a share of exactly 0.8 times a budget must not be lost to rounding."""
_NUMBERED = re.compile(r"(.+?)[-_ ][A-Za-z_]*=?\d+(?:\.\d+)?(?:e[-+]?\d+)?%?")


def family_of(label: str) -> str:
    """Return a label without the number at its end.

    "cut-15" becomes "cut"; "lora-r8" and "lora r=8" become "lora". The labels of a family are one
    method at several sizes.
    """
    match = _NUMBERED.fullmatch(label)
    return match[1] if match else label


Scores = Mapping[str, Mapping[int, float]]
"""A metric by task and seed."""


def paired(scores: Scores, baseline: Scores) -> Difference | None:
    """Return the mean difference over the tasks of `scores`, paired by task and seed."""
    return difference([pairs(by_seed, baseline[task]) for task, by_seed in scores.items()])


@dataclass(frozen=True)
class Sized:
    """All runs of a label on the tasks that count.

    Attributes:
        groups: by task.
        shares: by task and seed: parameters kept / mean parameters of the baseline on that task.
        is_simple: True if trained at a fixed rank from the start: the method does not adapt ranks,
            and no run started from another run, except to round it.
    """

    label: str
    groups: Mapping[str, Group]
    shares: Mapping[str, Mapping[int, float]]
    is_simple: bool

    @property
    def family(self) -> str:
        """The label without the number at its end."""
        return family_of(self.label)

    @cached_property
    def share(self) -> float:
        """Mean share of the baseline's parameters; all tasks have equal weight."""
        return statistics.fmean(
            statistics.fmean(by_seed.values()) for by_seed in self.shares.values()
        )

    @property
    def reach(self) -> tuple[float, float]:
        """Smallest and largest share among the runs."""
        shares = [share for by_seed in self.shares.values() for share in by_seed.values()]
        return min(shares), max(shares)

    @property
    def scores(self) -> dict[str, dict[int, float]]:
        """The metric by task and seed."""
        return {task: group.scores for task, group in self.groups.items()}

    def points(self, task: str) -> dict[int, tuple[float, float]]:
        """Return share and metric on a task, by seed."""
        scores = self.groups[task].scores
        return {seed: (share, scores[seed]) for seed, share in self.shares[task].items()}

    def minus(self, other: Sized) -> Difference | None:
        """Return the mean difference of the metric, paired by task and seed."""
        return paired(self.scores, other.scores)


@dataclass(frozen=True)
class Sizes:
    """The labels and the tasks of a comparison at equal size.

    Attributes:
        baseline: shares and differences refer to this label.
        labels: all labels with adapter parameters, including the baseline, in order.
        tasks: the tasks that count.
        greater_is_better: True if larger values of the metric are better.
        percent: True if the metric is printed times 100.
        notes: tasks and labels that are left out, with the reasons.
        unit: of sizes.
    """

    baseline: Sized
    labels: tuple[Sized, ...]
    tasks: tuple[str, ...]
    greater_is_better: bool
    percent: bool
    notes: tuple[str, ...]
    unit: Unit

    def best(self, labels: Sequence[Sized]) -> Sized | None:
        """Return the label with the best mean difference to the baseline.

        Returns:
            None if no label has a seed in common with the baseline on each task.
        """
        differences = [(label, label.minus(self.baseline)) for label in labels]
        known = [
            (d.mean, label) for label, d in differences if d is not None and not math.isnan(d.mean)
        ]
        sign = 1 if self.greater_is_better else -1
        return max(known, key=lambda pair: sign * pair[0])[1] if known else None

    def strongest_simple(self, budget: float) -> Sized | None:
        """Return the best simple label within a budget; if all are larger, the smallest label.

        Args:
            budget: share of the baseline's parameters.
        """
        simple = [label for label in self.labels if label.is_simple]
        within = [label for label in simple if label.share <= budget * (1 + _ROUNDING)]
        if not within and simple:
            smallest = min(label.share for label in simple)
            within = [label for label in simple if label.share <= smallest * (1 + _ROUNDING)]
        return self.best(within)

    def families(self) -> dict[str, list[Sized]]:
        """Return the labels of each family, from small to large."""
        families: dict[str, list[Sized]] = {}
        for label in self.labels:
            families.setdefault(label.family, []).append(label)
        return {name: sorted(members, key=lambda m: m.share) for name, members in families.items()}


def nearest(share: float, budgets: Sequence[float]) -> float | None:
    """Return the budget nearest to a share by ratio; None if all are beyond the tolerance."""
    closest = min(budgets, key=lambda budget: _factor(share, budget))
    return closest if _factor(share, closest) <= TOLERANCE * (1 + _ROUNDING) else None


def _factor(a: float, b: float) -> float:
    return max(a / b, b / a)


def sizes_of(
    groups: Sequence[Group],
    baseline: str,
    *,
    min_gain: float = MIN_GAIN,
    unit: Unit = "parameters",
) -> Sizes:
    """Select the tasks that count and the labels with a size; an error if no task counts.

    Args:
        groups: of all tasks.
        baseline: label that shares and differences refer to.
        min_gain: points by which the baseline must be better than the head alone on a task that
            counts (for metrics that are printed times 100); with 0 or less, all tasks count.
        unit: what is counted.
    """
    tasks = {task: {g.label: g for g in members} for task, members in by_task(groups).items()}
    labels = dict.fromkeys(group.label for group in groups)
    if baseline not in labels:
        raise SoraError(f"no group is called '{baseline}'", hint=did_you_mean(baseline, labels))
    if not all(members[baseline].parameters for members in tasks.values() if baseline in members):
        raise SoraError(f"{baseline} has no parameters beside the head to compare sizes with")
    counted, notes = _counted(tasks, baseline, min_gain)
    if len({tasks[task][baseline].first.greater_is_better for task in counted}) > 1:
        raise SoraError("larger is better for the metrics of some tasks, smaller for others",
                        hint="compare only tasks of one kind")  # fmt: skip
    of_counted = {label: {t: tasks[t][label] for t in counted if label in tasks[t]}
                  for label in labels}  # fmt: skip
    sized = [
        _sized(label, members, of_counted[baseline], unit)
        for label, members in of_counted.items()
        if len(members) == len(counted) and any(g.parameters for g in members.values())
    ]
    lacking = [label for label, members in of_counted.items() if 0 < len(members) < len(counted)]
    if lacking:
        notes.append(f"left out, because they lack some of these tasks: {first_few(lacking, 12)}")
    first = of_counted[baseline].values()
    return Sizes(
        baseline=next(label for label in sized if label.label == baseline),
        labels=tuple(sized),
        tasks=tuple(counted),
        greater_is_better=all(group.first.greater_is_better for group in first),
        percent=all(group.first.percent for group in first),
        notes=tuple(notes),
        unit=unit,
    )


def _counted(
    tasks: Mapping[str, Mapping[str, Group]], baseline: str, min_gain: float
) -> tuple[list[str], list[str]]:
    """Return the tasks that count, and notes about the others."""
    counted, too_close, unknown = [], [], []
    floors: dict[str, None] = {}
    for task, members in tasks.items():
        if baseline not in members:
            continue
        gain = _gain(members, baseline)
        if gain is None or min_gain <= 0:
            counted.append(task)
            unknown += [task] if min_gain > 0 else []
            continue
        points, floor = gain
        floors[floor] = None
        if points >= min_gain:
            counted.append(task)
        else:
            too_close.append(f"{task} ({points:+.2f})")
    above = f"{baseline} {{}} at least {min_gain:g} points above {' or '.join(floors)}"
    if not counted:
        raise SoraError(f"no task counts: {above.format('is not')} in {', '.join(too_close)}",
                        hint="--min-gain 0 counts all tasks")  # fmt: skip
    notes = [f"tasks that count: {', '.join(counted)}"]
    if too_close:
        notes.append(f"tasks left out, since {above.format('is not')}: {', '.join(too_close)}")
    if unknown:
        notes.append(f"counted without a check, because there is no score of the head alone in "
                     f"percent: {', '.join(unknown)}")  # fmt: skip
    absent = [task for task, members in tasks.items() if baseline not in members]
    if absent:
        notes.append(f"there is no {baseline} in {', '.join(absent)}")
    return counted, notes


def _gain(members: Mapping[str, Group], baseline: str) -> tuple[float, str] | None:
    """Return the baseline's gain, in points, over the best label that trains only the head.

    Returns:
        The gain and the label; None without such a label, or if the metric is not in percent.
    """
    group = members[baseline]
    sign = 1 if group.first.greater_is_better else -1
    floors = [other for other in members.values() if not other.parameters]
    if not floors or not group.first.percent:
        return None
    floor = max(floors, key=lambda other: sign * statistics.fmean(other.metrics))
    gain = statistics.fmean(group.metrics) - statistics.fmean(floor.metrics)
    return 100 * sign * gain, floor.label


def _sized(
    label: str, groups: Mapping[str, Group], baseline: Mapping[str, Group], unit: Unit
) -> Sized:
    shares = {
        task: {run.seed: run.size(unit) / baseline[task].size(unit) for run in group.runs}
        for task, group in groups.items()
    }
    return Sized(label, groups, shares, all(_is_simple(group) for group in groups.values()))


def _is_simple(group: Group) -> bool:
    """Return True for a low-rank method of fixed rank that did not start from another run."""
    try:
        options = config_class(group.method)
    except MethodError:  # a method of the user's own, not registered in this process
        return False
    started = any(run.starts_from_another and not run.only_rounded for run in group.runs)
    return options.low_rank and not options.adapts_rank and not started
