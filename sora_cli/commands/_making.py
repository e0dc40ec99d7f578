"""The commands that make an adapter of models or of other adapters: their flags, as in `app`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sora_cli.commands import completion
from sora_cli.commands.options import (
    Confidence,
    Energy,
    Force,
    Json,
    MaxDrop,
    MaxParams,
    MeanRank,
    Output,
    Rank,
    ReadOverrides,
)
from sora_cli.core.checks import check_needed
from sora_cli.recipe.tolerance import CONFIDENCE

Dtype = Annotated[
    str, typer.Option("--dtype", help="Store the factors as float32, bfloat16 or float16.")
]


def extract(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A fine-tuned model: its directory or Hub id, or a run's that trained a whole "
            "model.",
            autocompletion=completion.runs,
        ),
    ],
    base: Annotated[str, typer.Option("--base", help="The model that it was fine-tuned from.")],
    output: Output,
    overrides: ReadOverrides = None,
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
            help="The recipe that --max-drop is measured with.",
            autocompletion=completion.recipes,
        ),
    ] = None,
    no_biases: Annotated[
        bool,
        typer.Option(
            "--no-biases",
            help="Leave out changed biases of linear layers, which vLLM and llama.cpp refuse.",
        ),
    ] = False,
    dtype: Dtype = "float32",
    as_json: Json = False,
    force: Force = False,
) -> int:
    """Write a full fine-tuning's difference to its base as a plain LoRA."""
    from sora_cli.commands.extract import Promise, extract

    promise = None
    if max_drop is None:
        given = {"--confidence": confidence, "--recipe": recipe, "OVERRIDES": overrides}
        check_needed("--max-drop", {name: bool(value) for name, value in given.items()})
    else:
        sure = CONFIDENCE if confidence is None else confidence
        promise = Promise(max_drop, recipe, overrides or [], sure)
    budget = {"energy": energy, "rank": rank, "max_params": max_params, "mean_rank": mean_rank}
    return extract(
        model,
        output,
        budget,
        base=base,
        biases=not no_biases,
        dtype=dtype,
        as_json=as_json,
        force=force,
        promise=promise,
    )


def combine(
    adapters: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR...",
            help="Two or more adapter directories (ours or any PEFT LoRA) or runs, of one base.",
            autocompletion=completion.runs,
        ),
    ],
    output: Output,
    weights: Annotated[
        str | None,
        typer.Option(
            "--weights", help="What each update is multiplied with: 0.7,0.3; default: the mean."
        ),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            "--method",
            help="linear: the weighted sum, exact without a budget. ties: trimmed, signs elected "
            "(arXiv 2306.01708). dare: numbers dropped at random (arXiv 2311.03099).",
        ),
    ] = "linear",
    density: Annotated[
        float | None,
        typer.Option(
            "--density",
            help="With ties and dare: the share of an update's numbers to keep; default: 0.2 and "
            "0.5.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option("--seed", help="Of --method dare; default: 0.", show_default=False),
    ] = None,
    energy: Energy = None,
    rank: Rank = None,
    max_params: MaxParams = None,
    mean_rank: MeanRank = None,
    dtype: Dtype = "float32",
    as_json: Json = False,
    force: Force = False,
) -> None:
    """Make one adapter of several of the same base model."""
    from sora_cli.commands.combine import combine

    budget = {"energy": energy, "rank": rank, "max_params": max_params, "mean_rank": mean_rank}
    combine(
        adapters,
        output,
        budget,
        weights=weights,
        method=method,
        density=density,
        seed=seed,
        dtype=dtype,
        as_json=as_json,
        force=force,
    )
