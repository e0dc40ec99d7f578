"""Which metrics there are, and which names may be looked up: told without importing any.

`evaluate` takes a name for a path first, and runs what lies there. Other people's metrics on the
Hub ("user/name") are code of anybody's. So a name here is one of ours, or one word: a metric of the
Hub's own collection, which Hugging Face keeps.
"""

from __future__ import annotations

import difflib
import os
import re

from sora_cli.errors import SoraError

BUILT_IN = ("accuracy", "f1", "matthews_correlation", "pearson", "spearman", "pearson_spearman")
_ONE_WORD = re.compile(r"[A-Za-z0-9_-]+")


def check_metric(name: str) -> None:
    """Look at a metric's name, as far as that is possible without the Hub.

    Raises:
        SoraError: it is a path, somebody's own metric, or something here would be run in its place.
    """
    if name in BUILT_IN:
        return
    if not _ONE_WORD.fullmatch(name):
        raise SoraError(
            f"metric '{name[:80]}' is not run: it is code of somebody's own",
            where=built_in(),
            hint="or the name of a metric in the Hub's own collection, such as mcc",
            key="task.metrics",
        )
    if os.path.lexists(name):
        raise SoraError(
            f"metric '{name}' is not run: '{name}' here would be taken for it",
            hint="start the program in another directory, or use one of the built-in metrics",
            where=built_in(),
            key="task.metrics",
        )


def from_the_hub(names: list[str]) -> list[str]:
    """Those of some metrics whose code comes from the Hub."""
    return [name for name in names if name not in BUILT_IN]


def built_in() -> str:
    """All that need no code of others."""
    return f"built-in: {', '.join(BUILT_IN)}"


def near(name: str) -> str | None:
    """'did you mean ...?'; None if nothing is near."""
    found = difflib.get_close_matches(name, BUILT_IN, n=1, cutoff=0.6)
    return f"did you mean '{found[0]}'?" if found else None
