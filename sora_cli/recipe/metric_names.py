"""Checks of metric names: built-in metrics of a task family, and safe metrics of the Hub.

The package `evaluate` first reads a name as a local path and runs the code there. Metrics of users
on the Hub ("user/name") are code of unknown people. Therefore a name must be a metric of the task
family or, for families that predict one number per row, a single word: a metric of the Hub's own
collection, which Hugging Face maintains. Nothing here imports a metric.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from methods.words import closest
from sora_cli.core.errors import SoraError
from sora_cli.recipe.task_options import TaskOptions

_ONE_WORD = re.compile(r"[A-Za-z0-9_-]+")


def check_metric(name: str, known: Sequence[str], *, from_hub: bool) -> None:
    """Raise `SoraError` for a metric name that is unknown or unsafe; the Hub is not asked.

    Args:
        known: the metrics of the task family.
        from_hub: True: the family also accepts metrics of the Hub's own collection.
    """
    if name in known:
        return
    if not from_hub:
        raise SoraError(
            f"no metric '{name[:80]}' for this task",
            where=built_in(known),
            hint=near(name, known),
            key="task.metrics",
        )
    if not _ONE_WORD.fullmatch(name):
        raise SoraError(
            f"metric '{name[:80]}' is not run: it is code of a user of the Hub",
            where=built_in(known),
            hint="or the name of a metric in the Hub's own collection, such as mcc",
            key="task.metrics",
        )
    if os.path.lexists(name):
        raise SoraError(
            f"metric '{name}' is not run: '{name}' in this directory would be run instead",
            hint="start the program in another directory, or use one of the built-in metrics",
            where=built_in(known),
            key="task.metrics",
        )


def from_the_hub(options: TaskOptions) -> list[str]:
    """Return the metrics of a task that need code from the Hub."""
    return [name for name in options.metrics if name not in options.METRICS]


def built_in(known: Sequence[str]) -> str:
    """List the built-in metrics in words."""
    return f"built-in: {', '.join(known)}"


def near(name: str, known: Sequence[str]) -> str | None:
    """Return "did you mean 'x'?"; None if nothing is near."""
    match = closest(name, known)
    return None if match is None else f"did you mean '{match}'?"
