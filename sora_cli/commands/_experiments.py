"""The commands for many runs: their flags, and one short function each, as in `app`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sora_cli.commands import completion
from sora_cli.commands.options import (
    Code,
    Force,
    Json,
    NoVerify,
    Overrides,
    PreviewInDryRun,
    load_plugins,
    output_option,
)
from sora_cli.core.checks import check_needed, check_one
from sora_cli.core.console import say
from sora_cli.core.errors import SoraError
from sora_cli.core.timing import command_start


def auto(
    recipe: Annotated[
        str | None,
        typer.Argument(
            help="A recipe file, or the name of one that comes with the tool; or give --data.",
            autocompletion=completion.recipes,
        ),
    ] = None,
    overrides: Overrides = None,
    data: Annotated[
        str | None, typer.Option("--data", help="Data without a recipe: it is written and used.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="With --data: the base model; unset: a small one.")
    ] = None,
    task: Annotated[
        str | None,
        typer.Option("--task", help="With --data: the task family; unset: told by the columns."),
    ] = None,
    max_drop: Annotated[
        str | None,
        typer.Option(
            "--max-drop",
            help="How much worse than at full rank the metric may be: 0.5pt, or 0.005 in its own "
            "unit.",
        ),
    ] = None,
    confidence: Annotated[
        float | None,
        typer.Option("--confidence", help="1 - the probability that it is worse; default: 0.95."),
    ] = None,
    serve: Annotated[
        str | None, typer.Option("--serve", help="Choose by what it pays for: vllm, llama.cpp.")
    ] = None,
    probe: Annotated[
        bool,
        typer.Option("--probe", help="Try three learning rates for a few steps; take the best."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be done, and train nothing.")
    ] = False,
    preview: PreviewInDryRun = None,
    force: Annotated[bool, typer.Option("--force", help="Delete an existing run first.")] = False,
    no_verify: NoVerify = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the certificate instead of tables.")
    ] = False,
    code: Code = None,
) -> int:
    """Find the smallest adapter within a tolerated loss, and certify it."""
    from sora_cli.commands.auto import auto
    from sora_cli.run.propose.writing import recipe_for

    load_plugins(code)
    words = overrides or []
    if data is not None:
        words = [*([] if recipe is None else [recipe]), *words]
        recipe = recipe_for(
            data, words, say, model=model, task=task, dry_run=dry_run, preview=preview
        )
        preview = preview if dry_run else None  # it has been shown
    else:
        check_needed("--data", {"--model": model is not None, "--task": task is not None})
    if recipe is None:
        raise SoraError("which recipe?", hint="sora auto RECIPE, or sora auto --data FILE")
    return auto(
        recipe,
        words,
        max_drop=max_drop,
        confidence=confidence,
        serve=serve,
        probe=probe,
        preview=preview,
        dry_run=dry_run,
        force=force,
        verify=not no_verify,
        as_json=as_json,
        began=command_start(),
    )


def sweep(
    file: Annotated[
        Path,
        typer.Argument(
            help="A sweep file, or the name of one that comes with the tool.",
            autocompletion=completion.sweeps,
        ),
    ],
    overrides: Overrides = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the runs and their expected time; start none.")
    ] = False,
    measure: Annotated[
        bool,
        typer.Option("--measure", help="With --dry-run: take a few steps of each kind of run."),
    ] = False,
    max_runs: Annotated[
        int | None,
        typer.Option("--max-runs", min=1, help="Plan at most this many runs; default: 10,000."),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs", "-j", min=1, help="Runs at the same time; default: one per GPU or CPU."
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option("--threads", min=1, help="CPU threads of each run; default: divided evenly."),
    ] = None,
    engine: Annotated[
        str, typer.Option("--engine", help="Where runs are carried out: local or ray.")
    ] = "local",
    address: Annotated[
        str | None, typer.Option("--address", help="The Ray cluster's address: auto, or HOST:PORT.")
    ] = None,
    retries: Annotated[
        int,
        typer.Option("--retries", min=0, help="How often a run that was killed is started again."),
    ] = 2,
    no_verify: NoVerify = False,
    as_json: Json = False,
    code: Code = None,
) -> int:
    """Carry out the runs of a sweep file."""
    from sora_cli.commands.sweep import sweep

    load_plugins(code)
    return sweep(
        file,
        overrides or [],
        dry_run=dry_run,
        measure=measure,
        most=max_runs,
        jobs=jobs,
        threads=threads,
        engine=engine,
        address=address,
        retries=retries,
        verify=not no_verify,
        code=code or [],
        as_json=as_json,
    )


def list_runs(
    directory: Annotated[
        Path, typer.Argument(metavar="[DIR]", help="A directory with runs somewhere in it.")
    ] = Path("runs"),
    sort: Annotated[
        str,
        typer.Option(
            "--sort", help="name, started, score (the best first), parameters, time or status."
        ),
    ] = "name",
    status: Annotated[
        str | None,
        typer.Option(
            "--status",
            help="Only those: finished, running, interrupted, failed, pruned, blocked or damaged.",
        ),
    ] = None,
    method: Annotated[
        str | None, typer.Option("--method", help="Only runs of this method.")
    ] = None,
    task: Annotated[
        str | None, typer.Option("--task", help="Only runs on this data set or file.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List runs: status, method, score, size kept, time, and which can be resumed."""
    from sora_cli.commands.list import list_runs

    list_runs(directory, sort=sort, status=status, method=method, task=task, as_json=as_json)


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUNS...",
            help="Run directories, directories with runs somewhere in them, report files, or "
            "files of runs (.jsonl), of which FILE/NAME selects some.",
            autocompletion=completion.runs,
        ),
    ],
    baseline: Annotated[
        str | None,
        typer.Option(
            "--baseline", help="A label of the table; differences to it are shown, paired by seed."
        ),
    ] = None,
    paper: Annotated[
        bool, typer.Option("--paper", help="Also show what the recipes' papers print.")
    ] = False,
    metric: Annotated[
        str | None,
        typer.Option("--metric", help="Compare another metric of the reports than the main one."),
    ] = None,
    selection: Annotated[
        bool,
        typer.Option(
            "--selection", help="Score on the rows that chose the checkpoints, as for tuning."
        ),
    ] = False,
    ranks: Annotated[
        bool,
        typer.Option(
            "--ranks", help="Show where the ranks are, and whether seeds and tasks agree."
        ),
    ] = False,
    budgets: Annotated[
        str | None,
        typer.Option(
            "--budgets",
            help="Compare at equal size instead: per cent of the baseline's parameters, such as "
            "50,15,8.",
        ),
    ] = None,
    min_gain: Annotated[
        float | None,
        typer.Option(
            "--min-gain",
            help="With --budgets: a task counts if the baseline is so many points above the head "
            "alone; default: 5; 0: all do.",
        ),
    ] = None,
    form: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="table, markdown, csv, latex, json, or jsonl for the runs themselves; without: by "
            "the suffix of --output, else table.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON: the same as --format json.")
    ] = False,
    output: Annotated[
        Path | None,
        output_option(
            "--output", "-o", help="Write the table, or the runs (.jsonl), to this file."
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        output_option(
            "--plot",
            help="Draw metric against parameters, or with --budgets what is lost at each size, "
            "into this picture; others go beside it.",
        ),
    ] = None,
    html: Annotated[
        Path | None,
        output_option("--html", help="Write a single HTML page that needs no other file."),
    ] = None,
    force: Force = False,
) -> None:
    """Compare finished runs: mean and spread over seeds, size, time."""
    from sora_cli.commands.compare import compare

    if as_json:
        check_one(["--json", *([] if form is None else ["--format"])])
        form = "json"
    compare(
        runs,
        baseline=baseline,
        paper=paper,
        metric=metric,
        selection=selection,
        ranks=ranks,
        budgets=budgets,
        min_gain=min_gain,
        form=form,
        output=output,
        plot=plot,
        html=html,
        force=force,
    )


def report(
    run: Annotated[
        Path,
        typer.Argument(
            help="The directory of a run, or of a path.", autocompletion=completion.runs
        ),
    ],
    output: Annotated[
        Path | None,
        output_option(
            "--output", "-o", help="Write the page to this file; default: report.html in RUN."
        ),
    ] = None,
    examples: Annotated[
        int | None,
        typer.Option(
            "--examples",
            min=1,
            help="Show this many right and wrong rows of each; without stored predictions, score "
            "the recipe's rows anew for them.",
        ),
    ] = None,
    predictions: Annotated[
        Path | None,
        typer.Option(
            "--predictions",
            help="Predictions that sora eval has written; default: predictions.jsonl in RUN, if it "
            "is there.",
        ),
    ] = None,
    force: Force = False,
    code: Code = None,
) -> None:
    """Write one HTML page about a run: scores, curves, ranks, spectra, examples, cost."""
    from sora_cli.commands.report import report

    load_plugins(code)
    report(run, output=output, examples=examples, predictions=predictions, force=force)
