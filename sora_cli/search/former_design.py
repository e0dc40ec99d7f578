"""Searches of earlier versions whose design left: shown, but neither continued nor checked.

Layouts 2 and 3 of `auto.json` and `certificate.json` know three more designs than rows held out
with one test. Their adapters are ordinary ones; only the search behind them is of another kind. No
torch here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sora_cli.core.errors import NoVerdictError

BOTH = "both"
"""Value of `auto.basis` in these files: a test by labels and one by answers."""


def former_design(file: Path) -> str | None:
    """Return the design of a stored search, in words; None: this version knows it.

    Args:
        file: an `auto.json` or a `certificate.json`, which may be missing.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # its own reader reports damage
        return None
    block = _part(_part(values, "recipe"), "auto")
    bases = {_part(values, "promise").get("basis"), block.get("basis"), _part(values).get("basis")}
    if _part(values).get("halves") or block.get("cross_fit") is True:
        return "trained and tested on both halves of its rows (cross-fitting)"
    if "half 1" in _part(values, "rows"):  # chosen by the tool itself, and nothing is trained yet
        return "trained and tested on both halves of its rows (cross-fitting)"
    if BOTH in bases:
        return "tested by labels and by answers, each at half the error (auto.basis=both)"
    if _part(values).get("final") or (block.get("refit") and "answers" not in bases):
        return "one whose size is trained once more on all rows (refit)"
    return None


def check_design(file: Path, use: str) -> None:
    """Raise `NoVerdictError` for a search that this version can only show.

    Args:
        use: the use that is not possible, such as "continued".
    """
    design = former_design(file)
    if design is not None:
        raise NoVerdictError(
            f"the search in '{file.parent}' was {design}: it cannot be {use} any more"
        )


def _part(values: Any, key: str | None = None) -> Mapping[str, Any]:
    """Return a mapping, or the mapping in it; anything else is empty."""
    found = values if key is None else _part(values).get(key)
    return found if isinstance(found, Mapping) else {}
