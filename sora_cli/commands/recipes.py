"""`sora recipes`: list, show and copy the packaged recipes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from methods.words import did_you_mean
from sora_cli.commands import completion, options
from sora_cli.core.atomic import write_bytes_atomic
from sora_cli.core.console import emit, say
from sora_cli.core.errors import SoraError, reason
from sora_cli.core.shell import quote
from sora_cli.recipe.layers import file_layers
from sora_cli.recipe.library import (
    SCHEMA_FILE,
    find_recipe,
    packaged_recipe,
    recipe_names,
    recipe_title,
    recipes_dir,
    sweep_code,
    sweep_files,
    sweep_names,
)

recipes = typer.Typer(add_completion=False, rich_markup_mode=None, invoke_without_command=True)


@recipes.callback()
def list_without_subcommand(context: typer.Context) -> None:
    """List the recipes if no subcommand is given."""
    if context.invoked_subcommand is None:
        list_recipes()


@recipes.command(name="list")
def list_recipes(*, as_json: options.Json = False) -> None:
    """List the recipes with their titles."""
    names = recipe_names()
    if as_json:
        titles = {name: recipe_title(recipes_dir() / f"{name}.yaml") for name in names}
        emit(json.dumps({"recipes": titles, "sweeps": sweep_names()}, indent=2))
        return
    width = max(len(name) for name in names)
    for name in names:
        emit(f"{name:{width}}  {recipe_title(recipes_dir() / f'{name}.yaml')}")
    say(f"\nsweeps over them, for sora sweep: {', '.join(sweep_names())}")


@recipes.command(name="show")
def show_recipe(
    name: Annotated[
        str,
        typer.Argument(
            help="A recipe's name, such as official/rte.", autocompletion=completion.recipes
        ),
    ],
) -> None:
    """Print a recipe."""
    emit(find_recipe(name).read_text(encoding="utf-8").rstrip("\n"))


@recipes.command(name="copy")
def copy_recipes(
    to: Annotated[Path, options.output("--to", help="The directory to copy into.")],
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Names of recipes; the files that they extend are copied, too. Default: all.",
            autocompletion=completion.recipes,
        ),
    ] = None,
    force: options.Force = False,
) -> None:
    """Copy recipes into a directory of your own."""
    from sora_cli.commands._files import check_files, output_folder

    root = recipes_dir().resolve()
    chosen = [_packaged(name) for name in names or recipe_names()]
    sweeps = [] if names else [*sweep_files(), *sweep_code()]
    sources = [*_with_bases(chosen), *sweeps, root / SCHEMA_FILE]
    pairs = [(source, to / source.resolve().relative_to(root)) for source in sources]
    written = [output for _, target in pairs for output in output_folder("--to", target)]
    check_files(written, [root])
    if not force:
        for source, target in pairs:
            _check_free(source, target)
    for source, target in pairs:
        try:
            write_bytes_atomic(target, source.read_bytes())
        except OSError as error:
            raise SoraError(f"'{target}' cannot be written: {reason(error, target)}") from error
    say(f"{len(pairs)} files in {to}")
    first = (to / chosen[0].resolve().relative_to(root)).as_posix()
    say(f"next: sora train {quote(first)}")


def _packaged(name: str) -> Path:
    path = packaged_recipe(name)
    if path is None:
        raise SoraError(f"no recipe '{name}'", hint=did_you_mean(name, recipe_names()))
    return path


def _with_bases(recipes: Iterable[Path]) -> list[Path]:
    files: dict[Path, None] = {}
    for recipe in recipes:
        for file, _ in file_layers(recipe):
            files[file.resolve()] = None
    return list(files)


def _check_free(source: Path, target: Path) -> None:
    if target.exists() and (target.is_dir() or target.read_bytes() != source.read_bytes()):
        raise SoraError(f"'{target}' exists and differs", hint="overwrite it with --force")
