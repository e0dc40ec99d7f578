"""Checks of the contract of a task family, for anybody's tests.

Each check takes a recipe, a small run of the family with a tiny model, and raises `AssertionError`
with the fault. `CHECKS` holds them all.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets

from sora_cli.core.errors import SoraError
from sora_cli.data.places import RowError
from sora_cli.model.base import load_base
from sora_cli.recipe.recipe import Recipe
from sora_cli.run.encode import encode
from sora_cli.run.prepare import check_rows, load_task
from sora_cli.tasks.base import Task
from sora_cli.tasks.encoded import Encoded
from sora_cli.train.trainer import AdapterTrainer, build_scorer

_ROWS, _BAD = 6, 2
Reference = Callable[[Sequence[Sequence[Any]], Dataset], Mapping[str, float]]
_CLOSE = 1e-4
"""Relative difference of losses in float32 whose sums are in another order."""


def micro_batches_add_up(recipe: Recipe) -> None:
    """Check that the loss of a batch is the mean over the items of its two halves.

    A family that compares the rows of a micro-batch says so (`LOSS_COMPARES`), and is not checked.
    """
    task, trainer, rows = _loaded(recipe, training=True)
    if task.options.LOSS_COMPARES == "micro-batch":
        return
    half = len(rows.lengths) // 2
    (whole, items), (mean, of_halves) = (
        _loss(task, trainer, rows, parts)
        for parts in ([range(2 * half)], [range(half), range(half, 2 * half)])
    )
    assert items == of_halves, f"a batch has {items} items, its halves {of_halves}: loss_items"
    assert _close(whole, mean), f"a batch has the loss {whole:g}, its halves {mean:g}"


def the_loss_is_that_of_training(recipe: Recipe) -> None:
    """Check that `loss` of a split is the loss that training has on these rows."""
    task, trainer, rows = _loaded(recipe)
    if task.options.LOSS_COMPARES == "micro-batch":
        return
    scored = task.loss(trainer.predictions_of(rows, []))
    task, trainer, rows = _loaded(recipe, training=True)
    trained, _ = _loss(task, trainer, rows, [range(len(rows.lengths))])
    assert _close(scored, trained), f"loss is {scored:g} of a split, {trained:g} in training"


def rows_score_as_the_split(recipe: Recipe) -> None:
    """Check that the main metric by row gives the metric of the split."""
    task, trainer, rows = _loaded(recipe)
    predictions = trainer.predictions_of(rows, [task.best])
    metric = task.metrics(predictions)[task.best]
    try:
        scores = task.row_scores(predictions)
    except SoraError:  # it compares all rows with each other, and says so
        return
    same = np.isclose(scores.value, metric, rtol=1e-6, atol=1e-9, equal_nan=True)
    assert same, f"{task.best} is {metric:g} of a split, {scores.value:g} by its rows"


def a_broken_model_scores_nan(recipe: Recipe) -> None:
    """Check that outputs that are not finite have no score, in the form of a sound model's.

    Two models are compared by one formula, and NaN compares as better with nothing.
    """
    task, trainer, rows = _loaded(recipe)
    predictions = trainer.predictions_of(rows, [task.best])
    try:
        sound = task.row_scores(predictions)
    except SoraError:  # it compares all rows with each other, and says so
        return
    outputs = np.array(predictions.outputs)
    outputs[-1] = np.nan
    broken = task.row_scores(replace(predictions, outputs=outputs))
    assert np.isnan(broken.value), f"{task.best} is {broken.value:g} of outputs with NaN"
    forms = [(one.formula, one.parts.shape) for one in (sound, broken)]
    assert forms[0] == forms[1], f"outputs with NaN have other scores by row: {forms}"


def answers_follow_their_rows(recipe: Recipe) -> None:
    """Check that each row has an answer in each column, the same one in any order of the rows."""
    answers = []
    for turned in (False, True):
        task, trainer, rows = _loaded(recipe, turned=turned)
        predictions = trainer.answers_of(rows)
        columns = task.answer_columns(predictions)
        names = task.answered_by
        assert len(columns) == len(names), f"{len(columns)} columns of answers for {names}"
        lengths = {len(column) for column in columns}
        assert lengths == {_ROWS}, f"{_ROWS} rows have {lengths} answers"
        alone = task.rows_alone
        answers.append(list(task.compared_answers(predictions)))
    if alone:
        first, second = answers[0], answers[1][::-1]
        assert _alike(first, second), f"in another order rows have other answers: {first}, {second}"


def a_missing_column_is_named(recipe: Recipe) -> None:
    """Check that rows without a column of the input are refused before a model is loaded."""
    task, rows = load_task(recipe)
    for column in task.input_columns:
        told = None
        try:
            task.check(rows.select.remove_columns([column]))
        except RowError as error:
            told = str(error)
        assert told is not None, f"check takes rows without the column '{column}'"
        assert column in told, f"the column '{column}' is missing, but not named: {told}"


def a_bad_row_has_its_place(recipe: Recipe) -> None:
    """Check that a row without a value in a column of the input is refused by its number."""
    task, rows = load_task(recipe)
    for column in task.input_columns:
        part, bad = rows.select, {**rows.select[_BAD], column: None}
        empty = Dataset.from_list([bad], features=part.features)
        before, after = part.select(range(_BAD)), part.select(range(_BAD + 1, len(part)))
        broken = concatenate_datasets([before, empty, after])
        told: RowError | None = None
        try:
            task.check(broken)
        except RowError as error:
            told = error
        assert told is not None, f"check takes row {_BAD}, which has nothing in '{column}'"
        assert told.row == _BAD, f"'{column}' is empty in row {_BAD}; told: row {told.row}"


def check_scores(recipe: Recipe, reference: Reference) -> None:
    """Check that the recipe's metrics equal those of a reference.

    Args:
        reference: columns of answers, and the raw rows -> the metrics by name; further ones are
            ignored.
    """
    task, trainer, rows = _loaded(recipe, whole=True)
    found = task.metrics(trainer.predictions_of(rows, task.metric_names))
    answers = task.answer_columns(trainer.answers_of(rows))
    wanted = reference(answers, load_task(recipe)[1].select)
    for name in found.keys() & wanted.keys():
        same = np.isclose(found[name], wanted[name], rtol=1e-6, atol=1e-9, equal_nan=True)
        assert same, f"{name} is {found[name]:g}, and {wanted[name]:g} by the reference"
    assert found.keys() & wanted.keys(), f"the reference has none of {sorted(found)}"


CHECKS = (
    micro_batches_add_up,
    the_loss_is_that_of_training,
    rows_score_as_the_split,
    a_broken_model_scores_nan,
    answers_follow_their_rows,
    a_missing_column_is_named,
    a_bad_row_has_its_place,
)


def _loaded(
    recipe: Recipe, *, turned: bool = False, whole: bool = False, training: bool = False
) -> tuple[Task, AdapterTrainer, Encoded]:
    """Load a recipe's model and its first rows to score, without dropout.

    Args:
        whole: all rows to score.
        training: these rows as they are trained on.
    """
    task, rows = load_task(recipe)
    check_rows(task, rows, (rows.train, rows.select))
    numbers = [*range(len(rows.select) if whole else _ROWS)][:: -1 if turned else 1]
    torch.manual_seed(0)  # a new head is drawn
    base = load_base(recipe.model, task, dropout=0.0)
    origin = rows.origin(rows.select).of(numbers)
    encoded = encode(task, base, rows.select.select(numbers), origin, training=training)
    trainer = build_scorer(recipe, task, base)
    if task.reference is not None:
        encoded = task.with_reference(encoded, task.reference.outputs(encoded, trainer))
    return task, trainer, encoded


def _loss(
    task: Task, trainer: AdapterTrainer, rows: Encoded, parts: Sequence[Sequence[int]]
) -> tuple[float, int]:
    """Return the loss of a step of micro-batches, without dropout, and its number of items."""
    batches = [trainer.data_collator([rows.dataset[i] for i in part]) for part in parts]
    trainer.model.eval()
    with torch.no_grad():
        made = task.before_step(trainer.model, batches)
        losses = [float(task.batch_loss(trainer.model, batch)[0]) for batch in made]
    items = [task.loss_items(batch) for batch in batches]
    return sum(map(operator.mul, losses, items)) / sum(items), sum(items)


def _close(first: float, second: float) -> bool:
    return bool(np.isclose(first, second, rtol=_CLOSE, atol=1e-7, equal_nan=True))


def _alike(first: Sequence[Any], second: Sequence[Any]) -> bool:
    """Return true if answers are equal, numbers but for rounding."""
    if first and isinstance(first[0], float):
        return bool(np.allclose(first, second, rtol=1e-3, atol=1e-5))
    return list(first) == list(second)
