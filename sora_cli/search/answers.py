"""Rows without labels, on which the answers of two models are compared.

A label in the file is ignored: another value stands in for it, as in `sora predict`. Next-token
choices are an exception: the given answers are read as the texts before each token, so they belong
to the input. Rows whose raw input is a training row's are left out, and so are repeated ones
(`AnswerRows.unseen`): then a plan knows how many there are. The rows that the model reads alike are
found once they are encoded (`search.parts`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from sora_cli.core.errors import SoraError
from sora_cli.core.words import listed, shown_path
from sora_cli.data.content import data_fingerprint
from sora_cli.data.loading import load_file
from sora_cli.data.overlap import input_hashes
from sora_cli.data.places import Origin, RowError, locating
from sora_cli.data.source import check_file
from sora_cli.model.base import Base
from sora_cli.recipe.recipe import Recipe
from sora_cli.run.encode import encode
from sora_cli.search.row_set import SCREENING, TEST, RowSet
from sora_cli.tasks import create_task
from sora_cli.tasks.base import Encoded, Task
from sora_cli.tasks.language import IGNORED, Writing, token_choices
from sora_cli.tasks.row_scores import RowScores, answer_scores
from sora_cli.tasks.texts import require_column
from sora_cli.train.trainer import AdapterTrainer

UNLABELLED = "unlabelled"
"""Name of these rows where a certificate names the split of its rows."""


@dataclass(frozen=True)
class AnswerRows:
    """Rows without labels, ready to be answered.

    Attributes:
        task: the family, bound to these rows.
        blank: the family, for stand-ins in the place of labels.
        rows: the rows, with stand-ins for their labels, or with their own for `next_tokens`.
        inputs: (rows,) a hash of each row's input, which `columns` hold.
        with_answers: a given answer belongs to the input, as for `next_tokens`.
        file: name of the file, for messages.
        tolerance: the largest distance of two numbers that count as the same answer; None: answers
            are no numbers.
        next_tokens: the next-token choices on the rows' own texts are compared.
        notes: remarks for the user: rows that were left out, and labels that are ignored.
    """

    task: Task
    blank: Task
    rows: Dataset
    origin: Origin
    inputs: np.ndarray
    columns: Sequence[str]
    file: str
    tolerance: float | None = None
    next_tokens: bool = False
    with_answers: bool = False
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def raw_keys(self, task: Task) -> Sequence[np.ndarray]:
        """Return the keys of the raw rows."""
        del task
        return [self.inputs]

    def take(self, rows: np.ndarray) -> AnswerRows:
        """Return some of the rows, by their numbers."""
        chosen = rows.tolist()
        part, origin = self.rows.select(chosen), self.origin.of(chosen)
        return replace(self, rows=part, origin=origin, inputs=self.inputs[rows])

    def like(self, rows: Dataset) -> Dataset:
        """Return labelled rows in the form of these, so that equal inputs become equal rows."""
        alike = rows.select_columns(list(self.columns))
        # a chat holds its own answer: without the stand-in no such row would match
        return alike if self.with_answers else self.blank.stand_in(alike)

    def unseen(self, seen: Sequence[Dataset]) -> AnswerRows:
        """Return the rows with a new input, each input once, with notes on the rows left out.

        Args:
            seen: training rows and other labelled rows, as far as they are known.
        """
        known = np.zeros(len(self), dtype=bool)
        for part in seen:
            known |= np.isin(self.inputs, input_hashes(self.like(part), self.columns))
        repeated = ~known
        repeated[np.unique(self.inputs, return_index=True)[1]] = False
        notes = list(self.notes)
        seen_as = "are training rows" if len(seen) < 2 else "are labelled rows of the recipe"
        reasons = {seen_as: known.sum(), "repeat another row": repeated.sum()}
        for reason, number in reasons.items():
            if number:
                rows_of = f"{number:,} of {len(self):,} rows of {self.file}"
                notes.append(f"{rows_of} {reason}: they are left out")
        rows = np.flatnonzero(~known & ~repeated)
        if len(rows) < 2:
            left_out = (f"{number:,} {reason}" for reason, number in reasons.items() if number)
            can = f"{len(rows)} of {len(self):,} rows can test"
            raise SoraError(
                f"{self.file}: {can}, and at least 2 are needed",
                where=", ".join(left_out),
                hint="give a file with other rows: --unlabelled FILE",
            )
        return replace(self.take(rows), notes=tuple(notes))

    def parts(self, screening: int, test: int, seed: int) -> dict[str, AnswerRows]:
        """Return screening and test rows, drawn at random; the rest is left out."""
        order = np.random.default_rng(seed).permutation(len(self))
        return {
            SCREENING: self.take(np.sort(order[:screening])),
            TEST: self.take(np.sort(order[screening : screening + test])),
        }

    def encoded(self, task: Task, base: Base) -> Encoded:
        """Return the rows encoded for a model; the run's task is not that of these rows."""
        del task
        self.task.check_model(base.model, base.processor)
        encoded = encode(self.task, base, self.rows, self.origin, may_lack=True)
        if self.next_tokens:
            with locating(self.origin):
                _check_counted(encoded)
        return encoded

    def scores(self, trainer: AdapterTrainer, encoded: Encoded) -> RowScores:
        """Return the answers of the trainer's model as it is now; on all processes the same.

        Args:
            encoded: the rows, as `encoded` returns them.
        """
        answers: Sequence[Any]
        with locating(self.origin):
            if self.next_tokens and isinstance(self.task, Writing):
                answers = token_choices(trainer.outputs_of(encoded, self.task.next_tokens))
            else:
                answers = self.task.compared_answers(trainer.answers_of(encoded))
        return answer_scores(answers, self.tolerance, rows_alone=self.task.options.ROWS_ALONE)

    def row_set(self, split: str) -> RowSet:
        """Return the number of the rows, and the digest of the columns that are read."""
        del split
        inputs = self.rows.select_columns(_read_columns(self.task, self.next_tokens))
        return RowSet(split=UNLABELLED, rows=len(self), digest=data_fingerprint(inputs))


def read_answer_rows(
    recipe: Recipe,
    path: Path,
    *,
    trained: Task | None = None,
    columns: Sequence[str] = (),
    tolerance: float | None = None,
    next_tokens: bool = False,
    by_prompt: bool = False,
) -> AnswerRows:
    """Read a file of rows without labels; `AnswerRows.unseen` leaves out its training rows.

    Args:
        recipe: recipe whose task and data blocks say how rows become inputs.
        path: a csv, tsv, json, jsonl or parquet file.
        trained: the task as bound to training rows, which knows the classes; None: the recipe's
            data block names them.
        columns: the inputs that the model was trained on, if it comes without training rows and
            they are known: other columns are left out, if the file has all of these.
        tolerance, next_tokens: see `AnswerRows`.
        by_prompt: also with `next_tokens`, rows with the same prompt are the same input, as in
            searches of versions without `data.repeats`.
    """
    check_file(path)
    part = load_file(path)
    names = None if trained is None else trained.label_names
    named = {} if names is None else {"label_names": names}
    data = recipe.data.model_copy(update=named)
    task = blank = create_task(recipe.task, data)
    _check_comparable(task, tolerance, next_tokens=next_tokens)
    with recipe.placing(), locating(part.origin):
        given, there = part.rows, part.rows.column_names
        if trained is not None:
            for column in trained.input_columns:
                require_column(column, there)
            columns = trained.input_columns
        if columns and set(columns) <= set(there):
            given = given.select_columns(list(columns))
        rows = stood_in = blank.stand_in(given)
        try:
            blank.bind(stood_in)
        except RowError as error:  # the placeholder for labels is no column of the file
            error.renamed(listed(stood_in.column_names), listed(there))
            raise
        if next_tokens:
            # another task: one that has made stand-ins takes a plain text for a prompt
            rows, task = _with_answers(part.rows, blank, trained), create_task(recipe.task, data)
            task.bind(rows)
        task.check(rows)
    name, label = shown_path(path), task.label_column
    compared = "next-token choices on" if next_tokens else "answers to"
    read = _read_columns(task, next_tokens)
    plural, quoted = "s" if len(read) > 1 else "", [f"'{column}'" for column in read]
    notes = [*part.origin.notes]
    notes.append(f"{name}: {compared} the column{plural} {listed(quoted)} are compared")
    if label in there and not next_tokens:
        notes.append(f"{name}: the column '{label}' is ignored: no label is needed")
    with_answers = next_tokens and not by_prompt
    keys = read if with_answers else blank.input_columns
    return AnswerRows(
        task=task,
        blank=blank,
        rows=rows,
        origin=part.origin,
        inputs=input_hashes(rows if with_answers else stood_in, keys),
        columns=keys,
        file=name,
        tolerance=tolerance,
        next_tokens=next_tokens,
        with_answers=with_answers,
        notes=tuple(notes),
    )


def _with_answers(rows: Dataset, blank: Task, trained: Task | None) -> Dataset:
    """Return the columns of rows that a task reads, and their given answers.

    Args:
        blank: the task, bound to these rows with stand-ins for their answers.
        trained: see `read_answer_rows`.
    """
    assert isinstance(blank, Writing)
    columns, label = rows.column_names, blank.label_column
    if label is None:  # a chat or a plain text holds its answers
        return rows.select_columns(list(blank.input_columns))
    if trained is None or trained.label_column is None:
        label = blank.part_column(columns, blank.answer_part)
    else:
        label = trained.label_column
    require_column(label, columns, hint=f"--next-tokens reads the answers, too: add '{label}'")
    return rows.select_columns([*blank.input_columns, label])


def _read_columns(task: Task, next_tokens: bool) -> list[str]:
    """Return the columns that a task reads; for next-token choices the answers, too."""
    answers = task.label_column if next_tokens else None
    return [*task.input_columns, *([] if answers is None else [answers])]


def _check_counted(encoded: Encoded) -> None:
    """Check that each row has a token that the loss counts: else any two models agree on it."""
    counted = [set(labels) != {IGNORED} for labels in encoded.dataset["labels"][:]]
    if not all(counted):
        raise RowError("there is no next token to compare", counted.index(False))


def _check_comparable(task: Task, tolerance: float | None, *, next_tokens: bool) -> None:
    """Check that a task has these answers, and that numbers, and only these, have a tolerance."""
    if next_tokens and not isinstance(task, Writing):
        raise SoraError(
            f"--next-tokens is for models that write texts, and task {task.name} writes none",
            hint="leave out --next-tokens: its answers are compared",
            key="auto.next_tokens",
        )
    if task.answers_numbers and tolerance is None:
        raise SoraError(
            f"task {task.name} answers with numbers: two models never give the same one",
            hint="--tolerance 0.1: numbers that are no further apart count as the same",
            key="auto.max_differ",
        )
    if tolerance is not None and not task.answers_numbers:
        raise SoraError(
            f"--tolerance is for answers that are numbers, and task {task.name} gives none",
            hint="leave out --tolerance",
            key="auto.tolerance",
        )
