"""The rows that choose or test a size: by labels, or by the answers to them; which of them test.

A promise is about distinct inputs that training has not seen. So a row does not test if the model
reads it like a training or screening row, or like another test row. Inputs are compared as the
model gets them (`Task.input_keys`): a text that repeats another one in its first
`data.max_length` tokens is the same input, and so is one in capitals before a model without them.
Of test rows with one input, one is drawn at random, since their labels may disagree.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from datasets import Dataset

from sora_cli.adapter.trained_on import ANSWERED, NOTHING, RAW, READ, TrainedOn
from sora_cli.core.errors import SoraError
from sora_cli.data.content import data_fingerprint
from sora_cli.data.overlap import input_hashes
from sora_cli.data.places import Origin, RowError, locating
from sora_cli.data.repeats import Keys, count_inputs, first_of_each
from sora_cli.model.base import Base
from sora_cli.run.class_counts import raw_class_counts
from sora_cli.run.encode import encode
from sora_cli.search.row_set import SCREENING, TEST, RowSet
from sora_cli.tasks.base import Task
from sora_cli.tasks.encoded import Encoded
from sora_cli.tasks.language import IGNORED, Writing, token_choices
from sora_cli.tasks.row_scores import RowScores, answer_scores, asked_scores
from sora_cli.train.trainer import AdapterTrainer

SEED = 0
"""Of the draw among repeated test rows, where no recipe's `auto` block has one."""


@dataclass(frozen=True)
class Answers:
    """How the answers to rows without labels are compared.

    Attributes:
        blank: the family, for stand-ins in the place of labels.
        columns: the columns that are an input.
        read: the columns that are read.
        file: name of the rows' file, for messages.
        tolerance: the largest distance of two numbers that count as the same answer; None: answers
            are no numbers.
        next_tokens: the next-token choices on the rows' own texts are compared.
        with_answers: a given answer belongs to the input, as for `next_tokens`.
        asked: labels of a person may stand beside the answers.
    """

    blank: Task
    columns: Sequence[str]
    read: Sequence[str]
    file: str
    tolerance: float | None = None
    next_tokens: bool = False
    with_answers: bool = False
    asked: bool = False


@dataclass(frozen=True)
class TestRows:
    """Rows from one source.

    Attributes:
        task: the family, bound to these rows.
        rows: the rows; without labels, with stand-ins for them.
        split: name of the split that they come from.
        answers: how answers to them are compared; None: their labels score a model.
        inputs: (rows,) a hash of each row's input, of rows without labels.
        seen: the rows that they must not repeat, as far as they are known.
        trained: the inputs that the models were trained on; they must not be repeated, either.
        also_read: the family as another of the models reads rows, if it reads them otherwise.
        notes: remarks for the user: rows that were left out, and labels that are ignored.
        unused: the rows that could have been drawn to test, too; None: all are here.
    """

    __test__: ClassVar[bool] = False  # no test of pytest's

    task: Task
    rows: Dataset
    origin: Origin
    split: str
    answers: Answers | None = None
    inputs: np.ndarray | None = None
    seen: tuple[TestRows, ...] = ()
    trained: TrainedOn = NOTHING
    also_read: Task | None = None
    notes: tuple[str, ...] = ()
    unused: TestRows | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def name(self) -> str:
        """The rows in a sentence."""
        return f"rows of {self.split}" if self.answers is None else "rows without labels"

    def take(self, rows: np.ndarray) -> TestRows:
        """Return some of the rows, by their numbers."""
        chosen = rows.tolist()
        return replace(
            self,
            rows=self.rows.select(chosen),
            origin=self.origin.of(chosen),
            inputs=None if self.inputs is None else self.inputs[rows],
        )

    def like(self, rows: TestRows) -> TestRows:
        """Return labelled rows in the form of these, so that equal inputs become equal rows."""
        answers = self.answers
        assert answers is not None
        alike = rows.rows.select_columns(list(answers.columns))
        # a chat holds its own answer: without the stand-in no such row would match
        alike = alike if answers.with_answers else answers.blank.stand_in(alike)
        return replace(rows, task=self.task, rows=alike)

    def unseen(self, seen: Sequence[TestRows]) -> TestRows:
        """Return the rows without labels with a new input, each input once, with notes on others.

        Args:
            seen: training rows and other labelled rows, as far as they are known.
        """
        answers, inputs = self.answers, self.inputs
        assert answers is not None
        assert inputs is not None
        alike = [self.like(part) for part in seen]
        known = self._trained_raw()
        for part in alike:
            known |= np.isin(inputs, input_hashes(part.rows, answers.columns))
        repeated = ~known
        repeated[np.unique(inputs, return_index=True)[1]] = False
        notes = list(self.notes)
        seen_as = "are training rows" if len(seen) < 2 else "are labelled rows of the recipe"
        reasons = {seen_as: known.sum(), "repeat another row": repeated.sum()}
        for reason, number in reasons.items():
            if number:
                rows_of = f"{number:,} of {len(self):,} rows of {answers.file}"
                notes.append(f"{rows_of} {reason}: they are left out")
        rows = np.flatnonzero(~known & ~repeated)
        if len(rows) < 2:
            left_out = (f"{number:,} {reason}" for reason, number in reasons.items() if number)
            can = f"{len(rows)} of {len(self):,} rows can test"
            raise SoraError(
                f"{answers.file}: {can}, and at least 2 are needed",
                where=", ".join(left_out),
                hint="give a file with other rows: --unlabelled FILE",
            )
        return replace(self.take(rows), notes=tuple(notes), seen=tuple(alike))

    def parts(self, screening: int, test: int, seed: int) -> dict[str, TestRows]:
        """Return screening and test rows, drawn at random; the rest is left out."""
        order = np.random.default_rng(seed).permutation(len(self))
        return {
            SCREENING: self.take(np.sort(order[:screening])),
            TEST: self.take(np.sort(order[screening : screening + test])),
        }

    def read_by(self, task: Task) -> TestRows:
        """Return the same rows for a model that reads them otherwise."""
        seen = tuple(part.read_by(task) for part in self.seen)
        return replace(self, task=task, seen=seen)

    def raw_keys(self) -> Sequence[np.ndarray]:
        """Return the keys of the raw rows."""
        return self.task.raw_keys(self.rows) if self.inputs is None else [self.inputs]

    def encoded(self, base: Base) -> Encoded:
        """Return the rows encoded for a model."""
        if self.answers is None:
            return encode(self.task, base, self.rows, self.origin)
        self.task.adapt_model(base.model, base.processor)
        encoded = encode(self.task, base, self.rows, self.origin, may_lack=True)
        if self.answers.next_tokens:
            with locating(self.origin):
                _check_counted(encoded)
        return encoded

    def scores(self, trainer: AdapterTrainer, encoded: Encoded) -> RowScores:
        """Score the trainer's model as it is now, or take its answers; equal on all processes.

        Args:
            encoded: the rows, as `encoded` returns them.
        """
        if self.answers is None:
            return trainer.row_scores(encoded)
        answers: Sequence[Any]
        with locating(self.origin):
            if self.answers.next_tokens and isinstance(self.task, Writing):
                answers = token_choices(trainer.outputs_of(encoded, self.task.next_tokens))
            else:
                answers = self.task.compared_answers(trainer.answers_of(encoded))
        if self.answers.asked:
            return asked_scores(answers)
        alone = self.task.rows_alone
        return answer_scores(answers, self.answers.tolerance, rows_alone=alone)

    def row_set(self) -> RowSet:
        """Return split, number and digest of the rows; without labels, of the columns read.

        A fixed corpus belongs to the digest.
        """
        read = self.rows
        if self.answers is not None:
            read = read.select_columns(list(self.answers.read))
        digest = data_fingerprint(read)
        if self.task.corpus is not None:  # other documents give other scores
            digest = hashlib.sha256(f"{digest} {self.task.corpus.digest}".encode()).hexdigest()
        return RowSet(split=self.split, rows=len(self), digest=digest)

    def all_on(self, base: Base) -> EncodedRows:
        """Return the rows encoded for a model; all of them count, whatever they repeat."""
        return EncodedRows(self, self.encoded(base))

    def distinct_on(
        self,
        base: Base,
        seen: Sequence[tuple[Task, Encoded]] | None = None,
        seed: int = SEED,
        *,
        screened: Sequence[tuple[Task, Encoded]] = (),
    ) -> EncodedRows:
        """Encode the rows for a model, and find those that test.

        Args:
            seen: training rows and others that must not be repeated, with their task; None: `seen`
                of these rows.
            seed: of the draw among rows with one input.
            screened: screening rows, which must not be repeated either, with their task.
        """
        if seen is None:
            seen = [(part.task, part.encoded(base)) for part in self.seen]
        trained, seen = len(seen), [*seen, *screened]
        rows, answers = self.encoded(base), self.answers is not None and self.answers.next_tokens
        keys = self.task.input_keys(rows, answers=answers)
        others = [other.input_keys(each, answers=answers) for other, each in seen]
        kind = ANSWERED if answers else READ
        before = self._trained_on(base, keys, kind)
        counted, known = first_of_each(keys, others, seed, before)
        if not len(counted):
            labelled = first_of_each(keys, others[:trained], seed, before)[1]
            named = "training" if trained < 2 else "labelled"
            whose = {named: labelled.any(), "screening": not labelled.all()}
            repeated = " and ".join(f"{name} rows" for name in whose if whose[name])
            raise SoraError(
                f"none of {len(self):,} rows can test: they repeat {repeated}",
                where="inputs are compared as the model reads them: "
                f"data.max_length is {self.task.data.max_length}",
                hint="give rows with other inputs",
            )
        left = int((~known).sum())
        alike = 0
        if left > len(counted):
            alike = max(count_inputs([key[~known] for key in self.raw_keys()]) - len(counted), 0)
        alone = None
        if not self.task.rows_alone and len(counted) < len(self):
            alone = self.take(counted).all_on(base)
        return EncodedRows(
            self,
            rows,
            counted,
            alone,
            seen=int(known.sum()),
            repeated=left - len(counted),
            alike=alike,
            sharing=_sharing(self.task, rows, counted),
            known=self.trained.knows(self.task.name, kind, keys),
        )

    def _trained_raw(self) -> np.ndarray:
        if not self.trained.families:
            return np.zeros(len(self), dtype=bool)
        return self.trained.repeated(self.task.name, RAW, self.task.raw_keys(self.rows))

    def _trained_on(self, base: Base, keys: Keys, kind: str) -> np.ndarray:
        """Return a mask of the rows that a model was trained on, (rows,), by all that is recorded.

        Args:
            keys: of the encoded rows, of this kind.
        """
        name, known = self.task.name, self._trained_raw()
        known |= self.trained.repeated(name, kind, keys)
        if self.also_read is not None:
            read = self.read_by(self.also_read).encoded(base)
            again = self.also_read.input_keys(read, answers=kind == ANSWERED)
            known |= self.trained.repeated(name, kind, again)
        return known


@dataclass(frozen=True)
class EncodedRows:
    """Rows encoded for a model, and the numbers of those that test.

    Attributes:
        counted: numbers of the rows that test; None: all of them, whatever they repeat.
        alone: the rows that test, encoded by themselves, where each row chooses among all rows.
        seen: number of rows that the model reads like training or screening rows.
        repeated: number of other rows that it reads like another row of this part.
        alike: of these, the rows that differ only before the model reads them.
        sharing: number of rows that test and share a part of their input, and its name.
        known: all that the models were trained on is known here.
    """

    part: TestRows
    rows: Encoded
    counted: np.ndarray | None = None
    alone: EncodedRows | None = None
    seen: int = 0
    repeated: int = 0
    alike: int = 0
    sharing: tuple[int, str] | None = None
    known: bool = True

    def __len__(self) -> int:
        """Return the number of rows that test."""
        return len(self.part) if self.counted is None else len(self.counted)

    def drawn(self, number: int, base: Base, seed: int) -> EncodedRows:
        """Draw some of the rows that test at random, and return these alone."""
        counted = np.arange(len(self.part)) if self.counted is None else self.counted
        # not the stream that dealt the parts: a draw of the same length would be in its order
        order = np.random.default_rng((seed, 1)).permutation(counted)
        unused = self.part.take(np.sort(order[number:]))
        part = replace(self.part.take(np.sort(order[:number])), unused=unused)
        every = np.arange(len(part))
        return replace(self, part=part, rows=part.encoded(base), counted=every, seen=0, repeated=0)

    def on(self, base: Base, task: Task | None = None) -> EncodedRows:
        """Return the same rows, encoded for another model.

        Args:
            task: reads the rows for that model; None: their own.
        """
        alone = None if self.alone is None else self.alone.on(base, task)
        part = self.part if task is None else self.part.read_by(task)
        return replace(self, part=part, rows=part.encoded(base), alone=alone)

    def scores(self, trainer: AdapterTrainer) -> RowScores:
        """Score the trainer's model as it is now on the rows that test.

        `RowScores.every` has the scores of all rows, if some do not test.
        """
        every = self.part.scores(trainer, self.rows)
        if self.counted is None or len(self) == len(self.part):
            return every
        if self.alone is None:
            return every.of_these(self.counted)
        return replace(self.alone.scores(trainer), every=every)

    def row_set(self) -> RowSet:
        """Return number and classes of the rows that test, and number and digest of all rows."""
        found = self.part.row_set()
        if self.counted is None:
            return found
        own = {"rows": len(self), "held": len(self.part), "classes": self._classes()}
        own["known"] = self.known
        return found.model_copy(update=own)

    def _classes(self) -> dict[str, int] | None:
        """Count the rows of each class that test; None: the rows have no labels, or no classes."""
        if self.part.answers is not None or self.counted is None:
            return None
        return raw_class_counts(self.part.task, self.part.take(self.counted).rows) or None

    def notes(self, name: str | None = None) -> Iterator[str]:
        """Yield notes on the rows that do not test, and on rows that depend on each other.

        Args:
            name: of the rows; None: their own.
        """
        name = name or self.part.name
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


def _check_counted(encoded: Encoded) -> None:
    """Check that each row has a token that the loss counts: else any two models agree on it."""
    counted = [set(labels) != {IGNORED} for labels in encoded.dataset["labels"][:]]
    if not all(counted):
        raise RowError("there is no next token to compare", counted.index(False))


def _sharing(task: Task, rows: Encoded, counted: np.ndarray) -> tuple[int, str] | None:
    """Return the number of rows that share a part of their input, and its name."""
    shared = task.shared_part(rows)
    if shared is None:
        return None
    name, keys = shared
    _, which, sizes = np.unique(keys[counted], return_inverse=True, return_counts=True)
    number = int((sizes[which] > 1).sum())
    return (number, name) if number else None
