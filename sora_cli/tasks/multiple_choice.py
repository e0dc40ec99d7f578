"""Multiple choice: the one of several texts that fits a context."""

from __future__ import annotations

from collections.abc import Sequence
from string import ascii_lowercase
from typing import Any

import numpy as np
from datasets import Dataset

from sora_cli.data.tokens import TOKENS, TRUNCATED, grouped, token_counts, tokenise
from sora_cli.tasks.choices import Choices, find_form, read_choices, right_places
from sora_cli.tasks.classes import OneNumber, chosen_classes, class_loss, class_parts, class_scores
from sora_cli.tasks.encoded import NO_EXAMPLES, Encoded, Predictions
from sora_cli.tasks.questions import Questions
from sora_cli.tasks.stand_ins import check_finite, softmax, with_column
from sora_cli.tasks.texts import require_column

_LABELS = ("answerKey", "answer")
"""Usual names of the label column, besides `data.label_column`."""
_ALIKE = "have only identical choices within data.max_length"


class MultipleChoice(OneNumber):
    """The model reads each choice after the context and scores it; cross-entropy over a row."""

    def bind(self, train: Dataset) -> None:
        columns = train.column_names
        parts = self.find_columns(columns, ("context", "question", "choices"))
        self._form = find_form(columns, parts, self.data.text_columns)
        self.input_columns = self._form.columns(columns)
        self._label = self.label_column = self._find_label(columns)

    def stand_in(self, rows: Dataset) -> Dataset:
        return with_column(rows, self.data.label_column, [0] * len(rows))

    def check(self, rows: Dataset) -> None:
        self._read(rows)

    def encode(self, rows: Dataset, processor: Any, *, training: bool = False) -> Encoded:
        choices, right = self._read(rows)
        flat = tokenise(choices.pairs(), processor, max_length=self.data.max_length)
        shape = (len(right), choices.number)
        cut = np.asarray(flat[TRUNCATED][:]).reshape(shape).any(axis=1)
        lengths, longest = token_counts(flat).reshape(shape).max(axis=1), max(flat[TOKENS][:])
        ends = np.arange(choices.number, len(flat) + 1, choices.number)
        features = grouped(flat.remove_columns([TRUNCATED, TOKENS]), ends)
        return Encoded(
            features.add_column("labels", np.asarray(right)),
            lengths,
            truncated=int(cut.sum()),
            longest=longest,
            examples=NO_EXAMPLES if training else Dataset.from_dict({"choices": choices.texts}),
            lacking={_ALIKE: _alike(features, np.flatnonzero(cut))},
        )

    def collator(self, processor: Any) -> Any:
        from transformers import DataCollatorForMultipleChoice

        return DataCollatorForMultipleChoice(processor)

    def loss(self, predictions: Predictions) -> float:
        if not np.isfinite(predictions.outputs).all():
            return float("nan")
        return class_loss(_labelled(predictions))

    def metrics(self, predictions: Predictions) -> dict[str, float]:
        return class_scores(self.scorer, _labelled(predictions))

    def row_parts(self, predictions: Predictions) -> tuple[Any, ...]:
        return class_parts(self.best, _labelled(predictions))

    def answer_columns(self, predictions: Predictions) -> list[Sequence[Any]]:
        check_finite(predictions.outputs)
        chosen, shares = chosen_classes(predictions), softmax(predictions.outputs)
        rows = list(zip(predictions.encoded.examples["choices"][:], chosen, shares, strict=True))
        return [
            [texts[place] for texts, place, _ in rows],
            [int(place) for place in chosen],
            [float(own[place]) for _, place, own in rows],
        ]

    def compared_answers(self, predictions: Predictions) -> Sequence[Any]:
        """Return the number of each choice: two choices may have one text."""
        return self.answer_columns(predictions)[1]

    def questions(self, rows: Dataset, order: np.random.Generator) -> Questions | None:
        del order  # models do not see a choice's place
        choices = read_choices(rows, self._form)
        letters = ascii_lowercase[: choices.number]
        shown = {} if choices.contexts is None else {"context": choices.contexts}
        shown |= {} if choices.lead is None else {"beginning": choices.lead}
        shown |= {
            a: list(texts)
            for a, texts in zip(letters, zip(*choices.texts, strict=True), strict=True)
        }
        places = {letter: place for place, letter in enumerate(letters)}
        return Questions(shown, [places] * len(rows)) if len(places) == choices.number else None

    def readable(self, predictions: Predictions) -> list[dict[str, Any]]:
        texts = predictions.encoded.examples["choices"][:]
        right = _labelled(predictions).true_labels
        return [
            {
                "prediction": choices[p],
                "label": choices[y],
                "places": {"prediction": int(p), "label": int(y)},
                "logits": [float(x) for x in row],
            }
            for p, y, row, choices in zip(
                chosen_classes(predictions), right, predictions.outputs, texts, strict=True
            )
        ]

    def _read(self, rows: Dataset) -> tuple[Choices, list[int]]:
        """Return the texts of rows, and the places of the right choices."""
        choices = read_choices(rows, self._form)
        require_column(self._label, rows.column_names)
        return choices, right_places(rows[self._label][:], choices, self._label)

    def _find_label(self, columns: list[str]) -> str:
        """Return the recipe's label column; if it names none, a column with a usual name."""
        wanted = self.data.label_column
        named = "label_column" in self.data.model_fields_set
        candidates = [wanted] if named else [wanted, *_LABELS]
        free = [column for column in columns if column not in self.input_columns]
        column = next((name for name in candidates if name in free), wanted)
        hint = "name the column that says which choice is right: data.label_column=COLUMN"
        require_column(column, free, key="data.label_column" if named else None, hint=hint)
        return column


def _labelled(predictions: Predictions) -> Predictions:
    """Add the place of each row's right choice."""
    rows = predictions.encoded
    labels = np.asarray(rows.dataset["labels"][:])
    return Predictions(predictions.outputs, labels, rows, predictions.texts)


def _alike(features: Dataset, rows: np.ndarray) -> int:
    """Count the rows with exactly the same tokens in all choices.

    Args:
        rows: the numbers of the rows to compare.
    """
    choices = features.select(rows)["input_ids"][:] if len(rows) else []
    return sum(all(ids == row[0] for ids in row) for row in choices)
