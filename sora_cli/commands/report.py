"""`sora report`: one HTML page about a run or a path."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from shlex import join
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from sora_cli.adapter.places import check_target, is_adapter
from sora_cli.commands import completion, options
from sora_cli.commands._files import RECORDS, check_files, output_file
from sora_cli.core.atomic import write_text_atomic
from sora_cli.core.console import say, say_notes, size
from sora_cli.core.errors import SoraError, first_mistake, reason
from sora_cli.core.outputs import check_new_file
from sora_cli.core.shell import quote
from sora_cli.core.timing import importing
from sora_cli.core.words import first_few
from sora_cli.experiments.compare.finding import report_files
from sora_cli.experiments.path.record import FILE_NAME as PATH_FILE
from sora_cli.experiments.path.record import STAGES, PathReport, read_path
from sora_cli.experiments.report.examples import FILE_NAME as PREDICTIONS_FILE
from sora_cli.experiments.report.examples import read_records
from sora_cli.report import FILE_NAME, PAGE_FILE, RunReport, load_report
from sora_cli.search.evidence import FILE_NAME as CERTIFICATE_FILE
from sora_cli.search.evidence import read_certificate
from sora_cli.search.former_design import former_design
from sora_cli.search.record import read_auto


def report(
    run: Annotated[
        Path,
        typer.Argument(help="The directory of a run or a path.", autocompletion=completion.runs),
    ],
    *,
    output: Annotated[
        Path | None,
        options.output("--output", "-o", help="The page to write. Default: report.html in RUN."),
    ] = None,
    examples: Annotated[
        int | None,
        typer.Option(
            "--examples",
            min=1,
            help="Show this many rows with right answers and this many with wrong ones. Without "
            "stored predictions, the recipe's rows are scored anew.",
        ),
    ] = None,
    predictions: Annotated[
        Path | None,
        typer.Option(
            "--predictions",
            help="A predictions file (written by sora eval). Default: predictions.jsonl in RUN, if "
            "present.",
        ),
    ] = None,
    force: options.Force = False,
    code: options.Code = None,
) -> None:
    """Write one HTML page about a run or a path."""
    options.load_plugins(code)
    content = _read(run)
    page = output or run / PAGE_FILE
    _check_page(page, run, predictions, force=force)
    if isinstance(content, PathReport):
        _check_no_rows(content, run, examples=examples, predictions=predictions)
        from sora_cli.experiments.report.page import path_page

        html = path_page(content, run)
    else:
        certificate, design = read_certificate(run), former_design(run / CERTIFICATE_FILE)
        if design is not None:
            say_notes([f"{run / CERTIFICATE_FILE} is left out: the search was {design}"])
        records = _records(content, run, examples, predictions, page)
        from sora_cli.experiments.report.page import FEW, run_page

        html = run_page(
            content, run, records=records, most=examples or FEW, certificate=certificate
        )
    write_text_atomic(page, html)
    say(f"wrote {page}: {size(page.stat().st_size)}")


def _read(run: Path) -> RunReport | PathReport:
    """Read the report of a run, or the record of a path."""
    if run.is_file():
        hint = f"sora report {quote(str(run.parent))}" if run.name == FILE_NAME else None
        raise SoraError(f"{run} is a file, not a run's directory", hint=hint)
    if not run.is_dir():
        raise SoraError(f"there is no directory {run}", hint="to list the runs: sora list")
    path = read_path(run)
    if path is not None:
        return path
    try:
        return load_report(run / FILE_NAME)
    except FileNotFoundError as error:
        raise _no_run(run) from error
    except OSError as error:
        raise SoraError(f"{run / FILE_NAME} cannot be read: {reason(error, run)}") from error
    except ValidationError as error:
        raise SoraError(f"{run / FILE_NAME} is no run's report: {first_mistake(error)}") from error


def _no_run(run: Path) -> SoraError:
    """Return the error for a directory without a report, with a command that fits its content."""
    what = f"{run} is no run's directory: it holds no {FILE_NAME} and no {PATH_FILE}"
    if (run.parent / FILE_NAME).is_file():
        return SoraError(what, hint=f"sora report {quote(str(run.parent))}")
    if is_adapter(run):
        return SoraError(what, hint=f"to see the adapter alone: sora inspect {quote(str(run))}")
    search = read_auto(run)
    if search is not None:
        what = f"{run} holds a run of sora auto that has not finished"
        return SoraError(what, hint=f"to continue it: {join(search.command)}")
    below = [str(file.parent) for file in report_files(run)]
    if below:
        where = f"there are runs in {first_few(below)}"
        return SoraError(what, where=where, hint=f"sora compare {quote(str(run))}")
    return SoraError(what)


def _check_page(page: Path, run: Path, predictions: Path | None, *, force: bool) -> None:
    """Raise `SoraError` if the page would overwrite an input or a file of another program."""
    check_new_file("--output", page, force=force, hint="name another file: -o FILE.html")
    read = (run / name for name in (*RECORDS, PREDICTIONS_FILE))
    check_files(output_file("-o", page), [*read, predictions])


def _check_no_rows(
    path: PathReport, run: Path, *, examples: int | None, predictions: Path | None
) -> None:
    """Raise `SoraError` for --examples or --predictions of a path, which need one of its stages."""
    given = {"--examples": examples, "--predictions": predictions}
    for option, value in given.items():
        if value is not None:
            stage = run / (path.stages[-1].directory if path.stages else f"{STAGES}/00")
            hint = f"sora report {quote(str(stage))} {option} {quote(str(value))}"
            raise SoraError(
                f"{option} is for one run, and {run} holds a path of several", hint=hint
            )


def _records(
    report: RunReport, run: Path, examples: int | None, predictions: Path | None, page: Path
) -> Sequence[dict[str, Any]]:
    """Return stored predictions; without stored ones, score the rows anew if `examples` is set."""
    stored = predictions or run / PREDICTIONS_FILE
    if predictions is not None or stored.is_file():
        return read_records(stored)
    return [] if examples is None else _scored(report, run, page)


def _scored(report: RunReport, run: Path, page: Path) -> list[dict[str, Any]]:
    """Return the predictions of a finished run for the rows of its recipe, computed anew."""
    from sora_cli.recipe.load import load_stored
    from sora_cli.run.preflight import check_recipe

    if report.status != "completed":
        raise SoraError(
            f"--examples needs a finished run, and {run} has not finished",
            hint=f"sora report {quote(str(run))}",
        )
    loaded = load_stored(report.recipe, run / FILE_NAME, report.name)
    check_files(output_file("-o", page), [], loaded)
    recipe = loaded.recipe.to_score()
    check_recipe(recipe, model=False)
    check_target(str(run), "sora report {} --examples 5")
    with importing():
        from sora_cli.run.scoring import score_target
    return [r for scored in score_target(str(run), recipe, records=True) for r in scored.records]
