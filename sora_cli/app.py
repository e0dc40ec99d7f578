"""The Typer app: one short function per command, and the one error boundary.

Nothing heavy is imported here; each command imports what it needs when it is called.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import typer

from sora_cli import __version__
from sora_cli.commands import (
    _adapters,
    _evaluation,
    _experiments,
    _making,
    _recipes,
    _use,
    completion,
)
from sora_cli.commands.options import (
    Code,
    Force,
    Json,
    NoVerify,
    Overrides,
    PreviewInDryRun,
    RecipeArgument,
    load_plugins,
    output_option,
)
from sora_cli.core.boundary import guarded, told_losses
from sora_cli.core.checks import (
    check_one,
    check_working_directory,
)
from sora_cli.core.interruption import end_on_signals, raise_on_signals
from sora_cli.core.streams import open_streams
from sora_cli.core.timing import leave_with, process_start
from sora_cli.core.verbosity import Verbosity, choose

ANYWHERE = frozenset({"--debug", "--quiet", "--verbose"})
"""Options of every command, which may stand anywhere before a `--`."""

# Plain help: rich would take longer to import than everything else here.
app = typer.Typer(
    name="sora",
    help="Low-rank fine-tuning that finds its own rank: LoRA cut while it trains, SoRA, AdaLoRA.",
    epilog="Start with: sora train quickstart, then sora inspect on what it wrote.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    invoke_without_command=True,
)
_recipes.add_commands(app)


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
    """Print the version, or the help page if there is no command."""
    if version:
        typer.echo(f"sora {__version__}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())
    else:
        check_working_directory()


@app.command()
def train(
    context: typer.Context,
    recipe: RecipeArgument,
    overrides: Overrides = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show everything the run would do, and train nothing.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume from the newest complete checkpoint.")
    ] = False,
    force: Annotated[
        bool,
        typer.Option("--force", help="Replace a run; with --resume, accept safe changes."),
    ] = False,
    preview: PreviewInDryRun = None,
    no_verify: NoVerify = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the run's report instead of a summary.")
    ] = False,
    code: Code = None,
) -> int:
    """Train a recipe."""
    from sora_cli.commands.train import train

    load_plugins(code)
    return train(
        recipe,
        overrides or [],
        dry_run=dry_run,
        force=force,
        resume=resume,
        verify=not no_verify,
        began=context.obj,
        preview=preview,
        as_json=as_json,
    )


@app.command()
def path(
    context: typer.Context,
    recipe: RecipeArgument,
    overrides: Overrides = None,
    controls: Annotated[
        bool,
        typer.Option(
            "--controls",
            help="Also score the first stage cut down at random and by norm; "
            "works on a finished path, too.",
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show all stages, and train nothing.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Delete an existing path first.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the path's report instead of tables.")
    ] = False,
    code: Code = None,
) -> None:
    """Train a path of adapters from dense to sparse."""
    from sora_cli.commands.path import path

    load_plugins(code)
    path(
        recipe,
        overrides or [],
        controls=controls,
        dry_run=dry_run,
        force=force,
        began=context.obj,
        as_json=as_json,
    )


@app.command()
def pick(
    directory: Annotated[
        Path, typer.Argument(help="A path's directory.", autocompletion=completion.runs)
    ],
    keep: Annotated[
        float | None,
        typer.Option(
            "--keep", help="Choose the smallest that keeps this share of the first stage's metric."
        ),
    ] = None,
    max_params: Annotated[
        int | None,
        typer.Option("--max-params", help="Choose the best with at most this many parameters."),
    ] = None,
    min_metric: Annotated[
        float | None,
        typer.Option(
            "--min-metric", help="Choose the smallest whose metric is at least this good."
        ),
    ] = None,
    max_drop: Annotated[
        str | None,
        typer.Option(
            "--max-drop",
            help="Choose the smallest whose metric is at most this much worse than the first "
            "stage's: 0.01 in its own unit, or 1pt for the same of a metric that ends at 1.",
        ),
    ] = None,
    output: Annotated[
        Path | None, output_option("--output", "-o", help="Copy the adapter to this directory.")
    ] = None,
    as_json: Json = False,
    force: Force = False,
) -> None:
    """Choose the smallest adapter of a path that is good enough."""
    from sora_cli.commands.pick import pick

    pick(
        directory,
        keep=keep,
        max_params=max_params,
        min_metric=min_metric,
        max_drop=max_drop,
        output=output,
        as_json=as_json,
        force=force,
    )


_evaluation.add_commands(app)
_use.add_commands(app)
_adapters.add_commands(app)
_making.add_commands(app)
_experiments.add_commands(app)


@app.command()
def schema(code: Code = None) -> None:
    """Print the JSON schema of recipes, for editors."""
    from sora_cli.commands.schema import print_schema

    load_plugins(code)
    print_schema()


@app.command()
def methods(as_json: Json = False, code: Code = None) -> None:
    """List the methods with their papers and options."""
    from sora_cli.commands.methods import list_methods

    load_plugins(code)
    list_methods(as_json=as_json)


def run(arguments: Sequence[str], *, began: float | None = None) -> int:
    """Run one command line; return its exit code (see `sora_cli.core.exit_codes`).

    Args:
        began: when the process was started, on the clock of `time.perf_counter`; None: it was there
            before. Commands find it in Typer's context.
    """
    words, anywhere = _taken_out(arguments)
    debug = "--debug" in anywhere or bool(os.environ.get("SORA_DEBUG"))

    def call() -> object:
        choose(_verbosity(anywhere))
        return _command()(words, prog_name="sora", standalone_mode=False, obj=began)

    return guarded(call, debug=debug)


@cache
def _command() -> Any:
    """Build the commands from their functions, once a process: it takes some 30 ms."""
    return typer.main.get_command(app)


def _taken_out(arguments: Sequence[str]) -> tuple[list[str], set[str]]:
    """Return a command line without the options that may stand anywhere, and those."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    anywhere = {word for word in arguments[:end] if word in ANYWHERE}
    return [w for i, w in enumerate(arguments) if w not in ANYWHERE or i >= end], anywhere


def _verbosity(anywhere: set[str]) -> Verbosity:
    check_one(sorted(anywhere - {"--debug"}))
    if "--quiet" in anywhere:
        return Verbosity.QUIET
    return Verbosity.VERBOSE if "--verbose" in anywhere else Verbosity.NORMAL


def main() -> None:
    """Run the command line of this process, and end the process."""
    end_on_signals()
    open_streams()
    leave_with(_run_process)


def _run_process() -> int:
    raise_on_signals()
    try:
        code = run(sys.argv[1:], began=process_start())
        return told_losses(code)
    finally:
        end_on_signals()
