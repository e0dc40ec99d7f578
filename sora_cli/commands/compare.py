"""`sora compare`: tables of finished runs, from their reports alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Annotated

import typer

from sora_cli.adapter.digest import changed_results
from sora_cli.commands import completion, options
from sora_cli.commands._files import Output, check_files, output_file
from sora_cli.core.atomic import write_text_atomic
from sora_cli.core.checks import check_exclusive, check_requires
from sora_cli.core.console import emit, say, say_notes
from sora_cli.core.errors import SoraError
from sora_cli.core.outputs import check_new_file
from sora_cli.experiments.compare.agreement import emit_ranks
from sora_cli.experiments.compare.archive import write_lines
from sora_cli.experiments.compare.budget_table import (
    budget_tables,
    groups_near_budgets,
    parse_budgets,
)
from sora_cli.experiments.compare.finding import find_runs
from sora_cli.experiments.compare.formats import LINES, emit_comparison, format_of, render
from sora_cli.experiments.compare.grouping import group_runs
from sora_cli.experiments.compare.notes import warnings_of
from sora_cli.experiments.compare.plots import picture_files, plot_comparison, plot_sizes
from sora_cli.experiments.compare.runs import Group, Run, choose_metric, on_selection_rows
from sora_cli.experiments.compare.sizes import MIN_GAIN, sizes_of
from sora_cli.experiments.compare.table import comparison_tables


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUNS...",
            help="Run directories, directories that contain runs at any depth, report files, or "
            "files of runs (.jsonl; FILE/NAME selects runs of such a file by name).",
            autocompletion=completion.runs,
        ),
    ],
    *,
    baseline: Annotated[
        str | None,
        typer.Option(
            "--baseline",
            help="Label of a row; the table then shows differences to it, paired by seed.",
        ),
    ] = None,
    paper: Annotated[
        bool, typer.Option("--paper", help="Show the results printed in the recipes' papers, too.")
    ] = False,
    metric: Annotated[
        str | None,
        typer.Option(
            "--metric", help="Compare this metric of the reports. Default: the main metric."
        ),
    ] = None,
    selection: Annotated[
        bool,
        typer.Option(
            "--selection",
            help="Compare scores on the rows that chose the checkpoints (for tuning).",
        ),
    ] = False,
    ranks: Annotated[
        bool,
        typer.Option(
            "--ranks", help="Show the ranks by layer, and their agreement between seeds and tasks."
        ),
    ] = False,
    budgets: Annotated[
        str | None,
        typer.Option(
            "--budgets",
            help="Compare at equal size: percentages of the baseline's parameters, such as "
            "50,15,8. Needs --baseline.",
        ),
    ] = None,
    in_bytes: Annotated[
        bool,
        typer.Option(
            "--bytes",
            help="With --budgets: count the bytes of the stored factors, 4 for each number and the "
            "packed size of rounded ones, in place of parameters.",
        ),
    ] = False,
    min_gain: Annotated[
        float | None,
        typer.Option(
            "--min-gain",
            help="With --budgets: count only tasks on which the baseline is this many points above "
            "the head alone; 0: count all tasks. Default: 5.",
        ),
    ] = None,
    form: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="table, markdown, csv, latex, json, or jsonl (the runs themselves). Default: by "
            "the suffix of --output, else table.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
    output: Annotated[
        Path | None,
        options.output(
            "--output", "-o", help="Write the table, or the runs (.jsonl), to this file."
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        options.output(
            "--plot",
            help="Draw the metric against parameters (with --budgets: the drop at each size) into "
            "this picture file. Further pictures are written beside it.",
        ),
    ] = None,
    force: options.Force = False,
) -> None:
    """Print a table of groups of runs; the runs of a group differ in their seed only."""
    if as_json:
        check_exclusive(["--json", *([] if form is None else ["--format"])])
        form = "json"
    form = format_of(output, form)
    for option, file in {"--output": output, "--plot": plot}.items():
        check_new_file(option, file, force=force)
    pictures = [] if plot is None else picture_files(plot)
    for picture in pictures[1:]:
        check_new_file("--plot", picture, force=force)
    if form == LINES:
        chosen = {"--baseline": baseline, "--paper": paper, "--metric": metric, "--ranks": ranks,
                 "--selection": selection, "--budgets": budgets, "--plot": plot}  # fmt: skip
        _write_lines(runs, output, [option for option, value in chosen.items() if value])
        return
    check_requires("--budgets", {"--bytes": in_bytes and budgets is None})
    shares = _shares(budgets, baseline, paper=paper, min_gain=min_gain)
    finished = _find(runs, [*output_file("-o", output), *output_file("--plot", *pictures)])
    groups = _groups(finished, metric, selection=selection)
    sizes = None
    if baseline is not None and shares:
        gain = MIN_GAIN if min_gain is None else min_gain
        sizes = sizes_of(
            groups, baseline, min_gain=gain, unit="bytes" if in_bytes else "parameters"
        )
    tables = (
        comparison_tables(groups, baseline=baseline, paper=paper)
        if sizes is None
        else budget_tables(sizes, shares)
    )
    say_notes(warnings_of(groups), "warning")
    if output is not None:
        write_text_atomic(output, render(tables, form))
        say(f"wrote {output}")
    elif form == "table":
        emit_comparison(tables)
    else:
        emit(render(tables, form).removesuffix("\n"))
    if ranks:
        emit_ranks(groups if sizes is None else groups_near_budgets(sizes, shares))
    if plot is not None:
        written = plot_sizes(sizes, shares, plot) if sizes else plot_comparison(groups, plot)
        for picture in written:
            say(f"wrote {picture}")


def _shares(
    budgets: str | None, baseline: str | None, *, paper: bool, min_gain: float | None
) -> tuple[float, ...]:
    """Return --budgets as shares of the baseline's parameters; empty without --budgets."""
    if budgets is None:
        if min_gain is not None:
            raise SoraError("--min-gain goes with --budgets", hint="--budgets 50,15,8")
        return ()
    if baseline is None:
        raise SoraError("--budgets are shares of a baseline's parameters", hint="--baseline LABEL")
    check_exclusive(["--budgets", "--paper"] if paper else ["--budgets"])
    if min_gain is not None and not math.isfinite(min_gain):
        raise SoraError(f"--min-gain is a number of points, not {min_gain:g}", hint="--min-gain 5")
    return parse_budgets(budgets)


def _write_lines(places: Sequence[Path], output: Path | None, chosen: Sequence[str]) -> None:
    """Write the runs themselves (format jsonl) to a file or to stdout."""
    if chosen:
        raise SoraError(
            f"{chosen[0]} goes with a table, and the format {LINES} holds the runs themselves",
            hint=f"compare the file that holds them: sora compare FILE {chosen[0]}",
        )
    runs = _find(places, output_file("-o", output))
    text = write_lines(runs)
    if output is None:
        emit(text.removesuffix("\n"))
    else:
        write_text_atomic(output, text)
        say(f"wrote {output}: {len(runs)} runs")


def _find(places: Sequence[Path], outputs: Sequence[Output]) -> Sequence[Run]:
    """Return all finished runs; print notes on the reports that are left out."""
    reports = find_runs(places)
    check_files(outputs, reports.read)
    changed = (changed_results(run.directory, run.report) for run in reports.runs)
    say_notes(chain.from_iterable(changed), "warning")
    say_notes(reports.left_out, "left out")
    return reports.runs


def _groups(finished: Sequence[Run], metric: str | None, *, selection: bool) -> list[Group]:
    """Return the groups of all finished runs; print notes on the runs that are left out."""
    runs = list(finished)
    if selection:
        runs, left_out = on_selection_rows(runs)
        say_notes(left_out, "left out")
    if not runs:
        hint = "training.evaluate=epoch"
        raise SoraError("no run was evaluated on rows for selection", hint=hint)
    grouped = group_runs(runs)
    say_notes(grouped.notes)
    groups = choose_metric(grouped.groups, metric)
    lacking = sum(len(g.runs) for g in grouped.groups) - sum(len(g.runs) for g in groups)
    if lacking:
        say(f"left out: {lacking} runs that do not report {metric}")
    return groups
