"""The classes of the test rows, for the scope of a promise."""

from __future__ import annotations

from collections.abc import Mapping

from sora_cli.run.class_counts import raw_class_counts
from sora_cli.search.certificate import TEST, RowSet
from sora_cli.search.rows import Held, Part
from sora_cli.tasks.base import Task


def with_classes(
    sets: Mapping[str, RowSet], held: Mapping[str, Held], task: Task
) -> dict[str, RowSet]:
    """Return the row sets with the classes of the test rows, if these have labels and classes."""
    test = held.get(TEST)
    if not isinstance(test, Part):
        return dict(sets)
    classes = raw_class_counts(task, test.rows) or None
    return {**sets, TEST: sets[TEST].model_copy(update={"classes": classes})}
