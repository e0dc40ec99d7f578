"""The flags of `sora eval`, on a recipe's rows or on benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sora_cli.commands import completion
from sora_cli.commands.options import (
    Code,
    Force,
    Json,
    ReadOverrides,
    load_plugins,
    output_option,
)
from sora_cli.core.checks import check_apart_from, check_needed
from sora_cli.core.errors import SoraError


def evaluate(
    target: Annotated[
        str,
        typer.Argument(
            help="An adapter, run or model directory, or a model's Hub id.",
            autocompletion=completion.runs,
        ),
    ],
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            "-r",
            help="The recipe whose task and data are used; may be left out with --benchmark.",
            autocompletion=completion.recipes,
        ),
    ] = None,
    overrides: ReadOverrides = None,
    predictions: Annotated[
        Path | None,
        output_option("--predictions", help="Write each row's prediction to this .jsonl file."),
    ] = None,
    benchmark: Annotated[
        str | None,
        typer.Option(
            "--benchmark",
            help="Score on benchmarks of lm-evaluation-harness instead (extra [lm-eval]): "
            "hellaswag,arc_easy.",
        ),
    ] = None,
    benchmark_tasks: Annotated[
        Path | None,
        typer.Option(
            "--benchmark-tasks", help="With --benchmark: a directory with definitions of your own."
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", min=1, help="With --benchmark: rows of each at most."),
    ] = None,
    few_shot: Annotated[
        int | None,
        typer.Option(
            "--few-shot",
            min=0,
            help="With --benchmark: examples in each prompt; unset: as each benchmark has it.",
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", min=1, help="With --benchmark: rows at a time; default: 8."),
    ] = None,
    output: Annotated[
        Path | None,
        output_option(
            "--output",
            "-o",
            help="With --benchmark: the report to write; default: benchmarks.json in a run's "
            "directory, else none.",
        ),
    ] = None,
    as_json: Json = False,
    force: Force = False,
    code: Code = None,
) -> None:
    """Score an adapter or a model on a recipe's validation data, or on benchmarks."""
    load_plugins(code)
    if benchmark is not None:
        from sora_cli.commands._benchmark import Benchmarks, score

        check_apart_from("--benchmark", [] if predictions is None else ["--predictions"])
        asked = Benchmarks(benchmark, benchmark_tasks, limit, few_shot, batch_size or 8)
        score(
            target,
            asked,
            recipe=recipe,
            overrides=overrides or [],
            output=output,
            as_json=as_json,
            force=force,
        )
        return
    given = {"--benchmark-tasks": benchmark_tasks, "--limit": limit, "--few-shot": few_shot,
             "--batch-size": batch_size, "--output": output}  # fmt: skip
    check_needed("--benchmark", {name: value is not None for name, value in given.items()})
    if recipe is None:
        raise SoraError(
            "sora eval needs a recipe, whose data are scored",
            hint="add --recipe RECIPE; or --benchmark NAMES",
        )
    from sora_cli.commands.evaluate import evaluate

    evaluate(
        target,
        recipe=recipe,
        overrides=overrides or [],
        predictions=predictions,
        as_json=as_json,
        force=force,
    )
