"""The flags of `sora export`."""

from __future__ import annotations

from typing import Annotated

import typer

from sora_cli.commands.options import Adapter, Force, Json, NoVerify, OutputOrFile


def export(
    directory: Adapter,
    output: OutputOrFile,
    layout: Annotated[
        str | None,
        typer.Option(
            "--layout",
            help="exact (default): each module at its own rank. padded: all at the largest, for "
            "programs that ignore patterns.",
        ),
    ] = None,
    form: Annotated[
        str,
        typer.Option("--format", help="peft: a directory. gguf: one file that llama.cpp loads."),
    ] = "peft",
    type: Annotated[
        str | None,
        typer.Option("--type", help="Of the numbers in a GGUF file: f32 (default) or f16."),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            "--base",
            help="For another program's file (Kohya, diffusers, MLX): the base model, which tells "
            "which layers its names are. With --format gguf: the base model, a GGUF file or a "
            "checkpoint, if it is not the one that the adapter names.",
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option("--dtype", help="float32, bfloat16 or float16; default: as stored."),
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option("--rank", help="Cut each layer to this rank at most; says what is lost."),
    ] = None,
    energy: Annotated[
        float | None,
        typer.Option("--energy", help="Cut each layer to this share of its squared norm."),
    ] = None,
    as_json: Json = False,
    force: Force = False,
    no_verify: NoVerify = False,
) -> int:
    """Write any adapter as a plain LoRA, and say who can load it."""
    from sora_cli.commands.export import export

    return export(
        directory,
        output,
        layout=layout,
        dtype=dtype,
        rank=rank,
        energy=energy,
        form=form,
        type=type,
        base=base,
        force=force,
        verify=not no_verify,
        as_json=as_json,
    )
