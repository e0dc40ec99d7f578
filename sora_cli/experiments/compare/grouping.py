"""Groups of runs that differ only in the seed, with labels that distinguish the groups."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sora_cli.adapter.ranks import shortest_names
from sora_cli.experiments.compare.runs import SEED, Group, Run

_MISSING = "\0"
"""Stands for a setting that a group does not have; no JSON text equals it."""
_FIRST_CHOICE = "method."
_STAYS = "training.keep_checkpoints"
"""Runs of a group may differ in the checkpoints they keep, which do not change the result."""


@dataclass(frozen=True)
class Grouped:
    """Groups, and notes on runs left out and on differing labels."""

    groups: tuple[Group, ...]
    notes: tuple[str, ...]


def group_runs(runs: Sequence[Run]) -> Grouped:
    """Group the runs that differ only in the seed.

    Three more differences are allowed within a group: the output, the paper's values, and the
    settings that are derived from other runs (`output.derived`). Runs with derived settings but
    different labels stay apart, because the runs they are derived from may differ.

    Tasks are in order of first appearance, and so are the groups of a task. If a group has several
    runs with the same seed, only the newest is used.
    """
    together: dict[str, list[Run]] = {}
    for run in runs:
        kind = [_common(run), run.label if run.derived else None]
        common = json.dumps(kind, sort_keys=True, default=str)
        together.setdefault(common, []).append(run)
    notes: list[str] = []
    groups = []
    for members in together.values():
        group = Group("", _common(members[0]), _one_per_seed(members, notes))
        groups.append(replace(group, label=_given_label(group, notes)))
    tasks = list(dict.fromkeys(group.task for group in groups))
    groups.sort(key=lambda group: tasks.index(group.task))
    return Grouped(tuple(_told_apart(groups)), tuple(notes))


def _common(run: Run) -> dict[str, Any]:
    """Return the settings that all runs of a group share."""
    left_out = (SEED, _STAYS, *run.derived)
    return {
        key: value
        for key, value in run.settings.items()
        if key not in left_out and not key.startswith(tuple(f"{name}." for name in left_out))
    }


def _one_per_seed(runs: Sequence[Run], notes: list[str]) -> tuple[Run, ...]:
    by_seed: dict[int, list[Run]] = {}
    for run in runs:
        by_seed.setdefault(run.seed, []).append(run)
    chosen = []
    for seed, same in sorted(by_seed.items()):
        *older, newest = sorted(same, key=lambda run: run.report.finished or "")
        chosen.append(newest)
        notes += [
            f"{run.directory} is left out: {newest.directory} is a newer run of seed {seed}"
            for run in older
        ]
    return tuple(chosen)


def _given_label(group: Group, notes: list[str]) -> str:
    """Return the group's `output.label`, or the method's name if it has none."""
    given = list(dict.fromkeys(run.label for run in group.runs if run.label))
    if len(given) > 1:
        notes.append(
            f"{group.task}: the labels {', '.join(given)} belong to one group, because its runs "
            f"differ only in the seed; the first label is used"
        )
    return given[0] if given else group.method


def _told_apart(groups: Sequence[Group]) -> list[Group]:
    """Add distinguishing settings to the label of groups that share task and label.

    The labels of all tasks get the same settings, so that a method has one label everywhere.
    Groups that no setting distinguishes are numbered.
    """
    alike: dict[str, list[int]] = {}
    for i, group in enumerate(groups):
        alike.setdefault(group.label, []).append(i)
    names = _short_names(groups)
    labels = [group.label for group in groups]
    for members in alike.values():
        keys = telling_keys([groups[i] for i in members])
        for i in members:
            words = [f"{names[key]}={shown(groups[i].settings.get(key))}" for key in keys]
            labels[i] = " ".join([labels[i], *words])
    numbers: dict[tuple[str, str], int] = {}
    named = []
    for group, label in zip(groups, labels, strict=True):
        number = numbers[group.task, label] = numbers.get((group.task, label), 0) + 1
        named.append(replace(group, label=label if number == 1 else f"{label} ({number})"))
    return named


def telling_keys(groups: Sequence[Group]) -> list[str]:
    """Choose a small set of settings that distinguishes groups of the same task.

    The search is greedy: it adds the setting that distinguishes most groups (of equal ones, an
    option of the method), and at the end drops settings that have become redundant.
    """
    values = [{key: json.dumps(v, default=str) for key, v in g.settings.items()} for g in groups]
    keys = sorted(
        dict.fromkeys(key for settings in values for key in settings),
        key=lambda key: not key.startswith(_FIRST_CHOICE),
    )
    chosen: list[str] = []
    kinds = _count(groups, values, chosen)
    while kinds < len(groups):
        best = max(keys, key=lambda key: _count(groups, values, [*chosen, key]))
        count = _count(groups, values, [*chosen, best])
        if count == kinds:
            break
        chosen, kinds = [*chosen, best], count
    for key in list(chosen):
        others = [other for other in chosen if other != key]
        if _count(groups, values, others) == kinds:
            chosen = others
    return chosen


def _count(
    groups: Sequence[Group], values: Sequence[Mapping[str, str]], keys: Sequence[str]
) -> int:
    """Count the groups that differ in their task or in one of these settings."""
    kinds = {
        (group.task, *(settings.get(key, _MISSING) for key in keys))
        for group, settings in zip(groups, values, strict=True)
    }
    return len(kinds)


def _short_names(groups: Sequence[Group]) -> dict[str, str]:
    """Map each setting's key to its shortest unambiguous ending."""
    keys = list(dict.fromkeys(key for group in groups for key in group.settings))
    return dict(zip(keys, shortest_names(keys), strict=True))


def shown(value: Any) -> str:
    """Format a setting's value for a label."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return "+".join(shown(part) for part in value)
    return str(value) if isinstance(value, str) else json.dumps(value, default=str)


def by_task(groups: Sequence[Group]) -> dict[str, list[Group]]:
    """Return the groups of each task, in order."""
    tasks: dict[str, list[Group]] = {}
    for group in groups:
        tasks.setdefault(group.task, []).append(group)
    return tasks


def differing(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the keys with different values, in order; a missing key counts as null."""
    keys = dict.fromkeys(key for values in settings for key in values)
    return [key for key in keys if len({frozen(s.get(key)) for s in settings}) > 1]


def frozen(value: Any) -> str:
    """Return a setting's value as JSON text, which can be compared and hashed."""
    return json.dumps(value, sort_keys=True, default=str)
