"""A trained model's answers to rows: find the columns, check the rows, answer them in parts.

Rows without labels get stand-in labels. After that they are treated like the rows of `sora eval`:
checked, encoded and put through the model in the same way, sorted by length within a part.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset

from sora_cli.adapter.digest import result_digest
from sora_cli.adapter.metadata import AdapterMeta
from sora_cli.core.console import say
from sora_cli.core.errors import SoraError
from sora_cli.core.out_of_memory import telling
from sora_cli.core.words import listed
from sora_cli.data.content import data_fingerprint
from sora_cli.data.places import locating
from sora_cli.data.tokens import no_token_cache
from sora_cli.model.base import Base
from sora_cli.recipe.families import check_columns
from sora_cli.recipe.load import LoadedRecipe
from sora_cli.run.encode import encode
from sora_cli.run.preflight import check_corpus
from sora_cli.run.reference import referenced_task
from sora_cli.run.scoring import load_target
from sora_cli.tasks.base import Task
from sora_cli.train.out_of_memory import FEWER_BITS
from sora_cli.train.trainer import AdapterTrainer, build_scorer
from sora_cli.use.source import Source

_PROBABILITY = "probability"
_DECIDING = ("columns", "label_names", "max_length", "text_columns")
"""Keys of the data block that change the model's input."""


@dataclass(frozen=True)
class Request:
    """A request for answers: the model and the options of `sora predict`.

    Attributes:
        target: the adapter, run or model, as the user named it.
        place: directory of the target.
        recipe: for reading the rows.
        meta: metadata of `sora.json`.
        on: base model; None means the recorded base model.
        probabilities: also add a column with the probability of each class.
        prefix: for the names of new columns.
        chosen: True if the user named the columns to read.
        together: rows per part; None means the task family's own number.
    """

    target: str
    place: Path
    recipe: LoadedRecipe
    meta: AdapterMeta
    on: str | None = None
    probabilities: bool = False
    prefix: str = ""
    chosen: bool = False
    together: int | None = None


class Predictor:
    """A model's answers to the rows of a source."""

    def __init__(self, request: Request, source: Source) -> None:
        """Bind the task to the columns of the rows, and check the names of new columns."""
        self.request, self.source = request, source
        self.recipe = request.recipe.recipe
        with self.recipe.placing():
            check_columns(self.recipe.task.name, self.recipe.data.columns)
            check_corpus(self.recipe)
            self.task: Task = referenced_task(self.recipe)
            self.size = request.together or self.task.options.ANSWERED_TOGETHER
            first = min(self.size, len(source))
            with locating(source.origin_of(0, first)):
                self._bind(source.rows(0, first))
        self.adds = [f"{request.prefix}{name}" for name in self._names()]
        self._check_names()
        self.truncated, self.notes = 0, list(source.origin.notes)

    def _bind(self, rows: Dataset) -> None:
        completed = self._completed(rows)
        try:
            self.task.bind(completed)
        except SoraError as error:  # its list of columns must not contain the stand-ins
            error.renamed(listed(completed.column_names), listed(rows.column_names))
            raise

    def made_with(self) -> dict[str, Any]:
        """Return all settings that influence the answers, except the rows."""
        recipe, corpus = self.recipe.resolved(), self.task.corpus
        return {
            "model": result_digest(self.request.place) or str(self.request.place),
            "base model": self.request.on,
            "task": recipe["task"],
            "data": {key: recipe["data"][key] for key in _DECIDING},
            "precision": recipe["training"]["precision"],
            "dtype": recipe["model"]["dtype"],
            "attention": recipe["model"]["attention"],
            "reading of columns": list(self.task.input_columns),
            "set of new columns": self.adds,
            **({} if corpus is None else {"corpus": corpus.digest}),
        }

    def check(self, first: int, bar: Any) -> None:
        """Check all rows from index `first` on, as far as possible without the model.

        The model is loaded only after this: a mistake in the last row shows before any answer.
        """
        for start, end in self._spans(first):
            with self.recipe.placing(), locating(self.source.origin_of(start, end)):
                self.task.check(self._completed(self.source.rows(start, end)))
            bar.update(end - start)

    def answered(self, first: int) -> Iterator[tuple[Dataset, dict[str, Sequence[Any]]]]:
        """Load the model; yield the rows from index `first` on in parts, with answers by column."""
        say("load model ...")
        base = self._base()
        with no_token_cache():
            with self.recipe.placing():
                trainer = build_scorer(self.recipe, self.task, base)
            trainer.predicts = True
            with trainer.reader.kept():
                for start, end in self._spans(first):
                    yield self._answers(trainer, base, start, end)

    def digest(self, first: int, last: int) -> str | None:
        """Return the digest of a span of rows; None if there are not that many rows."""
        if last > len(self.source):
            return None
        return data_fingerprint(self.source.rows(first, last))

    def _base(self) -> Base:
        with self.recipe.placing(), telling(lambda: "load model", hint=FEWER_BITS):
            base = load_target(self.request.target, self.recipe, self.task, on=self.request.on)
        base.model.eval()
        self.notes += base.notes
        return base

    def _answers(
        self, trainer: AdapterTrainer, base: Base, start: int, end: int
    ) -> tuple[Dataset, dict[str, Sequence[Any]]]:
        rows, origin = self.source.rows(start, end), self.source.origin_of(start, end)
        with self.recipe.placing():
            encoded = encode(self.task, base, self._completed(rows), origin, may_lack=True)
        self.truncated += encoded.truncated
        outputs = trainer.answers_of(encoded)
        with locating(origin):
            columns = self.task.answer_columns(outputs)
            shares = self.task.probabilities(outputs) if self.request.probabilities else None
        if shares is not None:
            columns += [share.tolist() for share in shares.T]
        return rows, dict(zip(self.adds, columns, strict=True))

    def _names(self) -> list[str]:
        classes = self.task.label_names if self.request.probabilities else []
        if classes is None:
            raise SoraError(f"--probabilities needs classes, and task {self.task.name} has none")
        return [*self.task.answered_by, *(f"{_PROBABILITY}_{name}" for name in classes)]

    def _check_names(self) -> None:
        for name in self.adds:
            if name in (*self.source.columns, *self.source.header):
                raise SoraError(
                    f"the rows have a column '{name}' already",
                    where=f"new columns: {listed(self.adds)}",
                    hint="give the new columns other names: --prefix model_",
                )

    def _completed(self, rows: Dataset) -> Dataset:
        """Return the rows with stand-in labels, because the task's reader needs labelled rows."""
        known = list(self.request.meta.input_columns)
        if known and not self.request.chosen and set(known) <= set(rows.column_names):
            rows = rows.select_columns(known)  # only these were in training: ignore other columns
        return self.task.stand_in(rows)

    def _spans(self, first: int) -> Iterator[tuple[int, int]]:
        total = len(self.source)
        for start in range(first, total, self.size):
            yield start, min(start + self.size, total)
