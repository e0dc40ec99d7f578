"""`sora auto`: find and certify the smallest adapter within an accepted drop."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sora_cli.commands import completion, options
from sora_cli.commands._files import check_files, run_files, table_files
from sora_cli.commands._flags import Asked, spliced
from sora_cli.core.checks import check_exclusive, check_requires
from sora_cli.core.console import emit, say, say_notes
from sora_cli.core.errors import SoraError
from sora_cli.core.exit_codes import NO_VERDICT, OK
from sora_cli.core.lock import locked
from sora_cli.core.processes import is_main
from sora_cli.core.shell import quote
from sora_cli.core.table import emit_table
from sora_cli.core.timing import command_start, importing
from sora_cli.experiments.auto.beginning import open_record
from sora_cli.experiments.auto.plan import AutoPlan, placed, plan_auto, unused
from sora_cli.experiments.auto.tables import (
    base_alone,
    constant_lines,
    cost_lines,
    full_layers,
    promised,
    whole_lines,
)
from sora_cli.propose.writing import recipe_for
from sora_cli.recipe.load import load_recipe
from sora_cli.run.output import check_place
from sora_cli.run.preflight import check_recipe, check_settled
from sora_cli.run.summary import result_lines
from sora_cli.search.evidence import (
    FILE_NAME,
    PICTURE,
    SIZES,
    Evidence,
)
from sora_cli.search.former_design import check_design
from sora_cli.search.kept_answers import Kept
from sora_cli.search.record import FILE_NAME as RECORD
from sora_cli.search.record import read_auto
from sora_cli.search.words import size_table, untrained_line

if TYPE_CHECKING:
    from sora_cli.report import RunReport
    from sora_cli.search.asking import AskTable


@spliced
def auto(
    recipe: Annotated[
        str | None,
        typer.Argument(
            help="A recipe file, or the name of a packaged recipe (see: sora recipes). Not needed "
            "with --data.",
            autocompletion=completion.recipes,
        ),
    ] = None,
    overrides: options.Overrides = None,
    *,
    data: Annotated[
        str | None,
        typer.Option(
            "--data", help="A data file, directory or Hub id: a recipe is written for it and used."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", help="With --data: the base model. Default: a small model."),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            "--task", help="With --data: the task family. Default: detected from the columns."
        ),
    ] = None,
    asked: Asked,
    serve: Annotated[
        str | None,
        typer.Option(
            "--serve",
            help="Minimise the cost in this server: vllm or llama.cpp. Default: minimise the "
            "number of parameters.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the plan and its cost; train nothing.")
    ] = False,
    preview: options.PreviewInDryRun = None,
    force: Annotated[
        bool, typer.Option("--force", help="Delete an existing run in the directory first.")
    ] = False,
    no_verify: options.NoVerify = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the certificate as JSON instead of tables.")
    ] = False,
    code: options.Code = None,
) -> int:
    """Search for the smallest adapter within the accepted drop, or continue such a search.

    Returns:
        Exit code: 3 if the promise is not certified, 4 if labels are wanted, 1 if the saved files
        give other outputs than the trained model.
    """
    began = command_start()
    options.load_plugins(code)
    given = overrides or []
    if data is not None:
        given = [*([] if recipe is None else [recipe]), *given]
        recipe = recipe_for(
            data, given, say, model=model, task=task, dry_run=dry_run, preview=preview
        )
        preview = preview if dry_run else None  # recipe_for has shown the rows already
    else:
        check_requires("--data", {"--model": model is not None, "--task": task is not None})
    if recipe is None:
        raise SoraError("no recipe is given", hint="sora auto RECIPE, or sora auto --data FILE")
    words = [*_without_other(asked.max_drop, asked.max_differ), *asked.words()]
    words += [] if serve is None else [f"auto.serve={serve}"]
    if preview is not None and not dry_run:
        raise SoraError("--preview goes with --dry-run", hint="add --dry-run")
    plan = plan_auto(load_recipe(recipe, [*given, *words]))
    if not force:
        check_design(plan.output / RECORD)
    begun = read_auto(plan.output)
    if begun is not None and not force:
        plan = replace(plan, loaded=plan.loaded.continuing(begun.recipe))
    loaded = plan.loaded
    ask = None if loaded.recipe.auto is None else loaded.recipe.auto.ask
    written = [*run_files(plan.output), *table_files(ask, beside=False)]
    check_files(written, [], loaded)
    table: AskTable | None = None
    if ask is not None:
        from sora_cli.search.asking import AskTable  # torch

        table = AskTable(Path(ask).expanduser(), Kept.of(plan.output))
        force = table.begin(begun=begun is not None, force=force)
    check_settled(loaded.recipe, "sora auto")
    check_recipe(loaded.recipe)
    say_notes([*loaded.notes, *unused(plan)])
    is_there = begun is not None
    check_place(plan.output, loaded.recipe, SIZES, is_there=is_there, work="run of sora auto")
    if dry_run:
        _show_plan(plan, preview)
        return OK
    with locked(plan.output):
        reread = table is not None and bool(table.accepted)
        record = open_record(plan, force=force, reread=reread)
        with importing():
            from sora_cli.experiments.auto.run import run
        certificate, ready, log = run(plan, record, began=began, force=force, table=table)
        exit_code = OK if certificate.certified else NO_VERDICT
        if not no_verify and is_main():
            from sora_cli.verify.run_check import check_run

            with log.epilogue("verify"):
                # a difference in the files (1) weighs more than a missing certificate (3)
                exit_code = check_run(placed(loaded, plan), ready, log.report) or exit_code
    conclude(certificate, log.report, plan.output, as_json=as_json)
    return exit_code


def _without_other(max_drop: str | None, max_differ: str | None) -> list[str]:
    """Return overrides that take the recipe's own promise out, if an option gives the other one."""
    check_exclusive([n for n, v in (("--max-drop", max_drop), ("--max-differ", max_differ)) if v])
    if max_differ is not None:
        return ["auto.max_drop=null", "auto.ask=null", "auto.labels=null", "auto.ask_all=false"]
    # rows without labels can test a drop, too
    differ = ["auto.max_differ=null", "auto.tolerance=null", "auto.next_tokens=false"]
    return [] if max_drop is None else differ


def conclude(certificate: Evidence, report: RunReport, output: Path, *, as_json: bool) -> None:
    """Print the result to stdout, and the next commands to stderr."""
    if as_json:
        emit(json.dumps(json.loads(certificate.model_dump_json()), indent=2))
    else:
        emit_table(size_table(certificate))
        if (others := untrained_line(certificate)) is not None:
            emit(others)
        emit("\n".join(result_lines(report)))
        # rows without labels may be those of a reported split
        unused = "" if certificate.promise.basis == "labels" else "the labels of "
        assert certificate.written is not None
        for split, measured in certificate.written.reported.items():
            emit(
                f"{split}: drop {measured.drop:+.4f} against full rank; no decision used "
                f"{unused}these rows"
            )
        emit(f"kept: {certificate.saved}")
        emit(f"{certificate.status}: {certificate.statement}")
    more = (full_layers(report), base_alone(certificate, report) if certificate.certified else None)
    say_notes([*report.events, *filter(None, more)])
    if not certificate.certified:
        say(f"the adapter at full rank: {output / certificate.full.directory / 'adapter'}")
    say(f"\nfiles in {output}/: adapter/  {FILE_NAME}  {PICTURE}  report.json  {SIZES}/")
    say("next:")
    say(f"  sora report {quote(str(output))}")
    say(f"  sora verify {quote(str(output))} --certificate")
    say(f"  sora merge {quote(str(output))} -o {quote(f'{output}/merged')}")


def _show_plan(plan: AutoPlan, preview: int | None) -> None:
    """Show the dry run of the run at full rank, then the cost of the search."""
    from sora_cli.run.dry_run import dry_run, emit_section

    with importing():
        from sora_cli.experiments.auto.maker import parts_of_search
        from sora_cli.experiments.auto.rows import planned_rows
        from sora_cli.search.rows import method_by
    plan, rows, notes = planned_rows(plan)
    say_notes(notes)
    full = plan.full(rows)
    shown = dry_run(full, rows=preview)
    test = parts_of_search(full.recipe, shown.ready, rows).test
    rows = rows.counted(len(test))
    say_notes(test.notes("test rows"))
    bound = method_by(full.recipe, shown.ready, rows.test, plan.promise)
    promise = plan.promise.settled(bound, rows.test)
    emit_section(
        f"sizes of {plan.loaded.name}; the above is the run at full rank",
        [
            *cost_lines(plan, rows),
            *promised(promise, rows, bound),
            *constant_lines(promise, shown.ready),
            *whole_lines(plan, rows, shown),
        ],
    )
