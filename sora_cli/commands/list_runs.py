"""`sora list`: the runs below a directory, with their status."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from sora_cli.commands import options
from sora_cli.core.checks import check_choice
from sora_cli.core.console import emit, say
from sora_cli.core.table import emit_table
from sora_cli.experiments.listing.entry import STATES
from sora_cli.experiments.listing.table import SORTS, chosen, entries, ordered, run_table
from sora_cli.experiments.listing.walk import find_entries


def list_runs(
    directory: Annotated[
        Path, typer.Argument(metavar="[DIR]", help="A directory that contains runs at any depth.")
    ] = Path("runs"),
    *,
    sort: Annotated[
        str,
        typer.Option(
            "--sort",
            help="Order of the runs: name, started, score (best first), parameters, time or "
            "status.",
        ),
    ] = "name",
    status: Annotated[
        str | None,
        typer.Option(
            "--status",
            help="Show only runs with this status: finished, running, interrupted, failed, pruned, "
            "blocked or damaged.",
        ),
    ] = None,
    method: Annotated[
        str | None, typer.Option("--method", help="Show only runs of this method.")
    ] = None,
    task: Annotated[
        str | None, typer.Option("--task", help="Show only runs on this data set or file.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Print a line for each run below a directory."""
    check_choice("order", sort, SORTS)
    if status is not None:
        check_choice("status", status, STATES)
    every_run = find_entries(directory)
    filters = {"status": status, "method": method, "task": task}
    wanted = {name: value for name, value in filters.items() if value is not None}
    shown = ordered(chosen(every_run, wanted), sort)
    if as_json:
        emit(
            json.dumps([json.loads(entry.model_dump_json()) for entry in entries(shown)], indent=2)
        )
    elif shown:
        emit_table(run_table(shown, directory))
    if not shown:
        say(f"{directory} holds no such run" if every_run else f"{directory} holds no run")
