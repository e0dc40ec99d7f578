"""Rows without labels, on which the answers of two models are compared.

A label in the file is ignored: another value stands in for it, as in `sora predict`. Rows whose
input is a training row's are left out, and so are repeated inputs (`AnswerRows.unseen`), so that no
test row has been seen in training or screening.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from datasets import Dataset

from sora_cli.core.errors import SoraError
from sora_cli.core.words import listed, shown_path
from sora_cli.data.content import data_fingerprint
from sora_cli.data.loading import load_file
from sora_cli.data.overlap import input_hashes
from sora_cli.data.places import Origin, locating
from sora_cli.data.source import check_file
from sora_cli.model.base import Base
from sora_cli.recipe.recipe import Recipe
from sora_cli.run.encode import encode
from sora_cli.search.certificate import SCREENING, TEST, RowSet
from sora_cli.tasks import create_task
from sora_cli.tasks.base import Encoded, Task
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
        rows: the rows, with stand-ins for their labels.
        inputs: (rows,) a hash of each row's input.
        file: name of the file, for messages.
        tolerance: the largest distance of two numbers that count as the same answer; None: answers
            are no numbers.
        notes: remarks for the user: rows that were left out, and labels that are ignored.
    """

    task: Task
    rows: Dataset
    origin: Origin
    inputs: np.ndarray
    file: str
    tolerance: float | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, rows: np.ndarray) -> AnswerRows:
        """Return some of the rows, by their numbers."""
        chosen = rows.tolist()
        part, origin = self.rows.select(chosen), self.origin.of(chosen)
        return replace(self, rows=part, origin=origin, inputs=self.inputs[rows])

    def unseen(self, seen: Sequence[Dataset]) -> AnswerRows:
        """Return the rows with a new input, each input once, with notes on the rows left out.

        Args:
            seen: training rows and other labelled rows, as far as they are known.
        """
        columns, known = list(self.task.input_columns), np.zeros(len(self), dtype=bool)
        for part in seen:
            # a chat's own answer is among its inputs: without the stand-in no such row would match
            alike = self.task.stand_in(part.select_columns(columns))
            known |= np.isin(self.inputs, input_hashes(alike, columns))
        repeated = ~known
        repeated[np.unique(self.inputs, return_index=True)[1]] = False
        notes = list(self.notes)
        seen_as = "are training rows" if len(seen) < 2 else "are labelled rows of the recipe"
        for left_out, reason in ((known, seen_as), (repeated, "repeat another row")):
            if left_out.any():
                number = f"{left_out.sum():,} of {len(self):,} rows of {self.file}"
                notes.append(f"{number} {reason}: they are left out")
        rows = np.flatnonzero(~known & ~repeated)
        if len(rows) < 2:
            raise SoraError(f"{self.file} holds no two rows that training has not seen")
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
        return encode(self.task, base, self.rows, self.origin, may_lack=True)

    def scores(self, trainer: AdapterTrainer, encoded: Encoded) -> RowScores:
        """Return the answers of the trainer's model as it is now; on all processes the same.

        Args:
            encoded: the rows, as `encoded` returns them.
        """
        with locating(self.origin):
            answers = self.task.compared_answers(trainer.answers_of(encoded))
        return answer_scores(answers, self.tolerance, rows_alone=self.task.options.ROWS_ALONE)

    def row_set(self, split: str) -> RowSet:
        """Return the number of the rows, and the digest of their inputs."""
        del split
        inputs = self.rows.select_columns(list(self.task.input_columns))
        return RowSet(split=UNLABELLED, rows=len(self), digest=data_fingerprint(inputs))


def read_answer_rows(
    recipe: Recipe,
    path: Path,
    *,
    trained: Task | None = None,
    columns: Sequence[str] = (),
    tolerance: float | None = None,
) -> AnswerRows:
    """Read a file of rows without labels, among them those that training may have seen.

    Args:
        recipe: recipe whose task and data blocks say how rows become inputs.
        path: a csv, tsv, json, jsonl or parquet file.
        trained: the task as bound to training rows, which knows the classes; None: the recipe's
            data block names them.
        columns: the inputs that the model was trained on, if it comes without training rows and
            they are known: other columns are left out, if the file has all of these.
        tolerance: see `AnswerRows`.
    """
    check_file(path)
    part = load_file(path)
    names = None if trained is None else trained.label_names
    named = {} if names is None else {"label_names": names}
    task = create_task(recipe.task, recipe.data.model_copy(update=named))
    _check_comparable(task, tolerance)
    with recipe.placing(), locating(part.origin):
        given, there = part.rows, part.rows.column_names
        if trained is not None:
            for column in trained.input_columns:
                require_column(column, there)
            columns = trained.input_columns
        if columns and set(columns) <= set(there):
            given = given.select_columns(list(columns))
        rows = task.stand_in(given)
        task.bind(rows)
        task.check(rows)
    name, label = shown_path(path), task.label_column
    notes = [f"{name}: the answers to {listed(task.input_columns)} are compared"]
    if label in there:
        notes.append(f"{name}: the column '{label}' is ignored: no label is needed")
    inputs = input_hashes(rows, task.input_columns)
    return AnswerRows(task, rows, part.origin, inputs, name, tolerance, tuple(notes))


def _check_comparable(task: Task, tolerance: float | None) -> None:
    """Check that equal answers mean something: numbers need a tolerance, others have none."""
    if task.answers_numbers and tolerance is None:
        raise SoraError(
            f"task {task.name} answers with numbers: two models never give the same one",
            hint="--tolerance 0.1: numbers that are no further apart count as the same",
        )
    if tolerance is not None and not task.answers_numbers:
        raise SoraError(
            f"--tolerance is for answers that are numbers, and task {task.name} gives none",
            hint="leave out --tolerance",
        )
