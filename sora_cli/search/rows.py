"""The rows that choose and test a size, dealt from a recipe, and the drop that they can certify.

`sora auto` holds these rows out of the training split, in two parts: *screening* rows choose the
sizes to train, *test* rows test the trained sizes. The recipe's validation splits are then reported
and decide nothing. `sora prune` cuts a finished adapter by the rows that the recipe uses to choose
checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from datasets import Dataset

from sora_cli.adapter.trained_on import TrainedOn
from sora_cli.data.content import data_fingerprint
from sora_cli.data.repeats import count_inputs, groups_of, rows_in
from sora_cli.data.rows import Rows, load_rows
from sora_cli.model.base import Base
from sora_cli.recipe.auto import Basis
from sora_cli.recipe.recipe import Recipe
from sora_cli.run.encode import encode
from sora_cli.run.lineage import inherited
from sora_cli.run.prepare import Prepared, check_rows, load_task, raw_keys
from sora_cli.search.answers import read_answer_rows
from sora_cli.search.basis import BASES, basis_line, choose_basis
from sora_cli.search.fewest import check_number
from sora_cli.search.promise import Promise, promise_of
from sora_cli.search.row_set import POOL, SCREENING, TEST, TRAIN, RowSet, part_of
from sora_cli.search.screening import part_rows
from sora_cli.search.statistic import BoundMethod
from sora_cli.search.statistics import statistic_of
from sora_cli.search.test_rows import EncodedRows, TestRows
from sora_cli.tasks.base import Task
from sora_cli.tasks.encoded import Encoded
from sora_cli.tasks.row_scores import RowScores, answer_scores, asked_scores
from sora_cli.train.trainer import build_scorer

_FEW = 8  # rows that are scored to see if rows are right or wrong by the metric


def deciding_rows(
    recipe: Recipe,
    task: Task,
    rows: Rows,
    screening: int,
    test: int,
    inputs: int | None = None,
    before: TrainedOn | None = None,
) -> dict[str, TestRows]:
    """Return the screening and test rows of a run of `sora auto`, by part.

    Args:
        recipe: recipe of the run at full rank, with its `auto` block and the basis that is planned.
        task: task of the run, bound to its training rows.
        rows: of that run.
        screening, test: number of rows of each part, as planned.
        inputs: number of different inputs that screen, if it is known from a former search.
        before: what the run has begun with was trained on; None: what the recipe names.
    """
    block, promise = recipe.auto, promise_of(recipe)
    assert block is not None
    before = inherited(recipe) if before is None else before
    if promise.unlabelled:
        unseen = replace(unlabelled_rows(recipe, task), trained=before)
        unseen = unseen.unseen([training_rows(task, rows)])
        parts = unseen.parts(screening, test, block.seed)
        # which rows of the pool test is known once sizes were screened
        return {POOL if p == TEST and promise.basis == "asked" else p: parts[p] for p in parts}
    held = choosing_rows(task, screening / (screening + test), block.seed, inputs)
    return {name: replace(part, trained=before) for name, part in held.items()}


def training_rows(task: Task, rows: Rows) -> TestRows:
    """Return the training rows of a run, which must not test."""
    origin = rows.origin(rows.train)
    return TestRows(task, rows.train, origin, origin.split)


def unlabelled_rows(recipe: Recipe, task: Task) -> TestRows:
    """Return all rows without labels that an `auto` block names."""
    block = recipe.auto
    assert block is not None
    assert block.unlabelled is not None
    path = Path(block.unlabelled).expanduser()
    with recipe.placing("auto.unlabelled"):
        return read_answer_rows(
            recipe,
            path,
            trained=task,
            tolerance=block.tolerance,
            next_tokens=block.next_tokens,
            asked=block.ask is not None,
            by_prompt=recipe.data.repeats == "separate",
        )


def count_rows(recipe: Recipe) -> tuple[int, int]:
    """Return the number of rows in the training split, and of different inputs among them."""
    data = recipe.data.whole().model_copy(update={"max_train_rows": None})
    rows = load_task(recipe.model_copy(update={"data": data}))[1]
    if data.repeats == "separate":
        return len(rows.train), len(rows.train)
    keys = raw_keys(recipe, rows.train) if rows.groups is None else [rows.groups]
    return len(rows.train), count_inputs(keys)


def choosing_rows(
    task: Task, screening: float, seed: int, inputs: int | None = None
) -> dict[str, TestRows]:
    """Split the rows that a run holds out into screening and test rows, at random.

    Each part keeps the data set's order. `max_validation_rows` does not limit them. Rows with the
    same input go to one part, unless the recipe deals repeats by themselves.

    Args:
        task: task of the run, bound to its training rows.
        screening: share of the screening rows, or of their inputs; all others test.
        seed: seed of the split.
        inputs: number of screening inputs, in place of their share.
    """
    rows = load_rows(task.data.model_copy(update={"max_validation_rows": None}), task.raw_keys)
    check_rows(task, rows, [rows.select])
    groups = np.arange(len(rows.select))
    if task.data.repeats == "together":
        groups = groups_of(task.raw_keys(rows.select))
    number = int(groups.max()) + 1
    share = screening if inputs is None else inputs / number
    held = TestRows(task, rows.select, rows.origin(rows.select), rows.origin(rows.train).split)
    parts = part_rows(number, seed, screening=share)
    chosen = (held.take(np.sort(rows_in(groups, part))) for part in parts)
    return dict(zip((SCREENING, TEST), chosen, strict=True))


@dataclass(frozen=True)
class DecidingParts:
    """The rows that decide a search, encoded, and their numbers and digests.

    Attributes:
        screening: rows that choose the sizes.
        test: rows that test them; with asked labels, the pool from which they are drawn.
        sets: number and digest of the rows of every part.
    """

    screening: EncodedRows
    test: EncodedRows
    sets: dict[str, RowSet]


def deciding_parts(
    recipe: Recipe, task: Task, base: Base, rows: Rows, train: Encoded, held: Mapping[str, TestRows]
) -> DecidingParts:
    """Encode the rows that decide a search, and find those that test.

    Args:
        recipe: recipe of the run at full rank.
        task, base, rows, train: of that run.
        held: screening and test rows, by part.
    """
    assert recipe.auto is not None
    own, sets = held[SCREENING], row_sets(rows, held)
    screening = own.all_on(base)
    name = POOL if POOL in held else TEST
    if recipe.data.repeats == "separate":
        return DecidingParts(screening, held[name].all_on(base), sets)
    # the task that encoded each of the parts that test rows must not repeat
    screened = [(own.task, screening.rows)]
    test = held[name].distinct_on(base, [(task, train)], recipe.auto.seed, screened=screened)
    different = count_inputs(own.raw_keys())
    sets[SCREENING] = sets[SCREENING].model_copy(update={"inputs": different})
    sets[name] = test.row_set()
    return DecidingParts(screening, test, sets)


def row_sets(rows: Rows, held: Mapping[str, TestRows]) -> dict[str, RowSet]:
    """Return the number and digest of the rows of every part: training, held out and reported.

    Args:
        held: screening and test rows, by part.
    """
    sets = {TRAIN: _row_set(rows.origin(rows.train).split, rows.train)}
    sets |= {name: part.row_set() for name, part in held.items()}
    return {**sets, **{part_of(name): _row_set(name, part) for name, part in rows.report.items()}}


def _row_set(split: str, rows: Dataset) -> RowSet:
    return RowSet(split=split, rows=len(rows), digest=data_fingerprint(rows))


def method_by(recipe: Recipe, ready: Prepared, rows: int, promise: Promise) -> BoundMethod:
    """Return the method of the test, and what a number of rows can certify, before any training.

    Too few rows for any bound are an error.

    The untrained model scores a few rows, because only row scores tell if the metric's rows are
    right or wrong. This does not change a run: a trainer seeds all generators when it is made.

    Args:
        recipe: recipe of the run at full rank.
    """
    scores = _blank_scores(recipe, ready, promise)
    with recipe.placing("auto.rows"):
        check_number(statistic_of(scores), rows, promise.metric, recipe)
    return method_on(scores, rows, promise)


def _blank_scores(recipe: Recipe, ready: Prepared, promise: Promise) -> RowScores:
    """Return scores that tell the statistic of the test, of a few rows or of none."""
    if promise.basis == "asked":
        return asked_scores([])
    if promise.by_answers:
        return answer_scores([], rows_alone=ready.task.rows_alone)
    blank = ready.task.blank_scores(ready.select)
    if blank is not None:
        return blank
    few = ready.rows.select.select(range(min(_FEW, len(ready.rows.select))))
    encoded = encode(ready.task, ready.base, few, ready.rows.origin(ready.rows.select))
    return build_scorer(recipe, ready.task, ready.base).row_scores(encoded)


def method_on(scores: RowScores, rows: int, promise: Promise) -> BoundMethod:
    """Return the method of a test, by some scores: only their metric is used."""
    statistic = statistic_of(scores).about(promise)
    return statistic.method_on(rows, promise.confidence, rows_alone=scores.rows_alone)


def selection_rows(recipe: Recipe) -> TestRows:
    """Load and check the rows that a recipe uses to choose checkpoints."""
    task, rows = load_task(recipe)
    with recipe.placing():
        check_rows(task, rows, [rows.select])
    reported = [name for name, part in rows.report.items() if part is rows.select]
    split = reported[0] if reported else "selection"
    seen = (training_rows(task, rows),)
    return TestRows(task, rows.select, rows.origin(rows.select), split, seen=seen)


def rows_on_best_basis(
    promise: Promise, labelled: TestRows, pool: TestRows, basis: Basis | None
) -> tuple[TestRows, Promise, str]:
    """Return the rows that test a drop, the promise with its basis, and a line on the choice.

    The sizes of a finished adapter follow from its factors, so no row is needed to choose them.

    Args:
        pool: rows without labels, none of them labelled rows of the recipe.
        basis: basis that the user chose; None: the one that is planned to certify most.
    """
    parts: dict[Basis, TestRows] = {"labels": labelled, "answers": pool}
    wanted: Sequence[Basis] = BASES if basis is None else (basis,)
    rows = {name: len(parts[name]) for name in wanted}
    chosen = choose_basis(promise, rows)
    on = promise.model_copy(update={"basis": chosen})
    return parts[chosen], on, basis_line(chosen, promise, rows)
