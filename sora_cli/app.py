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
from sora_cli.core.boundary import guarded, report_lost_output
from sora_cli.core.checks import check_exclusive, check_working_directory
from sora_cli.core.errors import SoraError
from sora_cli.core.interruption import end_on_signals, raise_on_signals
from sora_cli.core.streams import open_streams
from sora_cli.core.timing import leave_with, start_with_process
from sora_cli.core.verbosity import Verbosity, choose

ANYWHERE = frozenset({"--debug", "--quiet", "--verbose"})
"""Options of every command, accepted at any place before a `--`."""

COMMANDS = {
    "init": (
        "Write a recipe for your own data.\n\nThe task and the columns are detected and shown. "
        "Example: sora init reviews.csv"
    ),
    "train": (
        "Train one run from a recipe.\n\nThe run's directory gets the adapter, a report, a picture "
        "and checkpoints. Example: sora train rte training.epochs=3"
    ),
    "path": (
        "Train a series of adapters from large to small.\n\nThe recipe's path block names an "
        "option that changes from stage to stage; each stage starts from the one before. sora pick "
        "then chooses an adapter."
    ),
    "pick": (
        "Choose an adapter of a path by its score or size.\n\nGive exactly one condition. Example: "
        "sora pick runs/my-path --max-drop 1pt -o small"
    ),
    "eval": "Score an adapter or a model on validation rows.",
    "predict": "Add a model's answers to the rows of a file.\n\nThe rows need no labels.",
    "generate": "Print a model's answer to one prompt.",
    "chat": (
        "Chat with a model, or with two side by side.\n\nType /base to switch the adapter off or "
        "on, and /help for all commands."
    ),
    "inspect": (
        "Show an adapter's ranks and the programs that can load it.\n\nOf several adapters, each "
        "gets one line."
    ),
    "prune": (
        "Write a smaller copy of an adapter.\n\nGive at most one rule: --energy, --rank, "
        "--max-params, --mean-rank, --max-drop or --max-differ. Without a rule, only components "
        "that are exactly zero are removed. Example: sora prune runs/rte -o small --energy 0.9"
    ),
    "export": (
        "Write an adapter as a plain LoRA for other programs.\n\nThe output lists the programs "
        "that can load it."
    ),
    "merge": (
        "Add an adapter's update into the weights of its base model.\n\nThe result is an ordinary "
        "model. Weights are read and written one tensor at a time."
    ),
    "verify": (
        "Compare the outputs of two adapters or models.\n\nWith --certificate, check the "
        "certificate of a run of sora auto instead. Exits with 1 if they differ, and with 3 if the "
        "comparison cannot tell."
    ),
    "push": (
        "Upload an adapter or a merged model to the Hugging Face Hub.\n\nA new repository is "
        "private unless --public is given."
    ),
    "extract": (
        "Turn a fully fine-tuned model into a LoRA of its base model.\n\nGive one rule for the "
        "size: --energy, --rank, --max-params, --mean-rank, --max-drop or --max-differ."
    ),
    "combine": "Combine several adapters of one base model into one.",
    "auto": (
        "Find and certify the smallest adapter within an accepted drop.\n\nTrain at full rank, cut "
        "to smaller sizes and train on, then test the sizes on rows outside the training. Exits "
        "with 3 if no size is certified. Example: sora auto reviews.yaml --max-drop 1pt"
    ),
    "sweep": "Train all runs of a sweep file.\n\nThe same command continues an interrupted sweep.",
    "list": "List runs with status, method, score, size and time.",
    "compare": (
        "Compare finished runs in a table.\n\nRuns that differ only in their seed are one row, "
        "with mean and spread."
    ),
    "report": (
        "Write an HTML page about a run or a path.\n\nIt shows scores, curves, ranks, spectra, "
        "examples and cost."
    ),
    "schema": "Print the JSON schema of recipes, for editors.",
    "methods": "List the methods with their papers and options.",
    "recipes": "List, show or copy the recipes that come with sora.",
}
"""Help of each command, in the order of `sora --help`, which shows the first lines.

The command NAME is the function `sora_cli.commands.NAME.NAME`, except for `_FUNCTIONS`.
"""
_FUNCTIONS = {"eval": "evaluate", "list": "list_runs"}
"""Commands whose names are Python's own -> names of their functions and modules."""
_INSTEAD = {
    "gate": "sora verify A B --max-drop 1pt",
    "certify": "a recipe: sora auto RECIPE; an adapter: sora prune DIR -o OUT; two models: "
    "sora verify A B; each with --max-drop 1pt",
}
"""Words of the documentation that are no commands -> the commands that do it."""


class Commands(TyperGroup):
    """Group of commands that builds a command only when it is called or asked for its help."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for name, text in COMMANDS.items():  # stubs: the real commands import their modules
            self.add_command(TyperCommand(name, help=text))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command named by the first word: its name, the command, the other words."""
        if args[0] in _INSTEAD and not ctx.resilient_parsing:
            raise SoraError(f"there is no command '{args[0]}'", hint=_INSTEAD[args[0]])
        name, known, rest = super().resolve_command(ctx, args)
        return name, build(name) if name and known else None, rest


@cache
def build(name: str) -> Any:
    """Build a command from the signature of its function."""
    function = _FUNCTIONS.get(name, name)
    command = getattr(import_module(f"sora_cli.commands.{function}"), function)
    if not isinstance(command, typer.Typer):
        single = typer.Typer(add_completion=False, rich_markup_mode=None)
        single.command(name)(command)
        command = single
    built = typer.main.get_command(command)
    built.help = COMMANDS[name]
    return built


# No rich help: rich would take longer to import than everything else here together.
app = typer.Typer(
    name="sora",
    cls=Commands,
    help="Low-rank fine-tuning that finds its own rank: LoRA cut while it trains, SoRA, AdaLoRA.",
    epilog="To start: sora train quickstart. Your own data: sora init FILE.csv. "
    "Options of a command: sora COMMAND --help.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    invoke_without_command=True,
)


@app.callback()
def options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    # these three are read in `run`, before parsing, so that they work at any place
    quiet: Annotated[  # noqa: ARG001
        bool, typer.Option("--quiet", help="Show results and errors only. Accepted at any place.")
    ] = False,
    verbose: Annotated[  # noqa: ARG001
        bool,
        typer.Option("--verbose", help="Show the logs of libraries, too. Accepted at any place."),
    ] = False,
    debug: Annotated[  # noqa: ARG001
        bool, typer.Option("--debug", help="Show tracebacks of errors. Accepted at any place.")
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
    words, anywhere = _split_options(arguments)
    debug = "--debug" in anywhere or bool(os.environ.get("SORA_DEBUG"))

    def call() -> object:
        choose(_verbosity(anywhere))
        return typer.main.get_command(app)(words, prog_name="sora", standalone_mode=False)

    return guarded(call, debug=debug)


def _split_options(arguments: Sequence[str]) -> tuple[list[str], set[str]]:
    """Split a command line into the words without the `ANYWHERE` options, and these options."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    anywhere = {word for word in arguments[:end] if word in ANYWHERE}
    return [w for i, w in enumerate(arguments) if w not in ANYWHERE or i >= end], anywhere


def _verbosity(anywhere: set[str]) -> Verbosity:
    check_exclusive(sorted(anywhere - {"--debug"}))
    if "--quiet" in anywhere:
        return Verbosity.QUIET
    return Verbosity.VERBOSE if "--verbose" in anywhere else Verbosity.NORMAL


def main() -> None:
    """Run the command line of this process, then end the process."""
    end_on_signals()
    open_streams()  # before anything is printed or a file is opened
    leave_with(_run_process)


def _run_process() -> int:
    raise_on_signals()
    try:
        start_with_process()
        code = run(sys.argv[1:])
        return report_lost_output(code)
    finally:
        end_on_signals()
