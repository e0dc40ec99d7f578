"""The commands about many runs: one short function each, as in `app`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sora_cli.app_options import Code, NoVerify, Overrides


def add_commands(app: typer.Typer) -> None:
    """Register them, in the order of the help page."""
    app.command()(sweep)


def sweep(
    file: Annotated[Path, typer.Argument(help="A sweep file.")],
    overrides: Overrides = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the runs and the time they may take.")
    ] = False,
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", "-j", min=1, help="Runs side by side; without: one per GPU or CPU."),
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="Of each run; without: divided.")
    ] = None,
    engine: Annotated[str, typer.Option("--engine", help="local or ray.")] = "local",
    address: Annotated[
        str | None, typer.Option("--address", help="Of the Ray cluster: auto, or HOST:PORT.")
    ] = None,
    retries: Annotated[
        int, typer.Option("--retries", min=0, help="Starts more for a run that was killed.")
    ] = 2,
    no_verify: NoVerify = False,
    code: Code = None,
) -> int:
    """Carry out the runs of a sweep file."""
    from sora_cli.commands.sweep import sweep

    return sweep(
        file,
        overrides or [],
        dry_run=dry_run,
        jobs=jobs,
        threads=threads,
        engine=engine,
        address=address,
        retries=retries,
        verify=not no_verify,
        code=code or [],
    )
