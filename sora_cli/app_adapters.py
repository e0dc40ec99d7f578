"""The commands that work on adapter files: one short function each, as in `app`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sora_cli.app_options import Adapter, Force, Json, Output


def add_commands(app: typer.Typer) -> None:
    """Register them, in the order of the help page."""
    for command in (inspect, prune, merge):
        app.command()(command)


def inspect(
    directory: Adapter,
    as_json: Json = False,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", help="Draw the ranks to this picture."),
    ] = None,
) -> None:
    """Show where an adapter's ranks are."""
    from sora_cli.commands.inspect import inspect

    inspect(directory, as_json=as_json, plot=plot)


def prune(
    directory: Adapter,
    output: Output,
    energy: Annotated[
        float | None,
        typer.Option("--energy", help="Keep this share of each layer's squared singular values."),
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option("--rank", help="Keep at most this rank in each layer."),
    ] = None,
    max_params: Annotated[
        int | None,
        typer.Option("--max-params", help="Keep the strongest components within this many."),
    ] = None,
    force: Force = False,
) -> None:
    """Shrink an adapter; without options, take out exact zeros only."""
    from sora_cli.commands.prune import prune

    prune(directory, output, energy=energy, rank=rank, max_params=max_params, force=force)


def merge(
    directory: Adapter,
    output: Output,
    base: Annotated[
        str | None,
        typer.Option("--base", help="The base model, where it is not the one the adapter names."),
    ] = None,
    force: Force = False,
) -> None:
    """Fold an adapter into its base model."""
    from sora_cli.commands.merge import merge

    merge(directory, output, base=base, force=force)
