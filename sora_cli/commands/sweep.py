"""`sora sweep`: train the runs of a sweep file, continue them, or list them."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from sora_cli.commands import completion, options
from sora_cli.commands._files import check_files, of_recipe, run_files
from sora_cli.core.atomic import tidy
from sora_cli.core.checks import check_excludes
from sora_cli.core.console import duration, emit, say
from sora_cli.core.exit_codes import FAILED, LABELS_WANTED, OK
from sora_cli.core.interruption import Interrupted
from sora_cli.core.lock import check_directory, locked
from sora_cli.core.outputs import Overlap, check_apart, overlap
from sora_cli.core.shell import quote
from sora_cli.core.table import Table, emit_table
from sora_cli.experiments.sweep.display import Display
from sora_cli.experiments.sweep.engine import Engine
from sora_cli.experiments.sweep.engines import choose_engine
from sora_cli.experiments.sweep.loop import Loop, Settings
from sora_cli.experiments.sweep.plan import MAX_RUNS, SweepPlan, plan_sweep
from sora_cli.experiments.sweep.record import FILE_NAME, SweepRecord, check_record
from sora_cli.experiments.sweep.source import PlanSource, Source
from sora_cli.report import now
from sora_cli.run.opening import ELSEWHERE


def sweep(
    file: Annotated[
        Path,
        typer.Argument(
            help="A sweep file, or the name of a packaged sweep (see: sora recipes).",
            autocompletion=completion.sweeps,
        ),
    ],
    overrides: options.Overrides = None,
    *,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="List the runs and their expected time; train nothing."),
    ] = False,
    measure: Annotated[
        bool,
        typer.Option(
            "--measure",
            help="With --dry-run: measure the time with a few steps of each kind of run.",
        ),
    ] = False,
    max_runs: Annotated[
        int | None,
        typer.Option(
            "--max-runs", min=1, help="Refuse a sweep with more runs than this. Default: 10,000."
        ),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs",
            "-j",
            min=1,
            help="Number of runs at the same time. Default: one per GPU; without a GPU, up to 4.",
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option("--threads", min=1, help="CPU threads of each run. Default: divided evenly."),
    ] = None,
    engine: Annotated[
        str,
        typer.Option(
            "--engine", help="Place of the runs: local (this machine) or ray (a Ray cluster)."
        ),
    ] = "local",
    address: Annotated[
        str | None,
        typer.Option("--address", help="Address of the Ray cluster: auto, or HOST:PORT."),
    ] = None,
    retries: Annotated[
        int,
        typer.Option("--retries", min=0, help="Number of restarts of a run that was killed."),
    ] = 2,
    no_verify: options.NoVerify = False,
    as_json: options.Json = False,
    code: options.Code = None,
) -> int:
    """Train the runs of a sweep file; finished runs are kept.

    Returns:
        Exit code: 1 if a run failed, else 4 if a run waits for labels.
    """
    options.load_plugins(code)
    plugins = code or []  # each run is a process of its own and loads them again
    plan = plan_sweep(file, overrides or [], most=MAX_RUNS if max_runs is None else max_runs)
    check_directory(plan.directory)
    # runs inside a base model's directory would change the model that they train
    for base in dict.fromkeys(run.loaded.recipe.model.path for run in plan.runs):
        check_apart(plan.directory, Path(base).expanduser(), hint=ELSEWHERE)
    inputs = dict.fromkeys(place for run in plan.runs for place in of_recipe(run.loaded))
    check_files(run_files(plan.directory, FILE_NAME), [plan.sweep.path, *inputs])
    for run in plan.runs:  # each with its own inputs: a run may begin with another run's result
        named = (plan.sweep.path, *of_recipe(run.loaded))
        inside = [place for place in named if overlap(place, run.directory) is Overlap.INSIDE]
        if inside:
            check_files(run_files(run.directory), inside)
    check_record(plan.directory)
    if dry_run or measure:
        check_excludes("--dry-run", ["--json"] if as_json else [])
        from sora_cli.experiments.sweep.listing import list_runs

        list_runs(plan, measured=measure, jobs=jobs, threads=threads, code=plugins)
        return OK
    with locked(plan.directory):
        tidy(plan.directory)
        source = _source(plan)
        chosen, each = choose_engine(
            engine, runs=max(len(plan.runs), 1), jobs=jobs, threads=threads, address=address
        )
        settings = Settings(plan.kind, each, retries, tuple(plugins), not no_verify)
        _carry_out(plan, source, chosen, settings, name=engine)
        return _conclude(plan, source, as_json=as_json)


def _source(plan: SweepPlan) -> Source:
    if plan.sweep.sweep.search is None:
        return PlanSource(plan)
    from sora_cli.experiments.sweep.search import SearchSource

    return SearchSource(plan)


def _carry_out(
    plan: SweepPlan, source: Source, engine: Engine, settings: Settings, *, name: str
) -> None:
    before = sum(record.before for record in source.records.values())
    if before:
        say(f"{before} of {len(source.records)} runs are finished already")
    record = SweepRecord(
        file=str(plan.sweep.path),
        command=["sora", *sys.argv[1:]],
        kind=plan.kind,
        started=now(),
        engine=name,
    )
    search = plan.sweep.sweep.search
    display = Display(
        source.records, lambda run: loop.log_of(run), total=search.trials if search else None
    )
    loop = Loop(source, engine, settings, plan.directory, record, display.tell, display.show)
    try:
        with display:
            loop.run()
    except Interrupted as end:
        again = shlex.join(["sora", *sys.argv[1:]])
        raise end.with_words("runs keep their checkpoints", f"to resume: {again}") from end


def _conclude(plan: SweepPlan, source: Source, *, as_json: bool) -> int:
    """Print the results of the runs and the next command; return the exit code."""
    records = list(source.records.values())
    bad = [record for record in records if record.state in ("failed", "blocked")]
    waiting = [record for record in records if record.state == "unfinished"]
    left = len(bad) + len(waiting)
    good = sum(record.state == "finished" for record in records)
    spent = sum(record.seconds or 0 for record in records)
    say()
    if as_json:
        emit((plan.directory / FILE_NAME).read_text(encoding="utf-8").rstrip("\n"))
    else:
        emit(f"{good} of {len(records)} runs finished, {left} not; {duration(spent)} of runs")
        if bad or waiting:
            rows = [[r.name, r.state, r.error] for r in (*bad, *waiting)]
            emit_table(Table(None, ["not finished", "", "why"], rows))
        source.conclude()
    if good:
        say("next:")
        say(f"  sora compare {quote(str(plan.directory))}")
    return FAILED if bad else LABELS_WANTED if waiting else OK
