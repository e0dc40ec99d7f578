"""The classes of a run's data: names, and number of rows in each part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from datasets import Dataset

from sora_cli.core.console import count, printable
from sora_cli.core.words import first_few
from sora_cli.run.prepare import Prepared
from sora_cli.tasks.base import Task
from sora_cli.tasks.encoded import Encoded
from sora_cli.tasks.labels import encode_classes

_FEW = 8  # up to this many classes are listed one by one
_LONG = 40  # characters of a name
_PARTS = {"select": "the selection rows"}

Counts = Mapping[str, Mapping[str, int]]
"""Part -> class -> number of rows (of words, if each word has a class), in label order."""


def class_counts(ready: Prepared) -> dict[str, dict[str, int]]:
    """Count the rows of each class in every part; {} for a task without classes."""
    parts = {"train": ready.train, **ready.report}
    if ready.selects_apart:
        parts["select"] = ready.select
    return count_classes(ready.task, parts)


def count_classes(task: Task, parts: Mapping[str, Encoded]) -> dict[str, dict[str, int]]:
    """Count the rows of each class in the given parts; {} for a task without classes."""
    counts = {}
    for name, part in parts.items():
        numbers = task.class_counts(part)
        if numbers is not None:
            names = task.label_names or []
            counts[name] = dict(zip(names, numbers.tolist(), strict=True))
    return counts


def raw_class_counts(task: Task, rows: Dataset) -> dict[str, int]:
    """Count the rows of each class before they are encoded; {} for a task without classes."""
    names, column = task.label_names, task.label_column
    if names is None or column is None or not task.options.ONE_LABEL:
        return {}
    counts = Counter(encode_classes(rows[column][:], names, column=column))
    return {name: counts[number] for number, name in enumerate(names)}


def class_lines(counts: Counts) -> Iterator[str]:
    """Yield one line about the classes and their row counts.

    Up to `_FEW` classes are listed one by one; of more, only the number and the range of their
    rows.

    Args:
        counts: from `class_counts`.
    """
    if not counts:
        return
    names = list(counts["train"])
    if len(names) > _FEW:
        spans = ", ".join(f"{_row_range(own)} in {_PARTS.get(n, n)}" for n, own in counts.items())
        yield f"{len(names)} classes, rows of each: {spans}"
        return
    each = (
        f"'{_short_name(name)}' {' / '.join(count(own[name]) for own in counts.values())}"
        for name in names
    )
    yield f"classes, in {' / '.join(_PARTS.get(n, n) for n in counts)}: {', '.join(each)}"


def absent_remarks(counts: Counts) -> Iterator[str]:
    """Yield a remark for each part in which some classes have no rows."""
    for part, own in counts.items():
        absent = [f"'{_short_name(name)}'" for name, rows in own.items() if not rows]
        if 0 < len(absent) < len(own) - 1:  # rows of a single class: see `label_remark`
            end = ": nothing can be learned about them" if part == "train" else ""
            few, where = first_few(absent, _FEW), _PARTS.get(part, part)
            yield f"classes without rows in {where}: {few} ({len(absent)} of {len(own)}){end}"


def _short_name(name: str) -> str:
    return printable(name if len(name) <= _LONG else f"{name[: _LONG - 3]}...")


def _row_range(own: Mapping[str, int]) -> str:
    low, high = min(own.values()), max(own.values())
    return count(low) if low == high else f"{count(low)} to {count(high)}"
