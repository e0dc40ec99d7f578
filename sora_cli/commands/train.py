"""`sora train`: train a recipe; write adapter, checkpoints, report and picture."""

from __future__ import annotations

from typing import Annotated

import typer

from sora_cli.commands import options
from sora_cli.commands._files import check_files, run_files
from sora_cli.commands._training import train_loaded
from sora_cli.core.checks import check_excludes
from sora_cli.core.console import say, say_notes
from sora_cli.core.errors import SoraError
from sora_cli.core.exit_codes import OK
from sora_cli.core.shell import quote
from sora_cli.core.timing import command_start
from sora_cli.recipe.load import load_recipe
from sora_cli.run.output import check_run_place
from sora_cli.run.precision import settle_precision


def train(
    recipe: options.Recipe,
    overrides: options.Overrides = None,
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the plan of the run; train nothing.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the newest complete checkpoint.")
    ] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Replace an existing run. With --resume: accept safe changes of the recipe.",
        ),
    ] = False,
    preview: options.PreviewInDryRun = None,
    no_verify: options.NoVerify = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the run's report as JSON instead of a summary.")
    ] = False,
    code: options.Code = None,
) -> int:
    """Train a recipe, or show its plan with `dry_run`.

    Returns:
        Exit code: 1 if the saved files give other outputs than the trained model.
    """
    began = command_start()
    options.load_plugins(code)
    given = overrides or []
    loaded = load_recipe(recipe, given)
    if loaded.recipe.path is not None:
        say(f"note: this trains one run; to train the recipe's path: sora path {quote(recipe)}")
    if loaded.recipe.auto is not None:
        say(f"note: this trains one run; to find the smallest size: sora auto {quote(recipe)}")
    if preview is not None and not dry_run:
        raise SoraError("--preview goes with --dry-run", hint="add --dry-run")
    if dry_run:
        check_excludes("--dry-run", ["--json"] if as_json else [])
        check_run_place(loaded, force=force)
        check_files(run_files(loaded.output_dir), [], loaded)
        from sora_cli.run.dry_run import dry_run as show

        say_notes(loaded.notes)
        show(settle_precision(loaded), rows=preview)
        return OK
    return train_loaded(
        loaded,
        [recipe, *given],
        force=force,
        resume=resume,
        verify=not no_verify,
        began=began,
        as_json=as_json,
    )
