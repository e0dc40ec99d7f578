"""`sora eval`: the scores of an adapter, a run or a model, from files alone."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from sora_cli.adapter.digest import result_remarks
from sora_cli.adapter.places import adapter_folder, baseline_folder, check_target, with_base
from sora_cli.core.checks import check_apart, check_new_file
from sora_cli.core.console import emit, emit_table, printable, say, say_notes
from sora_cli.core.errors import SoraError
from sora_cli.core.timing import importing
from sora_cli.core.words import first_few
from sora_cli.model.files import DELTA_FILE
from sora_cli.recipe.load import load_recipe
from sora_cli.run.preflight import check_recipe

if TYPE_CHECKING:
    from sora_cli.model.base import Base
    from sora_cli.recipe.recipe import Recipe
    from sora_cli.tasks.base import Predictions, Task


def evaluate(
    target: str, *, recipe: str, overrides: list[str], predictions: Path | None, as_json: bool
) -> None:
    """Score an adapter, a run or a model on a recipe's reported splits."""
    check_new_file("--predictions", predictions)
    loaded = load_recipe(recipe, overrides)
    check_recipe(loaded.recipe, model=False)  # the target takes its place
    read = check_target(target, f"sora eval {{}} --recipe {quote(recipe)}")
    say_notes(result_remarks(read))
    if predictions is not None:
        read_too = (*with_base(read), loaded.path, *_data_files(loaded.recipe))
        check_apart(predictions, *read_too, hint="name another file")
    with importing():
        from sora_cli.run.encode import encode
        from sora_cli.run.prepare import check_rows, load_task
        from sora_cli.train.trainer import build_trainer
    task, rows = load_task(loaded.recipe)
    with loaded.recipe.placing():
        check_rows(task, rows, rows.report.values())
    base = load_target(target, loaded.recipe, task)
    scores: dict[str, dict[str, float]] = {}
    records: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        trainer = build_trainer(loaded.recipe, task, base, Path(scratch))
        for split, part in rows.report.items():
            with loaded.recipe.placing():
                encoded = encode(task, base, part, rows.origin(part))
            wanted = [*task.metric_names, *(task.options.TEXT_METRICS if predictions else ())]
            found = trainer.predictions_of(encoded, wanted)
            scores[split] = task.scores(found)
            records += _records(task, split, found) if predictions else []
    if predictions is not None:
        _write_lines(predictions, records)
    _show(target, scores, as_json=as_json)


def _data_files(recipe: Recipe) -> list[Path]:
    """Return the files that a recipe names as its data."""
    files = recipe.data.files or {}
    return [Path(name).expanduser() for names in files.values() for name in names]


def load_target(target: str, recipe: Recipe, task: Task) -> Base:
    """Load the model to score: a base model with an adapter or a delta in it, or a model."""
    from sora_cli.adapter.directory import read_adapter
    from sora_cli.model.base import load_base
    from sora_cli.run.stored import check_classes, load_adapted

    place = Path(target).expanduser()
    folder, baseline = adapter_folder(place), baseline_folder(place)
    if folder is None and baseline is not None and (baseline / DELTA_FILE).is_file():
        from sora_cli.run.stored import load_delta

        return load_delta(baseline, recipe, task)
    if folder is None:
        source = target if baseline is None else str(baseline)
        block = recipe.model.model_copy(update={"path": source, "revision": None})
        base = load_base(block, task, precision=recipe.training.precision)
        if base.missing:
            raise SoraError(
                f"'{target}' holds no trained head: {first_few(base.missing)} are missing",
                hint="give an adapter directory, or a merged model",
            )
        check_classes("model", base.classes, task)
        return base
    return load_adapted(read_adapter(folder), recipe, task)[0]


def _records(task: Task, split: str, found: Predictions) -> list[dict[str, Any]]:
    return [
        {"split": split, "row": row, **record} for row, record in enumerate(task.readable(found))
    ]


def _write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    from sora_cli.core.atomic import write_text_atomic

    write_text_atomic(path, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records))
    say(f"{len(records):,} predictions in {path}")


def _show(target: str, scores: dict[str, dict[str, float]], *, as_json: bool) -> None:
    if as_json:
        emit(json.dumps(scores, indent=2))
        return
    names = list(next(iter(scores.values())))
    rows = [[split, *[f"{values[n]:.4f}" for n in names]] for split, values in scores.items()]
    emit_table(printable(target), ["split", *names], rows)
