"""The flags of `sora init` and `sora recipes`: how a recipe is come by."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sora_cli.commands import completion
from sora_cli.commands.options import Force, Json, Overrides, Preview, output_option

recipes_app = typer.Typer(add_completion=False, rich_markup_mode=None, invoke_without_command=True)


def init(
    source: Annotated[
        str,
        typer.Argument(
            help="A csv, tsv, json, jsonl or parquet file, a directory, or a data set's Hub id."
        ),
    ],
    overrides: Overrides = None,
    output: Annotated[
        Path | None,
        output_option("--output", "-o", help="The recipe to write; unset: named as the data are."),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="The base model; unset: a small one.")
    ] = None,
    task: Annotated[
        str | None, typer.Option("--task", help="The task family; unset: told by the columns.")
    ] = None,
    preview: Preview = 2,
    force: Force = False,
) -> None:
    """Write a recipe for data that has none."""
    from sora_cli.commands.init import init

    init(
        source,
        overrides or [],
        output=output,
        model=model,
        task=task,
        preview=preview,
        force=force,
    )


@recipes_app.callback()
def recipes(context: typer.Context) -> None:
    """List the recipes if no subcommand is given."""
    if context.invoked_subcommand is None:
        recipes_list()


@recipes_app.command(name="list")
def recipes_list(as_json: Json = False) -> None:
    """List the recipes: name and what it is."""
    from sora_cli.commands.recipes import list_recipes

    list_recipes(as_json=as_json)


@recipes_app.command(name="show")
def recipes_show(
    name: Annotated[
        str,
        typer.Argument(
            help="A recipe's name, such as official/rte.", autocompletion=completion.recipes
        ),
    ],
) -> None:
    """Print a recipe."""
    from sora_cli.commands.recipes import show_recipe

    show_recipe(name)


@recipes_app.command(name="copy")
def recipes_copy(
    to: Annotated[Path, output_option("--to", help="Directory to copy into.")],
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Recipes to copy, with what they extend; without: all.",
            autocompletion=completion.recipes,
        ),
    ] = None,
    force: Force = False,
) -> None:
    """Copy recipes, to change them."""
    from sora_cli.commands.recipes import copy_recipes

    copy_recipes(names or [], to, force=force)
