"""The commands that put a trained model to work: their flags, and one short function each."""

from __future__ import annotations

from typing import Annotated

import typer

from sora_cli.commands._options import Json, Overrides

Target = Annotated[
    str,
    typer.Argument(
        metavar="TARGET",
        help="A run, an adapter (ours or any PEFT LoRA), a model, or its Hub id.",
    ),
]
BaseModel = Annotated[
    str | None,
    typer.Option("--base", help="The base model, if it is not the one that the adapter names."),
]


def add_commands(app: typer.Typer) -> None:
    """Register them, in the order of the help page."""
    for command in (predict,):
        app.command()(command)


def predict(
    target: Target,
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE", help="The rows: csv, tsv, jsonl, json or parquet; - is stdin."
        ),
    ],
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            help="The file to write, by its ending csv, tsv, jsonl or parquet; - is stdout.",
        ),
    ],
    overrides: Overrides = None,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Add the probability of each class, too.")
    ] = False,
    prefix: Annotated[
        str,
        typer.Option("--prefix", help="Put before the new columns' names.", show_default=False),
    ] = "",
    stream: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="The form of stdin and stdout: jsonl or csv; default: jsonl.",
            show_default=False,
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option("--task", help="The task family, if the files do not say which it is."),
    ] = None,
    base: BaseModel = None,
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", min=1, help="Rows that the model gets at a time."),
    ] = None,
    as_json: Json = False,
    force: Annotated[
        bool,
        typer.Option("--force", help="Overwrite an existing file, and begin anew."),
    ] = False,
) -> None:
    """Write rows with a model's answers; rows need no labels."""
    from sora_cli.commands.predict import predict

    predict(
        target,
        file,
        output,
        overrides=overrides or [],
        base=base,
        task=task,
        batch_size=batch_size,
        probabilities=probabilities,
        prefix=prefix,
        stream=stream,
        as_json=as_json,
        force=force,
    )
