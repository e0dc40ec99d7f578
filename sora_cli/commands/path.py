"""`sora path`: train adapters from dense to sparse as the stages of one run."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sora_cli.commands import options
from sora_cli.commands._files import check_files, run_files
from sora_cli.core.atomic import remove_file
from sora_cli.core.checks import check_excludes
from sora_cli.core.console import emit, say, say_notes
from sora_cli.core.lock import locked
from sora_cli.core.processes import is_main
from sora_cli.core.shell import quote
from sora_cli.core.table import emit_table
from sora_cli.core.timing import command_start, importing
from sora_cli.experiments.path.plan import StagePlan, path_directory, plan_stages, unused
from sora_cli.experiments.path.record import FILE_NAME, PICTURE, STAGES, PathReport, read_path
from sora_cli.experiments.path.table import control_table, stage_table
from sora_cli.recipe.load import LoadedRecipe, load_recipe
from sora_cli.recipe.output import OutputBlock
from sora_cli.run.opening import Opening, Work, open_work, resumable
from sora_cli.run.output import check_own, check_place, clear_page, clear_run
from sora_cli.run.preflight import check_recipe, check_settled

if TYPE_CHECKING:
    from sora_cli.run.prepare import Prepared


def path(
    recipe: options.Recipe,
    overrides: options.Overrides = None,
    *,
    controls: Annotated[
        bool,
        typer.Option(
            "--controls",
            help="For comparison, also score the first stage after cuts at random and by norm. "
            "Also works on a finished path.",
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show all stages; train nothing.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Delete an existing path in the directory first.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the path's report as JSON instead of tables.")
    ] = False,
    code: options.Code = None,
) -> None:
    """Train the stages of a recipe's path; finished stages are kept."""
    began = command_start()
    options.load_plugins(code)
    loaded = load_recipe(recipe, overrides or [])
    begun = read_path(path_directory(loaded))
    loaded = loaded.continuing(None if begun is None or force else begun.recipe)
    if loaded.recipe.path is not None:
        check_settled(loaded.recipe, "sora path")
        check_recipe(loaded.recipe)
    plans = plan_stages(loaded)
    say_notes([*loaded.notes, *unused(loaded)])
    output = path_directory(loaded)
    is_there = begun is not None
    check_files(run_files(output), [], loaded)
    check_place(output, loaded.recipe, STAGES, is_there=is_there, work="path")
    if dry_run:
        check_excludes("--dry-run", ["--json"] if as_json else [])
        _show_plan(loaded, plans, output)
        return
    with locked(output):
        report = open_report(loaded, plans, output, controls=controls, force=force)
        run(
            loaded, plans, report, output,
            controls=controls, began=began, force=force, as_json=as_json,
        )  # fmt: skip


def open_report(
    loaded: LoadedRecipe, plans: list[StagePlan], output: Path, *, controls: bool, force: bool
) -> PathReport:
    """Return the record of an unfinished path in the output directory, or a new record."""
    report, stage_count = read_path(output), len(plans)
    kept = 0 if report is None or force else len(report.stages)
    for plan in plans[kept:]:
        check_own(output / plan.directory)
    work = None
    if report is not None:
        missing_controls = controls and report.controls is None
        complete = len(report.stages) == stage_count and report.status == "completed"
        usage = f"sora pick {quote(str(output))} --keep 0.99"
        work = Work("path", complete and not missing_controls, report.recipe, usage=usage)
    opening = open_work(output, work, loaded.resolved(), force=force, resume=None)
    if report is None or opening is Opening.NEW:
        if report is not None:
            clear(output)
        return _new_report(loaded, stage_count)
    if report.stages:
        say(f"continuing in {output}: {len(report.stages)} of {stage_count} stages are finished")
    return report


def clear(output: Path) -> None:
    """Delete the files of a path; other files stay."""
    for stage in sorted((output / STAGES).glob("[0-9]*")):
        clear_run(stage)
    with suppress(OSError):
        (output / STAGES).rmdir()
    clear_page(output)
    for name in (PICTURE, FILE_NAME):  # the record last: it marks the other files as ours
        remove_file(output / name)


def run(
    loaded: LoadedRecipe,
    plans: list[StagePlan],
    report: PathReport,
    output: Path,
    *,
    controls: bool,
    began: float,
    force: bool,
    as_json: bool,
) -> None:
    """Train the missing stages, score the controls, draw the picture, print the result."""
    with importing():
        from sora_cli.experiments.path.controls import run_controls
        from sora_cli.experiments.path.plot import plot_path
        from sora_cli.experiments.path.stages import Stages
        from sora_cli.run.prologue import begin, tell_start
        from sora_cli.train.log import ReportLog
    log = ReportLog(output / FILE_NAME, report)
    log.note_import(began)
    ready = begin(plans[0].recipe, log, output)
    with log.phase("set up"):
        stages = Stages(ready, plans, report, output)
        stages.check()
    tell_start(loaded.recipe, stages.ready, stages.runner.setup)
    for index in range(len(report.stages) - 1):  # a kill may have come before this
        stages.forget(index)
    with log.running(), resumable(lambda: _done(report), force=force):
        for plan in plans[len(report.stages) :]:
            place = f"{plan.index + 1} of {len(plans)}"
            say(f"\nstage {plan.index} ({place}): {report.vary} = {plan.value}")
            with log.phase("stages"):
                report.stages.append(stages.run(plan))
            log.save()
            stages.forget(plan.index - 1)
            say(_stage_line(report))
        if controls and report.controls is None:
            with log.phase("controls"):
                report.controls = run_controls(stages, say)
        with log.phase("draw"):
            plot_path(report, output / PICTURE)
    _conclude(report, output, as_json=as_json)


def _done(report: PathReport) -> str:
    return f"{len(report.stages)} of {report.stage_count} stages are kept"


def _new_report(loaded: LoadedRecipe, stage_count: int) -> PathReport:
    from sora_cli.train.log import provenance

    block = loaded.recipe.path
    assert block is not None
    return PathReport(
        name=loaded.name,
        recipe=loaded.resolved(),
        recipe_notes=list(loaded.notes),
        vary=block.vary,
        method=loaded.recipe.method.name,
        stage_count=stage_count,
        **provenance(),
    )


def _stage_line(report: PathReport) -> str:
    stage = report.stages[-1]
    scores = "  ".join(f"{split} {report.score(stage, split):.4f}" for split in stage.metrics)
    return (
        f"{stage.live} of {stage.total} components alive ({stage.share:.0%}); "
        f"{report.main_metric}: {scores}"
    )


def _conclude(report: PathReport, output: Path, *, as_json: bool) -> None:
    if as_json:
        if is_main():
            emit((output / FILE_NAME).read_text(encoding="utf-8").rstrip("\n"))
    else:
        _show_stages(report)
    say(f"\nfiles in {output}/: {FILE_NAME}  {PICTURE}  stages/NN/adapter")
    say("next:")
    say(f"  sora pick {quote(str(output))} --keep 0.99")
    say(f"  sora inspect {quote(f'{output}/{report.stages[-1].directory}')}")


def _show_stages(report: PathReport) -> None:
    emit_table(stage_table(report))
    if report.controls is not None:
        emit_table(control_table(report))
        emit(report.controls.verdict)
        floor = f"{report.main_metric} {report.controls.floor:.4f}"
        emit(f"stage 0 with every component removed: {floor} on {report.generalisation}")


def _show_plan(loaded: LoadedRecipe, plans: list[StagePlan], output: Path) -> None:
    """Show the dry run of stage 0, then a line for every stage."""
    from sora_cli.run.dry_run import dry_run, emit_section

    first = plans[0].loaded
    placed = first.recipe.model_copy(
        update={"output": OutputBlock(dir=str(output / plans[0].directory))}
    )
    ready = dry_run(dataclasses.replace(first, recipe=placed)).ready
    emit_section(f"stages of {loaded.name}; the above is stage 0", _stage_lines(ready, plans))


def _stage_lines(ready: Prepared, plans: list[StagePlan]) -> Iterator[str]:
    """Yield a line per stage with its value and steps, and the method's notes below."""
    from methods.registry import method_class
    from sora_cli.run.rates.settle import settle_rate
    from sora_cli.train.steps import learning_rates
    from sora_cli.train.trainer import training_arguments

    for plan in plans:
        recipe, _ = settle_rate(plan.recipe, ready, dry=True)
        block = recipe.method
        method = method_class(block.name)(block.config)
        steps = recipe.training.total_steps(len(ready.train.lengths))
        args = training_arguments(recipe, Path("stages"), ready.task.best, evaluates=False)
        rates = learning_rates(args, method, ready.layers, steps)
        preview = method.plan(ready.layers, total_steps=steps, learning_rates=rates)
        yield f"{plan.index:>3}  {plan.value!s:<24} {steps:,} steps"
        yield from (f"       {note}" for note in preview.notes)
