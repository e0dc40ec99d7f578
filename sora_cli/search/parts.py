"""The rows of a part, encoded for a model, and the rows among them that test a promise.

A promise is about distinct inputs that training has not seen. So a row does not test if the model
reads it like a training or screening row, or like another test row. Inputs are compared as the
model gets them (`Task.input_keys`): a text that repeats another one in its first
`data.max_length` tokens is the same input, and so is one in capitals before a model without them.
Of test rows with one input, one is drawn at random, since their labels may disagree.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from datasets import Dataset

from sora_cli.core.errors import SoraError
from sora_cli.data.content import data_fingerprint
from sora_cli.data.places import Origin
from sora_cli.data.repeats import count_inputs, first_of_each
from sora_cli.model.base import Base
from sora_cli.run.class_counts import raw_class_counts
from sora_cli.run.encode import encode
from sora_cli.search.answers import AnswerRows
from sora_cli.search.row_set import RowSet
from sora_cli.tasks.base import Encoded, Task
from sora_cli.tasks.row_scores import RowScores
from sora_cli.train.trainer import AdapterTrainer


@dataclass(frozen=True)
class Part:
    """The labelled rows of one part, with their origin."""

    rows: Dataset
    origin: Origin
    next_tokens = False

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, rows: np.ndarray) -> Part:
        """Return some of the rows, by their numbers."""
        return Part(self.rows.select(rows), self.origin.of(rows.tolist()))

    def encoded(self, task: Task, base: Base) -> Encoded:
        """Return the rows encoded for the model."""
        return encode(task, base, self.rows, self.origin)

    def raw_keys(self, task: Task) -> Sequence[np.ndarray]:
        """Return the keys of the raw rows."""
        return task.raw_keys(self.rows)

    def scores(self, trainer: AdapterTrainer, encoded: Encoded) -> RowScores:
        """Score the trainer's model as it is now; on all processes the same.

        Args:
            encoded: the rows, as `encoded` returns them.
        """
        return trainer.row_scores(encoded)

    def row_set(self, split: str) -> RowSet:
        """Return the number and digest of the rows, which were taken from a split."""
        return RowSet(split=split, rows=len(self), digest=data_fingerprint(self.rows))


Held = Part | AnswerRows
"""Rows that choose a size: by their labels, or by the answers to them."""


@dataclass(frozen=True)
class EncodedPart:
    """Rows encoded for a model, and the numbers of those that test.

    Attributes:
        counted: numbers of the rows that test; None: all of them, whatever they repeat.
        alone: the rows that test, encoded by themselves, where each row chooses among all rows.
        seen: number of rows that the model reads like training or screening rows.
        repeated: number of other rows that it reads like another row of this part.
        alike: of these, the rows that differ only before the model reads them.
        sharing: number of rows that test and share a part of their input, and its name.
    """

    part: Held
    rows: Encoded
    counted: np.ndarray | None = None
    alone: tuple[Held, Encoded] | None = None
    seen: int = 0
    repeated: int = 0
    alike: int = 0
    sharing: tuple[int, str] | None = None

    def __len__(self) -> int:
        """Return the number of rows that test."""
        return len(self.part) if self.counted is None else len(self.counted)

    def on(self, task: Task, base: Base) -> EncodedPart:
        """Return the same rows, encoded for another model of the same base."""
        alone = None if self.alone is None else self.alone[0]
        return replace(
            self,
            rows=self.part.encoded(task, base),
            alone=None if alone is None else (alone, alone.encoded(task, base)),
        )

    def scores(self, trainer: AdapterTrainer) -> RowScores:
        """Score the trainer's model as it is now on the rows that test.

        `RowScores.every` has the scores of all rows, if some do not test.
        """
        every = self.part.scores(trainer, self.rows)
        if self.counted is None or len(self) == len(self.part):
            return every
        if self.alone is None:
            return every.of_these(self.counted)
        part, rows = self.alone
        return replace(part.scores(trainer, rows), every=every)

    def row_set(self, split: str) -> RowSet:
        """Return the number of the rows that test, and number and digest of all rows."""
        found = self.part.row_set(split)
        if self.counted is None:
            return found
        return found.model_copy(update={"rows": len(self), "held": len(self.part)})

    def classes(self, task: Task) -> dict[str, int] | None:
        """Count the rows of each class that test; None: the rows have no labels, or no classes."""
        if isinstance(self.part, AnswerRows) or self.counted is None:
            return None
        return raw_class_counts(task, self.part.take(self.counted).rows) or None

    def notes(self, name: str) -> Iterator[str]:
        """Yield notes on the rows that do not test, and on rows that depend on each other.

        Args:
            name: of the rows, such as "test rows".
        """
        total = f"of {len(self.part):,} {name}"
        if self.seen:
            yield (
                f"{self.seen:,} {total} are training or screening rows as the model reads them: "
                "they do not test"
            )
        if self.repeated:
            only = f", {self.alike:,} of them only as the model reads them" if self.alike else ""
            yield f"{self.repeated:,} {total} repeat another one{only}: one of each input tests"
        if self.sharing is not None:
            number, shared = self.sharing
            yield (
                f"{number:,} of {len(self):,} {name} share their {shared} with another one: such "
                "rows depend on each other, and the bound takes them for independent"
            )


def counted_part(
    part: Held, task: Task, base: Base, seen: Sequence[tuple[Task, Encoded]], seed: int
) -> EncodedPart:
    """Encode rows, and find those that test.

    Args:
        task: of the run; rows without labels have their own.
        seen: training rows and other rows that test rows must not repeat, with their task.
        seed: of the draw among rows with one input.
    """
    rows, answers = part.encoded(task, base), part.next_tokens
    own = part.task if isinstance(part, AnswerRows) else task
    keys = own.input_keys(rows, answers=answers)
    others = [other.input_keys(each, answers=answers) for other, each in seen]
    counted, known = first_of_each(keys, others, seed)
    if not len(counted):
        raise SoraError(
            f"none of {len(part):,} rows can test: training has seen all of their inputs",
            where="inputs are compared as the model reads them: "
            f"data.max_length is {own.data.max_length}",
            hint="give rows with other inputs",
        )
    left = int((~known).sum())
    alike = 0
    if left > len(counted):
        alike = max(count_inputs([key[~known] for key in part.raw_keys(own)]) - len(counted), 0)
    alone = None
    if not own.options.ROWS_ALONE and len(counted) < len(part):
        alone = part.take(counted)
    return EncodedPart(
        part,
        rows,
        counted,
        None if alone is None else (alone, alone.encoded(task, base)),
        seen=int(known.sum()),
        repeated=left - len(counted),
        alike=alike,
        sharing=_sharing(own, rows, counted),
    )


def _sharing(task: Task, rows: Encoded, counted: np.ndarray) -> tuple[int, str] | None:
    """Return the number of rows that share a part of their input, and its name."""
    shared = task.shared_part(rows)
    if shared is None:
        return None
    name, keys = shared
    _, which, sizes = np.unique(keys[counted], return_inverse=True, return_counts=True)
    number = int((sizes[which] > 1).sum())
    return (number, name) if number else None
