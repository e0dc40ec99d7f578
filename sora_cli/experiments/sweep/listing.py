"""`sora sweep --dry-run`: the runs, their state, and their expected time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sora_cli.core.console import duration, emit, printable, say
from sora_cli.core.table import Cell, Column, Table, emit_table
from sora_cli.experiments.sweep.cost import Costs, measure, missing_kinds
from sora_cli.experiments.sweep.engines import divide
from sora_cli.experiments.sweep.plan import PlannedRun, SweepPlan, search_base
from sora_cli.experiments.sweep.source import PlanSource

_UNKNOWN = "?"


def list_runs(
    plan: SweepPlan,
    *,
    measured: bool,
    jobs: int | None,
    threads: int | None,
    code: Sequence[Path] = (),
) -> None:
    """Print a line per run, and the total time left.

    Args:
        measured: first measure each kind of run without a known cost in a few steps.
        jobs, threads, code: as for the sweep itself.
    """
    search = plan.sweep.sweep.search
    runs = (search_base(plan),) if search else plan.runs
    slots, each = divide(len(plan.runs) or (search.trials if search else 1), jobs, threads)
    costs = Costs.under(plan.directory)
    if measured:
        measure(missing_kinds(runs, costs), costs, threads=each, code=code)
    if search:
        seconds = _seconds(plan, runs[0], costs)
        emit(f"search: {search.trials} trials over {', '.join(search.space)}")
        left = {f"trial {i}": seconds for i in range(search.trials)}
    else:
        left = _emit_runs(plan, costs)
    _emit_total(left, slots, plan)


def _emit_runs(plan: SweepPlan, costs: Costs) -> dict[str, float | None]:
    """Print the table; return the expected seconds of each unfinished run (None: not known)."""
    left: dict[str, float | None] = {}
    rows = []
    records = PlanSource(plan).records
    for run in plan.runs:
        finished = records[run.name].before
        seconds = _seconds(plan, run, costs)
        if not finished:
            left[run.name] = seconds
        about = None if finished else Cell(None, _UNKNOWN) if seconds is None else seconds
        waits = ", ".join(run.needs)
        state = "finished" if finished else f"after {waits}" if waits else ""
        rows.append([run.name, _shown_recipe(run), about, state])
    title = f"{printable(plan.sweep.path)}: {len(plan.runs)} runs"
    emit_table(Table(title, ["run", "recipe", Column("time", duration), ""], rows))
    return left


def _shown_recipe(run: PlannedRun) -> str:
    return f"{run.loaded.name}, {run.loaded.recipe.method.name}"


def _seconds(plan: SweepPlan, run: PlannedRun, costs: Costs) -> float | None:
    cost = costs.find(run.loaded.resolved())
    if cost is None:
        return None
    if plan.kind == "path":
        return cost.of_path(run.loaded)
    return cost.of_auto(run.loaded) if plan.kind == "auto" else cost.of_run(run.loaded.recipe)


def _emit_total(left: dict[str, float | None], slots: int, plan: SweepPlan) -> None:
    known = [seconds for seconds in left.values() if seconds is not None]
    if not left:
        emit("all runs are finished")
    elif len(known) < len(left):
        unknown = len(left) - len(known)
        emit(f"{len(left)} runs left, {slots} at a time; the time of {unknown} is not known")
        say("--measure estimates it from a few steps of each kind of run")
    else:
        total = sum(known)
        whole = max(total / slots, max(known))  # not faster than the longest run
        emit(
            f"{len(left)} runs left: {duration(total)} one after the other; "
            f"about {duration(whole)} with {slots} at a time"
        )
    emit(f"directory: {printable(plan.directory)}")
