"""The application: table of commands, global options, error boundary.

Nothing slow is imported here. A command's module is imported when the command is called, and torch
only when the command needs it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from sora_cli import __version__
from sora_cli.core.boundary import guarded, told_losses
from sora_cli.core.checks import check_one, check_working_directory
from sora_cli.core.interruption import end_on_signals, raise_on_signals
from sora_cli.core.streams import open_streams
from sora_cli.core.timing import leave_with, start_with_process
from sora_cli.core.verbosity import Verbosity, choose

ANYWHERE = frozenset({"--debug", "--quiet", "--verbose"})
"""Options of every command, accepted at any place before a `--`."""

COMMANDS = {
    "init": "Write a recipe for data that has none.",
    "train": "Train a recipe.",
    "path": "Train a path of adapters from dense to sparse.",
    "pick": "Choose the smallest adapter of a path that is good enough.",
    "eval": "Score an adapter or a model on a recipe's validation data, or on benchmarks.",
    "predict": "Write rows with a model's answers; rows need no labels.",
    "generate": "Print what a trained model writes to a prompt, as it comes.",
    "chat": "Talk with a trained model, or with two; /base switches the adapter off.",
    "inspect": "Show where an adapter's ranks are and who can load it; or compare two.",
    "prune": "Shrink an adapter; without options, take out exact zeros only.",
    "export": "Write any adapter as a plain LoRA, and say who can load it.",
    "merge": "Fold an adapter into its base model, tensor by tensor.",
    "verify": (
        "Compare the outputs of two adapters or models, or a certificate with what its files "
        "give.\n\nThe exit code is 1 if they differ, and 3 if that cannot be told."
    ),
    "push": "Upload an adapter, or a merged model, to the Hub; private unless --public.",
    "extract": "Write a full fine-tuning's difference to its base as a plain LoRA.",
    "combine": "Make one adapter of several of the same base model.",
    "auto": "Find the smallest adapter within a tolerated loss, and certify it.",
    "sweep": "Carry out the runs of a sweep file.",
    "list": "List runs: status, method, score, size kept, time, and which can be resumed.",
    "compare": "Compare finished runs: mean and spread over seeds, size, time.",
    "report": "Write one HTML page about a run: scores, curves, ranks, spectra, examples, cost.",
    "schema": "Print the JSON schema of recipes, for editors.",
    "methods": "List the methods with their papers and options.",
    "recipes": "List, show and copy the recipes that come with the tool.",
}
"""Help of each command, in the order of `sora --help`, which shows the first lines.

The command NAME is the function `sora_cli.commands.NAME.NAME`, except for `_FUNCTIONS`.
"""
_FUNCTIONS = {"eval": "evaluate", "list": "list_runs"}
"""Commands whose names are Python's own -> names of their functions and modules."""


class Commands(TyperGroup):
    """Group of commands that builds a command only when it is called or asked for its help."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for name, text in COMMANDS.items():
            self.add_command(TyperCommand(name, help=text))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command named by the first word: its name, the command, the other words."""
        name, known, rest = super().resolve_command(ctx, args)
        return name, build(name) if name and known else None, rest


@cache
def build(name: str) -> Any:
    """Build a command from the signature of its function."""
    function = _FUNCTIONS.get(name, name)
    found = getattr(import_module(f"sora_cli.commands.{function}"), function)
    if not isinstance(found, typer.Typer):
        single = typer.Typer(add_completion=False, rich_markup_mode=None)
        single.command(name)(found)
        found = single
    built = typer.main.get_command(found)
    built.help = COMMANDS[name]
    return built


# Plain help: rich would take longer to import than everything else here.
app = typer.Typer(
    name="sora",
    cls=Commands,
    help="Low-rank fine-tuning that finds its own rank: LoRA cut while it trains, SoRA, AdaLoRA.",
    epilog="Start with: sora train quickstart, then sora inspect on what it wrote.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    invoke_without_command=True,
)


@app.callback()
def options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    # read before parsing, so that they work in any place
    quiet: Annotated[  # noqa: ARG001
        bool, typer.Option("--quiet", help="Show results and errors only; may stand anywhere.")
    ] = False,
    verbose: Annotated[  # noqa: ARG001
        bool, typer.Option("--verbose", help="Show what libraries log, too; may stand anywhere.")
    ] = False,
    debug: Annotated[  # noqa: ARG001
        bool, typer.Option("--debug", help="Show tracebacks; may stand anywhere.")
    ] = False,
) -> None:
    """Print the version, or the help if no command was given."""
    if version:
        typer.echo(f"sora {__version__}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())
    else:
        check_working_directory()


def run(arguments: Sequence[str]) -> int:
    """Run a command line; return its exit code (see `sora_cli.core.exit_codes`)."""
    words, anywhere = _taken_out(arguments)
    debug = "--debug" in anywhere or bool(os.environ.get("SORA_DEBUG"))

    def call() -> object:
        choose(_verbosity(anywhere))
        return typer.main.get_command(app)(words, prog_name="sora", standalone_mode=False)

    return guarded(call, debug=debug)


def _taken_out(arguments: Sequence[str]) -> tuple[list[str], set[str]]:
    """Split a command line into the words without the `ANYWHERE` options, and these options."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    anywhere = {word for word in arguments[:end] if word in ANYWHERE}
    return [w for i, w in enumerate(arguments) if w not in ANYWHERE or i >= end], anywhere


def _verbosity(anywhere: set[str]) -> Verbosity:
    check_one(sorted(anywhere - {"--debug"}))
    if "--quiet" in anywhere:
        return Verbosity.QUIET
    return Verbosity.VERBOSE if "--verbose" in anywhere else Verbosity.NORMAL


def main() -> None:
    """Run the command line of this process, then end the process."""
    end_on_signals()
    open_streams()
    leave_with(_run_process)


def _run_process() -> int:
    raise_on_signals()
    try:
        start_with_process()
        code = run(sys.argv[1:])
        return told_losses(code)
    finally:
        end_on_signals()
