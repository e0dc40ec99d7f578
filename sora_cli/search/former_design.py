"""Searches of earlier versions whose design left: shown, but neither continued nor tested again.

Layouts 2 and 3 of `auto.json` and `certificate.json` have more designs than one test of each size
on rows that no adapter is trained on. Their adapters are ordinary ones; only the search behind them
is of another kind. No torch here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sora_cli.core.errors import DiscontinuedError

FORMER_FOLDER = "halves"
"""Folder of a cross-fitted search that holds the searches of both halves, `1` and `2`."""
BOTH = "both"
"""Value of `basis` in these files: a test by labels and a test by answers."""


def former_design(file: Path) -> str | None:
    """Return the design of a stored search, in words; None: this version knows it.

    Args:
        file: an `auto.json` or a `certificate.json`, which may be missing.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # its own reader reports damage
        return None
    if not isinstance(values, Mapping):
        return None
    # before the first part of such a search is finished, only its rows tell
    if values.get("halves") or "half 1" in _part(values, "rows"):
        return "trained and tested on both halves of its rows (cross-fitting)"
    if BOTH in (values.get("basis"), _part(values, "promise").get("basis")):
        return "tested by labels and by answers, each at half the error (auto.basis=both)"
    if values.get("final"):
        return "followed by training the size found on all rows (auto.refit)"
    return None


def check_design(file: Path) -> None:
    """Raise `DiscontinuedError` for a search that this version can only show."""
    design = former_design(file)
    if design is not None:
        raise DiscontinuedError(
            f"the search in '{file.parent}' was {design}: it can be neither continued nor tested "
            "again, as this version has no such design"
        )


def _part(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return a block; anything else in its place is empty."""
    found = values.get(key)
    return found if isinstance(found, Mapping) else {}
