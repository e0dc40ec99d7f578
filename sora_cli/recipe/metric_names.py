"""Names of metrics: those a task family has, and those that may be looked up on the Hub.

`evaluate` takes a name for a path first, and runs what is there. Metrics that users publish on the
Hub ("user/name") are code that anybody may have written. So a name here is one of the task family's
own or, for families that predict one number a row, one word: a metric of the Hub's own collection,
which Hugging Face maintains. Nothing here imports a metric.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from methods.words import closest
from sora_cli.core.errors import SoraError
from sora_cli.recipe.families import TaskOptions

_ONE_WORD = re.compile(r"[A-Za-z0-9_-]+")


def check_metric(name: str, known: Sequence[str], *, from_hub: bool) -> None:
    """Check a metric's name, as far as that is possible without the Hub.

    Args:
        known: the task family's own.
        from_hub: whether others may be asked for.

    Raises:
        SoraError: it is a path, a user's own metric, none of the family's where it takes no
            others, or something here would be run in its place.
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
            f"metric '{name[:80]}' is not run: it is a user's own code",
            where=built_in(known),
            hint="or the name of a metric in the Hub's own collection, such as mcc",
            key="task.metrics",
        )
    if os.path.lexists(name):
        raise SoraError(
            f"metric '{name}' is not run: '{name}' here would be taken for it",
            hint="start the program in another directory, or use one of the built-in metrics",
            where=built_in(known),
            key="task.metrics",
        )


def from_the_hub(options: TaskOptions) -> list[str]:
    """Return those of a task's metrics whose code comes from the Hub."""
    return [name for name in options.metrics if name not in options.METRICS]


def built_in(known: Sequence[str]) -> str:
    """List the metrics that need no code from elsewhere."""
    return f"built-in: {', '.join(known)}"


def near(name: str, known: Sequence[str]) -> str | None:
    """Return "did you mean 'x'?"; None if nothing is near."""
    found = closest(name, known)
    return None if found is None else f"did you mean '{found}'?"
