"""`sora eval`: score an adapter, a run or a model from its files."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from sora_cli.adapter.digest import result_remarks
from sora_cli.adapter.places import check_target, takes_base
from sora_cli.commands import completion, options
from sora_cli.commands._files import check_files, of_results, output_file
from sora_cli.core.atomic import write_text_atomic
from sora_cli.core.console import emit, printable, say, say_notes
from sora_cli.core.outputs import check_new_file
from sora_cli.core.shell import quote
from sora_cli.core.table import Column, Table, emit_table
from sora_cli.core.timing import importing
from sora_cli.recipe.load import load_recipe
from sora_cli.recipe.reading import EVAL, load_read, named_base
from sora_cli.report import recipe_of_run
from sora_cli.run.precision import settle_precision
from sora_cli.run.preflight import check_recipe


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
        str,
        typer.Option(
            "--recipe",
            "-r",
            help="The recipe with the task and the data.",
            autocompletion=completion.recipes,
        ),
    ],
    predictions: Annotated[
        Path | None,
        options.output(
            "--predictions", help="Write the prediction for each row to this .jsonl file."
        ),
    ] = None,
    as_json: options.Json = False,
    force: options.Force = False,
    code: options.Code = None,
) -> None:
    """Score an adapter, a run or a model on a recipe's validation rows."""
    options.load_plugins(code)
    check_new_file("--predictions", predictions, force=force)
    reading = EVAL if takes_base(Path(target).expanduser()) else EVAL.without("model.path")
    loaded = load_read(partial(load_recipe, recipe), overrides or [], reading)
    check_recipe(loaded.recipe, model=False)  # the target replaces the recipe's model
    read = check_target(target, f"sora eval {{}} --recipe {quote(recipe)}")
    loaded = loaded.continuing(recipe_of_run(read.parent))
    say_notes(result_remarks(read))
    check_files(output_file("--predictions", predictions), of_results(read), loaded)
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
