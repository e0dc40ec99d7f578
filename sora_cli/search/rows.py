"""The rows that choose a size, and the smallest drop that they can certify.

`sora auto` holds these rows out of the training split, in two parts: *screening* rows choose the
sizes to train, *test* rows test the trained sizes. The recipe's validation splits are then reported
and decide nothing. `sora prune` cuts a finished adapter by the rows that the recipe uses to choose
checkpoints.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import Dataset

from sora_cli.core.console import say_notes
from sora_cli.data.content import data_fingerprint
from sora_cli.data.repeats import count_inputs, groups_of, rows_in
from sora_cli.data.rows import Rows, load_rows
from sora_cli.model.base import Base
from sora_cli.recipe.auto import Basis
from sora_cli.recipe.recipe import Recipe
from sora_cli.run.encode import encode
from sora_cli.run.prepare import Prepared, check_rows, load_task, raw_keys
from sora_cli.search.answers import AnswerRows, read_answer_rows
from sora_cli.search.basis import BASES, basis_line, choose_basis
from sora_cli.search.certifiable import Certifiable
from sora_cli.search.parts import EncodedPart, Held, Part, counted_part
from sora_cli.search.promise import Promise, promise_of
from sora_cli.search.row_set import SCREENING, TEST, TRAIN, RowSet, part_of
from sora_cli.search.screening import part_rows
from sora_cli.tasks.base import Encoded, Task
from sora_cli.tasks.row_scores import RowScores, answer_scores
from sora_cli.train.trainer import build_scorer, build_trainer

_SEED = 0  # of the draw among repeated test rows, where no recipe's `auto` block has one
_FEW = 8  # rows that are scored to see if rows are right or wrong by the metric


def deciding_rows(
    recipe: Recipe,
    task: Task,
    train: Dataset,
    screening: int,
    test: int,
    inputs: int | None = None,
) -> dict[str, Held]:
    """Return the screening and test rows of a run of `sora auto`, by part.

    Args:
        recipe: recipe of the run at full rank, with its `auto` block and the basis that is planned.
        task: task of the run, bound to its training rows.
        train: training rows.
        screening, test: number of rows of each part, as planned.
        inputs: number of different inputs that screen, if it is known from a former search.
    """
    block, promise = recipe.auto, promise_of(recipe)
    assert block is not None
    if promise.by_answers:
        unseen = unlabelled_rows(recipe, task).unseen([train])
        return {**unseen.parts(screening, test, block.seed)}
    return {**choosing_rows(task, screening / (screening + test), block.seed, inputs)}


def unlabelled_rows(recipe: Recipe, task: Task) -> AnswerRows:
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
) -> dict[str, Part]:
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
    chosen = (np.sort(rows_in(groups, part)) for part in part_rows(number, seed, screening=share))
    origin = rows.origin(rows.select)
    parts = (Part(rows.select.select(own), origin.of(own.tolist())) for own in chosen)
    return dict(zip((SCREENING, TEST), parts, strict=True))


@dataclass(frozen=True)
class DecidingParts:
    """The rows that decide a search, encoded, and their numbers and digests.

    Attributes:
        screening: rows that choose the sizes.
        test: rows that test them.
        sets: number and digest of the rows of every part.
    """

    screening: EncodedPart
    test: EncodedPart
    sets: dict[str, RowSet]


def deciding_parts(
    recipe: Recipe, task: Task, base: Base, rows: Rows, train: Encoded, held: Mapping[str, Held]
) -> DecidingParts:
    """Encode the rows that decide a search, and find those that test.

    Args:
        recipe: recipe of the run at full rank.
        task, base, rows, train: of that run.
        held: screening and test rows, by part.
    """
    assert recipe.auto is not None
    screening = EncodedPart(held[SCREENING], held[SCREENING].encoded(task, base))
    own = held[SCREENING]
    sets = row_sets(rows, held)
    if recipe.data.repeats == "separate":
        test = EncodedPart(held[TEST], held[TEST].encoded(task, base))
        return DecidingParts(screening, test, sets)
    # the task that encoded each of the parts that test rows must not repeat
    seen = [(task, train), (own.task if isinstance(own, AnswerRows) else task, screening.rows)]
    test = counted_part(held[TEST], task, base, seen, recipe.auto.seed)
    different = count_inputs(own.raw_keys(task))
    sets[SCREENING] = sets[SCREENING].model_copy(update={"inputs": different})
    sets[TEST] = test.row_set(sets[TEST].split).model_copy(update={"classes": test.classes(task)})
    return DecidingParts(screening, test, sets)


def row_sets(rows: Rows, held: Mapping[str, Held]) -> dict[str, RowSet]:
    """Return the number and digest of the rows of every part: training, held out and reported.

    Args:
        held: screening and test rows, by part.
    """
    split = rows.origin(rows.train).split
    sets = {TRAIN: _row_set(split, rows.train)}
    sets |= {name: part.row_set(split) for name, part in held.items()}
    return {**sets, **{part_of(name): _row_set(name, part) for name, part in rows.report.items()}}


def _row_set(split: str, rows: Dataset) -> RowSet:
    return RowSet(split=split, rows=len(rows), digest=data_fingerprint(rows))


def certifiable_by(recipe: Recipe, ready: Prepared, rows: int, promise: Promise) -> Certifiable:
    """Return the smallest drop that a number of test rows can certify, before any training.

    The untrained model scores a few rows, because only row scores tell if the metric's rows are
    right or wrong. This does not change a run: a trainer seeds all generators when it is made.

    Args:
        recipe: recipe of the run at full rank.
    """
    if promise.by_answers:
        some = answer_scores([], rows_alone=recipe.task.options.ROWS_ALONE)
        return Certifiable.on(rows, promise.confidence, some)
    few = ready.rows.select.select(range(min(_FEW, len(ready.rows.select))))
    encoded = encode(ready.task, ready.base, few, ready.rows.origin(ready.rows.select))
    with tempfile.TemporaryDirectory() as scratch:  # a trainer makes its directory
        scores = build_scorer(recipe, ready.task, ready.base, Path(scratch)).row_scores(encoded)
    return Certifiable.on(rows, promise.confidence, scores)


class _ToldOnce:
    """Prints the notes on the rows that do not test: once, however many models are scored."""

    _told = False

    def _tell(self, notes: Iterator[str]) -> None:
        if not self._told:
            say_notes(notes)
        self._told = True


class UnlabelledRows(_ToldOnce):
    """Rows without labels that test the sizes of a finished adapter.

    Args:
        seen: training rows and other labelled rows that must not test, as far as they are known.

    Attributes:
        task: the family, bound to these rows.
        split: name of these rows.
    """

    def __init__(self, recipe: Recipe, rows: AnswerRows, seen: Sequence[Part] = ()) -> None:
        self._recipe, self._rows = recipe, rows
        self._seen = [Part(rows.like(part.rows), part.origin) for part in seen]
        self.task, self.split = rows.task, f"{len(rows):,} unlabelled rows"

    def __len__(self) -> int:
        return len(self._rows)

    def scored_by(self, base: Base, scratch: Path) -> Callable[[], RowScores]:
        """Return a function that answers these rows with the model as it is then."""
        seen = [(self.task, part.encoded(self.task, base)) for part in self._seen]
        rows = counted_part(self._rows, self.task, base, seen, _SEED)
        self.split = f"{len(rows):,} unlabelled rows"
        trainer = build_scorer(self._recipe, self.task, base, scratch)
        self._tell(rows.notes("rows without labels"))
        return lambda: rows.scores(trainer)


class SelectionRows(_ToldOnce):
    """The rows that a recipe uses to choose checkpoints, loaded and checked.

    Attributes:
        split: name of these rows.
        seen: the training rows and these rows.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self.task, self._rows = load_task(recipe)
        with recipe.placing():
            check_rows(self.task, self._rows, [self._rows.select])
        rows = self._rows
        reported = [name for name, part in rows.report.items() if part is rows.select]
        self.split = reported[0] if reported else "selection"
        self.seen = [Part(part, rows.origin(part)) for part in (rows.train, rows.select)]

    def __len__(self) -> int:
        return len(self._rows.select)

    def scored_by(self, base: Base, scratch: Path) -> Callable[[], RowScores]:
        """Return a function that scores the model on these rows by the recipe's main metric.

        It scores the model in its state at the time of the call.
        """
        train, chosen = self.seen
        with self._recipe.placing():
            seen = [(self.task, train.encoded(self.task, base))]
            rows = counted_part(chosen, self.task, base, seen, _SEED)
        trainer = build_trainer(self._recipe, self.task, base, scratch)
        self._tell(rows.notes(f"rows of {self.split}"))
        return lambda: rows.scores(trainer)


ChoosingRows = SelectionRows | UnlabelledRows
"""The rows on which the sizes of a finished adapter are compared."""


def rows_on_best_basis(
    recipe: Recipe,
    promise: Promise,
    labelled: SelectionRows,
    pool: AnswerRows,
    basis: Basis | None,
) -> tuple[ChoosingRows, Promise, str]:
    """Return the rows that test a drop, the promise with its basis, and a line on the choice.

    The sizes of a finished adapter follow from its factors, so no row is needed to choose them.

    Args:
        pool: rows without labels, none of them in `labelled.seen`.
        basis: basis that the user chose; None: the one that is planned to certify most.
    """
    parts: dict[Basis, ChoosingRows] = {
        "labels": labelled,
        "answers": UnlabelledRows(recipe, pool, labelled.seen),
    }
    wanted: Sequence[Basis] = BASES if basis is None else (basis,)
    rows = {name: len(parts[name]) for name in wanted}
    chosen = choose_basis(promise, rows)
    on = promise.model_copy(update={"basis": chosen})
    return parts[chosen], on, basis_line(chosen, promise, rows)
