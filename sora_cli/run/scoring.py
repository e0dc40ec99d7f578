"""Score an adapter, a run's result or a model on a recipe's rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset

from sora_cli.adapter.places import adapter_folder, baseline_folder
from sora_cli.adapter.reading import read_adapter
from sora_cli.adapter.row_recipe import UNKNOWN
from sora_cli.core.errors import SoraError
from sora_cli.core.out_of_memory import telling
from sora_cli.core.words import first_few
from sora_cli.model.base import Base, load_base
from sora_cli.model.files import DELTA_FILE
from sora_cli.recipe.recipe import Recipe
from sora_cli.run.encode import encode
from sora_cli.run.prepare import check_rows, load_task
from sora_cli.run.stored import check_classes, load_adapted, load_delta
from sora_cli.tasks.base import Task
from sora_cli.tasks.encoded import Predictions
from sora_cli.train.out_of_memory import FEWER_BITS
from sora_cli.train.trainer import build_trainer

_WITH_TEXTS = ("source", "question", "tokens", "image")
"""Keys of records that already show the row's input."""


@dataclass(frozen=True)
class Scored:
    """Scores of one split, and a record for each of its rows if requested.

    Attributes:
        notes: cautions about the base model, for the user.
    """

    split: str
    scores: dict[str, float]
    records: list[dict[str, Any]]
    notes: tuple[str, ...]


def score_target(
    target: str, recipe: Recipe, *, records: bool, on: str | None = None
) -> Iterator[Scored]:
    """Score an adapter, a run's result or a model on each of a recipe's reported splits.

    Args:
        records: also return each row's prediction.
        on: the base model; see `load_target`.
    """
    task, rows = load_task(recipe)
    with recipe.placing():
        check_rows(task, rows, rows.report.values())
    with telling(lambda: "load model", hint=FEWER_BITS):
        base = load_target(target, recipe, task, on=on)
    metrics = [*task.metric_names, *(task.options.TEXT_METRICS if records else ())]
    trainer = build_trainer(recipe, task, base)
    with trainer.reader.kept():
        for split, part in rows.report.items():
            with recipe.placing():
                encoded = encode(task, base, part, rows.origin(part))
            predictions = trainer.predictions_of(encoded, metrics)
            row_records = _records(task, split, part, predictions) if records else []
            yield Scored(split, task.scores(predictions), row_records, base.notes)


def load_target(target: str, recipe: Recipe, task: Task, *, on: str | None = None) -> Base:
    """Load the model to score: a base model with an adapter or a delta, or a whole model.

    A model whose head was not trained is refused.

    Args:
        on: base model of an adapter or a delta; None: the base model named in its files.
    """
    place = Path(target).expanduser()
    folder, baseline = adapter_folder(place), baseline_folder(place)
    if folder is None and task.reference is not None and recipe.model.path == UNKNOWN:
        raise SoraError(
            f"{target} is a whole model: the base model that its rewards are measured against is "
            "not known here",
            hint="name its run or adapter; sora eval and sora verify A B also take --recipe RECIPE",
        )
    if folder is None and baseline is not None and (baseline / DELTA_FILE).is_file():
        return load_delta(baseline, recipe, task, on=on)
    if folder is None:
        source = target if baseline is None else str(baseline)
        block = recipe.model.model_copy(
            update={"path": source, "revision": None, "new_tokens": []}  # it is scored as it is
        )
        base = load_base(block, task, precision=recipe.training.precision)
        if base.missing:
            raise SoraError(
                f"'{target}' holds no trained head: {first_few(base.missing)} are missing",
                hint="give an adapter directory, or a merged model",
            )
        check_classes("model", base.classes, task)
        return base
    adapter = read_adapter(folder, base=on)
    base = load_adapted(adapter, recipe, task, on=on)[0]
    random = [name for name in base.missing if name not in adapter.head]
    if random:
        raise SoraError(
            f"neither '{target}' nor its base model holds a trained head: {first_few(random)} are "
            "missing",
            where=f"the base model is {base.resolved}",
            hint="is it the right one? --base MODEL; a head that was not stored is lost",
        )
    return base


def _records(
    task: Task, split: str, rows: Dataset, predictions: Predictions
) -> list[dict[str, Any]]:
    """Return a record for each row: its split, index, texts and prediction."""
    columns = _text_columns(task, rows)
    records = []
    for row, (raw, record) in enumerate(zip(rows, task.readable(predictions), strict=True)):
        shows_input = not columns or not record.keys().isdisjoint(_WITH_TEXTS)
        texts = {} if shows_input else {"input": {column: raw[column] for column in columns}}
        records.append({"split": split, "row": row, **texts, **record})
    return records


def _text_columns(task: Task, rows: Dataset) -> list[str]:
    """Return the input columns that hold plain text."""
    kinds = {name: getattr(rows.features[name], "dtype", None) for name in rows.column_names}
    return [name for name in task.input_columns if kinds.get(name) in ("string", "large_string")]
