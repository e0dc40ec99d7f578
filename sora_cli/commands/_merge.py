"""The flags of `sora merge`."""

from __future__ import annotations

from typing import Annotated

import typer

from sora_cli.commands.options import Adapter, Force, NoVerify, OutputOrFile


def merge(
    directory: Adapter,
    output: OutputOrFile,
    base: Annotated[
        str | None,
        typer.Option("--base", help="The base model, if it is not the one that the adapter names."),
    ] = None,
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="checkpoint: a directory. gguf: one file for llama.cpp, where the base is one.",
        ),
    ] = "checkpoint",
    type: Annotated[
        str | None,
        typer.Option("--type", help="Of changed weights in a GGUF file: f16 (default), q8_0, f32."),
    ] = None,
    untie: Annotated[
        bool,
        typer.Option(
            "--untie", help="Merge into a weight that is tied to another: write both, untied."
        ),
    ] = False,
    dtype: Annotated[
        str,
        typer.Option(
            "--dtype",
            help="Store all weights as float32, float16 or bfloat16; base: each as in the base. "
            "An update much smaller than its weight is lost in 16 bits.",
        ),
    ] = "base",
    rounding: Annotated[
        str,
        typer.Option(
            "--round",
            help="nearest, or stochastic: in 16 bits, keeps a small update on average and adds "
            "noise.",
        ),
    ] = "nearest",
    seed: Annotated[
        int | None,
        typer.Option("--seed", help="Of --round stochastic; default: 0.", show_default=False),
    ] = None,
    accept_loss: Annotated[
        bool,
        typer.Option(
            "--accept-loss",
            help="Merge also where less than 75 % of the update survives the rounding.",
        ),
    ] = False,
    force: Force = False,
    no_verify: NoVerify = False,
) -> int:
    """Fold an adapter into its base model, tensor by tensor."""
    from sora_cli.commands.merge import merge

    return merge(
        directory,
        output,
        base=base,
        form=form,
        type=type,
        force=force,
        untie=untie,
        dtype=dtype,
        rounding=rounding,
        seed=seed,
        accept_loss=accept_loss,
        verify=not no_verify,
    )
