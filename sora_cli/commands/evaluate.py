"""`sora eval`: score an adapter, a run or a model from its files."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sora_cli.adapter.digest import result_remarks
from sora_cli.adapter.places import check_target, takes_base, with_base
from sora_cli.commands import completion, options
from sora_cli.core.atomic import write_text_atomic
from sora_cli.core.checks import check_excludes, check_requires
from sora_cli.core.console import count, emit, printable, say, say_notes
from sora_cli.core.errors import SoraError
from sora_cli.core.json_text import readable_json
from sora_cli.core.outputs import check_apart, check_new_file
from sora_cli.core.shell import quote
from sora_cli.core.table import Column, Table, emit_table
from sora_cli.core.timing import importing
from sora_cli.recipe.load import load_recipe
from sora_cli.recipe.reading import BENCHMARK, EVAL, load_read, named_base
from sora_cli.report import FILE_NAME, HISTORY_FILE, recipe_of_run
from sora_cli.run.output import BENCHMARKS
from sora_cli.run.precision import settle_precision
from sora_cli.run.preflight import check_recipe
from sora_cli.use.benchmark_choice import Benchmarks

if TYPE_CHECKING:
    from sora_cli.recipe.recipe import Recipe
    from sora_cli.use.benchmark import BenchmarkReport


def evaluate(
    target: Annotated[
        str,
        typer.Argument(
            help="A run, adapter or model directory, or a model's Hub id.",
            autocompletion=completion.runs,
        ),
    ],
    overrides: options.ReadOverrides = None,
    *,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            "-r",
            help="The recipe with the task and the data. Not needed with --benchmark.",
            autocompletion=completion.recipes,
        ),
    ] = None,
    predictions: Annotated[
        Path | None,
        options.output(
            "--predictions", help="Write the prediction for each row to this .jsonl file."
        ),
    ] = None,
    benchmark: Annotated[
        str | None,
        typer.Option(
            "--benchmark",
            help="Score on benchmarks of lm-evaluation-harness instead: hellaswag,arc_easy. Needs "
            "pip install 'sora-cli[lm-eval]'.",
        ),
    ] = None,
    benchmark_tasks: Annotated[
        Path | None,
        typer.Option(
            "--benchmark-tasks", help="With --benchmark: a directory with your own benchmarks."
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit", min=1, help="With --benchmark: largest number of rows per benchmark."
        ),
    ] = None,
    few_shot: Annotated[
        int | None,
        typer.Option(
            "--few-shot",
            min=0,
            help="With --benchmark: number of examples in each prompt. Default: the benchmark's "
            "own.",
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", min=1, help="With --benchmark: rows per batch. Default: 8."),
    ] = None,
    output: Annotated[
        Path | None,
        options.output(
            "--output",
            "-o",
            help="With --benchmark: the report file to write. Default: benchmarks.json in the "
            "run's directory; without a run, none.",
        ),
    ] = None,
    as_json: options.Json = False,
    force: options.Force = False,
    code: options.Code = None,
) -> None:
    """Score an adapter, a run or a model on a recipe's validation rows, or on benchmarks."""
    options.load_plugins(code)
    given = overrides or []
    if benchmark is not None:
        check_excludes("--benchmark", [] if predictions is None else ["--predictions"])
        benchmarks = Benchmarks(benchmark, benchmark_tasks, limit, few_shot, batch_size or 8)
        _show_benchmarks(
            _on_benchmarks(target, benchmarks, recipe, given, output, force=force), as_json=as_json
        )
        return
    needless = {"--benchmark-tasks": benchmark_tasks, "--limit": limit, "--few-shot": few_shot,
                "--batch-size": batch_size, "--output": output}  # fmt: skip
    check_requires("--benchmark", {name: value is not None for name, value in needless.items()})
    if recipe is None:
        raise SoraError(
            "sora eval needs a recipe with the data to score",
            hint="add --recipe RECIPE; or --benchmark NAMES",
        )
    check_new_file("--predictions", predictions, force=force)
    reading = EVAL if takes_base(Path(target).expanduser()) else EVAL.without("model.path")
    loaded = load_read(partial(load_recipe, recipe), given, reading)
    check_recipe(loaded.recipe, model=False)  # the target replaces the recipe's model
    read = check_target(target, f"sora eval {{}} --recipe {quote(recipe)}")
    loaded = loaded.continuing(recipe_of_run(read.parent))
    say_notes(result_remarks(read))
    if predictions is not None:
        of_run = (read.parent / FILE_NAME, read.parent / HISTORY_FILE)
        read_too = (*with_base(read), *of_run, loaded.path, *_data_files(loaded.recipe))
        check_apart(predictions, *read_too, hint="name another file")
    with importing():
        from sora_cli.run.scoring import score_target
    scores: dict[str, dict[str, float]] = {}
    records: list[dict[str, Any]] = []
    used = settle_precision(loaded).recipe
    on, notes = named_base(loaded), list[str]()
    for scored in score_target(target, used, records=predictions is not None, on=on):
        scores[scored.split] = scored.scores
        records += scored.records
        notes = list(scored.notes)
    if predictions is not None:
        _write_lines(predictions, records)
    _show(target, scores, notes, as_json=as_json)


def _on_benchmarks(
    target: str,
    benchmarks: Benchmarks,
    recipe: str | None,
    overrides: list[str],
    output: Path | None,
    *,
    force: bool,
) -> BenchmarkReport:
    """Score a causal language model on benchmarks, and write the report.

    Args:
        recipe: the source of model options and precision; None: the files of the target.
        output: the report to write; None: `benchmarks.json` in a run's directory, else no file.
    """
    benchmarks.check()
    known = takes_base(Path(target).expanduser())
    reading = BENCHMARK if known else BENCHMARK.without("model.path")
    loaded = None
    if recipe is not None:
        loaded = load_read(partial(load_recipe, recipe), overrides, reading)
    check_new_file("--output", output, force=force)
    place = check_target(target, f"sora eval {{}} --benchmark {quote(benchmarks.text)}")
    if output is not None:
        check_apart(output, *with_base(place), hint="name another file")
    say_notes(result_remarks(place))
    with importing():
        from sora_cli.use.benchmark import benchmark_report
        from sora_cli.use.described import recipe_for_rows
    try:
        read = loaded or recipe_for_rows(place, overrides, reading=reading)[0]
    except SoraError as error:
        if "--task" not in (error.hint or ""):
            raise
        raise SoraError(
            error.what, where=error.where, hint="add --recipe RECIPE, for the task of the model"
        ) from error
    used = settle_precision(read).recipe
    report = benchmark_report(target, place, used, benchmarks, on=named_base(read))
    if output is None and (place.parent / FILE_NAME).is_file():
        output = place.parent / BENCHMARKS
    if output is not None:
        write_text_atomic(output, readable_json(json.loads(report.model_dump_json())))
        say(f"wrote {output}")
    return report


def _show_benchmarks(report: BenchmarkReport, *, as_json: bool) -> None:
    if as_json:
        emit(readable_json(json.loads(report.model_dump_json())).rstrip("\n"))
        return
    rows = [
        [name, metric, value, result.errors.get(metric), result.few_shot, result.rows]
        for name, result in report.results.items()
        for metric, value in result.scores.items()
    ]
    columns = ("benchmark", "metric", Column("score", ".4f"), Column("+- (stderr)", ".4f"),
               "few-shot", "rows")  # fmt: skip
    emit_table(Table(printable(report.target), columns, rows))
    if report.limit is not None:
        say(f"note: at most {count(report.limit)} rows of each benchmark were scored (--limit)")


def _data_files(recipe: Recipe) -> list[Path]:
    """Return the data files of a recipe, or their directory."""
    files = recipe.data.files or {}
    named = [name for names in files.values() for name in names]
    return [Path(name).expanduser() for name in (*named, recipe.data.path) if name]


def _write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    write_text_atomic(path, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records))
    say(f"{len(records):,} predictions in {path}")


def _show(
    target: str, scores: dict[str, dict[str, float]], notes: list[str], *, as_json: bool
) -> None:
    if as_json:
        emit(json.dumps({**scores, **({"notes": notes} if notes else {})}, indent=2))
        return
    names = list(next(iter(scores.values())))
    rows = [[split, *(values[name] for name in names)] for split, values in scores.items()]
    columns = (Column("split"), *(Column(name, ".4f") for name in names))
    emit_table(Table(printable(target), columns, rows))
