"""`sora sweep`: the runs of a sweep file, carried out, continued, or only listed."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from sora_cli.core.checks import check_apart_from
from sora_cli.core.console import duration, emit, emit_table, say
from sora_cli.core.exit_codes import FAILED, OK
from sora_cli.core.interruption import Interrupted
from sora_cli.core.lock import check_directory, locked
from sora_cli.core.outputs import check_apart
from sora_cli.experiments.sweep.display import Display
from sora_cli.experiments.sweep.engine import Engine
from sora_cli.experiments.sweep.engines import choose_engine
from sora_cli.experiments.sweep.loop import Loop, Settings
from sora_cli.experiments.sweep.plan import MAX_RUNS, SweepPlan, plan_sweep
from sora_cli.experiments.sweep.record import FILE_NAME, SweepRecord, check_record
from sora_cli.experiments.sweep.source import PlanSource, Source
from sora_cli.report import now


def sweep(
    file: Path,
    overrides: list[str],
    *,
    dry_run: bool = False,
    measure: bool = False,
    most: int | None = None,
    jobs: int | None = None,
    threads: int | None = None,
    engine: str = "local",
    address: str | None = None,
    retries: int = 2,
    verify: bool = True,
    code: Sequence[Path] = (),
    as_json: bool = False,
) -> int:
    """Carry out a sweep file's runs; finished ones are left alone.

    Args:
        dry_run: only list the runs and the time they are expected to take.
        measure: for that, take a few steps of each kind of run that nothing is known of.
        most: runs planned at most; None: `MAX_RUNS`.
        jobs: runs at work at the same time; None: see `choose_engine`.
        threads: of each; None: the machine's, divided.
        engine: local or ray.
        address: of the Ray cluster.
        retries: times a run that was killed is started again.
        verify: whether each run checks its files.
        code: plug-in files, which are loaded here already; each run is handed them, too.
        as_json: print the sweep's record instead of a summary.

    Returns:
        Exit code: 1 if a run failed.
    """
    plan = plan_sweep(file, overrides, most=MAX_RUNS if most is None else most)
    check_directory(plan.directory)
    for base in dict.fromkeys(run.loaded.recipe.model.path for run in plan.runs):
        check_apart(plan.directory, Path(base).expanduser(), hint="elsewhere: output.dir=DIR")
    check_record(plan.directory)
    if dry_run or measure:
        check_apart_from("--dry-run", ["--json"] if as_json else [])
        from sora_cli.experiments.sweep.listing import list_runs

        list_runs(plan, measured=measure, jobs=jobs, threads=threads, code=code)
        return OK
    with locked(plan.directory):
        source = _source(plan)
        chosen, each = choose_engine(
            engine, runs=max(len(plan.runs), 1), jobs=jobs, threads=threads, address=address
        )
        settings = Settings(plan.kind, each, retries, tuple(code), verify)
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
    """Say how the runs ended and what to type next; return the exit code."""
    records = list(source.records.values())
    bad = [record for record in records if record.state in ("failed", "blocked")]
    good = sum(record.state == "finished" for record in records)
    spent = sum(record.seconds or 0 for record in records)
    say()
    if as_json:
        emit((plan.directory / FILE_NAME).read_text(encoding="utf-8").rstrip("\n"))
    else:
        emit(f"{good} of {len(records)} runs finished, {len(bad)} not; {duration(spent)} of runs")
        if bad:
            emit_table(None, ["not finished", "", "why"], [[r.name, r.state, r.error] for r in bad])
        source.conclude()
    if good:
        say("next:")
        say(f"  sora compare {shlex.quote(str(plan.directory))}")
    return FAILED if bad else OK
