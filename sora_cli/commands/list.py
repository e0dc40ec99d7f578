"""`sora list`: the runs below a directory, and how each stands."""

from __future__ import annotations

import json
from pathlib import Path

from sora_cli.core.checks import check_choice
from sora_cli.core.console import emit, emit_table, say
from sora_cli.experiments.listing.entry import STATES
from sora_cli.experiments.listing.table import COLUMNS, SORTS, chosen, entries, ordered, rows
from sora_cli.experiments.listing.walk import find_entries


def list_runs(
    place: Path,
    *,
    sort: str = "name",
    status: str | None = None,
    method: str | None = None,
    task: str | None = None,
    as_json: bool = False,
) -> None:
    """Print a line for each run below a directory.

    Args:
        sort: one of `SORTS`.
        status, method, task: list those only, and what they are a part of.
        as_json: print a JSON list of objects instead of the table.

    Raises:
        SoraError: there is no such directory, order or status.
    """
    check_choice("order", sort, SORTS)
    if status is not None:
        check_choice("status", status, STATES)
    found = find_entries(place)
    asked = {"status": status, "method": method, "task": task}
    wanted = {name: value for name, value in asked.items() if value is not None}
    shown = ordered(chosen(found, wanted), sort)
    if as_json:
        emit(
            json.dumps([json.loads(entry.model_dump_json()) for entry in entries(shown)], indent=2)
        )
    elif shown:
        _emit(list(rows(shown, place)), str(place))
    if not shown:
        say(f"{place} holds no such run" if found else f"{place} holds no run")


def _emit(lines: list[list[str]], title: str) -> None:
    """Print the columns in which any line has something."""
    used = [i for i in range(len(COLUMNS)) if i == 0 or any(line[i] for line in lines)]
    emit_table(title, [COLUMNS[i] for i in used], [[line[i] for i in used] for line in lines])
