"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Values to change, such as training.epochs=3 or method.name=lora."),
]
RecipeArgument = Annotated[
    str, typer.Argument(help="A recipe file, or the name of one that comes with the tool.")
]
RecipeOption = Annotated[
    str, typer.Option("--recipe", "-r", help="The recipe whose task and data are used.")
]
Adapter = Annotated[
    Path, typer.Argument(help="An adapter directory, ours or any PEFT LoRA; or a run's directory.")
]
Output = Annotated[Path, typer.Option("--output", "-o", help="Directory to write.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite what is there.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Code = Annotated[
    list[Path] | None,
    typer.Option("--code", help="A Python file with adapter methods of your own; repeatable."),
]
NoVerify = Annotated[
    bool,
    typer.Option("--no-verify", help="Do not compare the result's outputs with the original's."),
]
