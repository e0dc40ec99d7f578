"""The commands on adapter files: their flags, and one short function each, as in `app`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from sora_cli.commands import completion
from sora_cli.commands.options import (
    Adapter,
    Confidence,
    Energy,
    Force,
    Json,
    MaxDrop,
    MaxParams,
    MeanRank,
    NoVerify,
    Output,
    Overrides,
    Rank,
    ReadOverrides,
    output_option,
)
from sora_cli.core.checks import check_apart_from, check_needed
from sora_cli.core.timing import command_start
from sora_cli.recipe.tolerance import CONFIDENCE


def inspect(
    directories: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR...",
            help="An adapter directory (ours or any PEFT LoRA) or a run's directory. Two are "
            "compared; more get a line each.",
            autocompletion=completion.runs,
        ),
    ],
    as_json: Json = False,
    plot: Annotated[
        Path | None,
        output_option("--plot", help="Draw the ranks and the spectra to this picture."),
    ] = None,
    modules: Annotated[
        bool, typer.Option("--modules", help="Also print a line for each module.")
    ] = False,
    force: Force = False,
) -> None:
    """Show where an adapter's ranks are and who can load it; or compare two."""
    from sora_cli.commands.inspect import inspect

    inspect(*directories, as_json=as_json, plot=plot, modules=modules, force=force)


def prune(
    directory: Adapter,
    output: Output,
    energy: Energy = None,
    rank: Rank = None,
    max_params: MaxParams = None,
    mean_rank: MeanRank = None,
    max_drop: MaxDrop = None,
    confidence: Confidence = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            "-r",
            help="The recipe that --max-drop is measured with, or --heal trains with; for --heal "
            "the default is the run's own.",
            autocompletion=completion.recipes,
        ),
    ] = None,
    overrides: Overrides = None,
    heal: Annotated[
        int | None,
        typer.Option(
            "--heal",
            min=0,
            help="Train what is left for so many optimiser steps; the output is then a run.",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="With --heal: continue an interrupted run.")
    ] = False,
    force: Force = False,
    no_verify: NoVerify = False,
) -> int:
    """Shrink an adapter; without options, take out exact zeros only."""
    from sora_cli.commands.prune import Rule, prune

    rule, given = Rule(energy, rank, max_params, mean_rank, max_drop), overrides or []
    if max_drop is None:
        check_needed("--max-drop", {"--confidence": confidence is not None})
    sure = CONFIDENCE if confidence is None else confidence
    if heal is None:
        check_needed("--heal", {"--resume": resume, "--no-verify": no_verify})
        return prune(
            directory, output, rule, recipe=recipe, overrides=given, confidence=sure, force=force
        )
    from sora_cli.commands._heal import healing_recipe
    from sora_cli.commands._heal_sizes import heal_sizes
    from sora_cli.commands._training import train_loaded

    train = partial(
        train_loaded, force=force, resume=resume, verify=not no_verify, began=command_start()
    )
    if max_drop is None:
        return train(*healing_recipe(directory, output, rule.numbers(), heal, recipe, given))
    return heal_sizes(
        directory,
        output,
        rule.given(),
        heal,
        recipe,
        given,
        confidence=sure,
        force=force,
        resume=resume,
        train=train,
    )


def verify(
    a: Annotated[
        str,
        typer.Argument(
            metavar="A",
            help="An adapter, run or model directory, or a model's Hub id.",
            autocompletion=completion.runs,
        ),
    ],
    b: Annotated[
        str | None,
        typer.Argument(
            metavar="B",
            help="Another one; without it, A is loaded again in a fresh process.",
            autocompletion=completion.runs,
        ),
    ] = None,
    overrides: ReadOverrides = None,
    base: Annotated[
        str | None,
        typer.Option("--base", help="The base model, if it is not the one that the adapter names."),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            "--tolerance",
            help="Judge by this alone: the largest difference that counts as the same, relative to "
            "the largest output. Default: 1e-5, or 8 roundings of 16-bit weights, and how much of "
            "the adapter's effect is there.",
        ),
    ] = None,
    dtype: Annotated[
        str, typer.Option("--dtype", help="Compute in float32, float64, bfloat16 or float16.")
    ] = "float32",
    certificate: Annotated[
        bool,
        typer.Option(
            "--certificate",
            help="A is a run of sora auto: score its sizes again, and compare them with its "
            "certificate. KEY=VALUE says where its data or model are by now: data.path=DIR.",
        ),
    ] = False,
    as_json: Json = False,
) -> int:
    """Compare the outputs of two adapters or models, or a certificate with what its files give.

    The exit code is 1 if they differ, and 3 if that cannot be told.
    """
    from sora_cli.commands.verify import verify, verify_certificate

    others = [*([] if b is None else [b]), *(overrides or [])]
    if certificate:
        options = {"--base": base, "--tolerance": tolerance}
        check_apart_from("--certificate", [name for name, given in options.items() if given])
        return verify_certificate(a, others, as_json=as_json)
    return verify(a, others, base=base, dtype=dtype, tolerance=tolerance, as_json=as_json)


def push(
    run: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="A run's or an adapter's directory; or see --merged."),
    ],
    repository: Annotated[
        str | None,
        typer.Argument(
            metavar="[REPO]", help="NAME or OWNER/NAME on the Hub; without: the run's name."
        ),
    ] = None,
    merged: Annotated[
        bool, typer.Option("--merged", help="RUN is a model that sora merge has written.")
    ] = False,
    base_id: Annotated[
        str | None,
        typer.Option("--base-id", help="The base model's Hub id, if the adapter does not know it."),
    ] = None,
    license_: Annotated[
        str | None,
        typer.Option("--license", help="For the card, as the Hub calls it, such as apache-2.0."),
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="Let everybody see a new repository.")
    ] = False,
    revision: Annotated[
        str | None, typer.Option("--revision", help="Branch to commit to; default: main.")
    ] = None,
    message: Annotated[str | None, typer.Option("--message", "-m", help="Of the commit.")] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="List what would leave, and the card's header; send none."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Upload an adapter, or a merged model, to the Hub; private unless --public."""
    from sora_cli.commands.push import push

    push(
        run,
        repository,
        merged=merged,
        base_id=base_id,
        license_=license_,
        public=public,
        revision=revision,
        message=message,
        dry_run=dry_run,
        as_json=as_json,
    )
