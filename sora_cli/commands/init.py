"""`sora init`: write a recipe for the user's data."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from sora_cli.commands import options
from sora_cli.commands._files import check_files, output_file
from sora_cli.core.console import emit, say, say_notes
from sora_cli.core.errors import SoraError
from sora_cli.core.outputs import check_new_file
from sora_cli.core.shell import as_operand, quote
from sora_cli.core.timing import importing
from sora_cli.propose.writing import recipe_name, write_proposal


def init(
    source: Annotated[
        str,
        typer.Argument(
            help="The data: a csv, tsv, json, jsonl or parquet file, a directory, or a Hub id."
        ),
    ],
    overrides: options.Overrides = None,
    *,
    output: Annotated[
        Path | None,
        options.output(
            "--output", "-o", help="The recipe file to write. Default: the data's name with .yaml."
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="The base model. Default: a small model.")
    ] = None,
    task: Annotated[
        str | None,
        typer.Option("--task", help="The task family. Default: detected from the columns."),
    ] = None,
    preview: options.Preview = 2,
    force: options.Force = False,
    code: options.Code = None,
) -> None:
    """Write a recipe for data; show the detected task, columns and some rows."""
    options.load_plugins(code)
    file = output or recipe_name(source)
    check_new_file("-o", file, force=force, hint="name another file: -o OTHER.yaml")
    if file.suffix.lower() not in (".yaml", ".yml"):
        raise SoraError(
            f"a recipe's name ends in .yaml, unlike '{file}'", hint=f"-o {quote(str(file))}.yaml"
        )
    rows = [source] if Path(source).expanduser().is_file() else []
    check_files(output_file("-o", file), [*rows, model])
    proposal = write_proposal(
        source,
        file,
        emit,
        model=model,
        task=task,
        overrides=overrides or [],
        preview=preview,
        command=_typed(),
    )
    with importing():
        from sora_cli.experiments.auto.forecast import forecast
    promise = forecast(proposal.loaded, proposal.task, proposal.rows.train)
    say_notes([*proposal.rows.notes, *promise.notes])
    say(f"\nwritten: {file}")
    own = [word for path in code or () for word in ("--code", str(path))]
    command = shlex.join(["sora", "train", as_operand(str(file)), *own])
    say("next:")
    say(f"  {command} --dry-run")
    say(f"  {command}")
    if promise.words is not None:
        say(f"  {shlex.join(['sora', 'auto', as_operand(str(file)), *own, *promise.words])}")


def _typed() -> str | None:
    """Return the command as typed; None if another program called `init` in its own process."""
    return shlex.join(["sora", *sys.argv[1:]]) if sys.argv[1:2] == ["init"] else None
