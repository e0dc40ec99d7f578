"""Sequence classification and regression, of single texts or pairs."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset

from sora_cli.core.errors import SoraError
from sora_cli.core.words import listed, shown_value
from sora_cli.data.columns import have_decimal_commas
from sora_cli.data.places import RowError
from sora_cli.data.tokens import TOKENS, TRUNCATED, token_counts, tokenise, unread_rows
from sora_cli.tasks.classes import OneClass, OneNumber
from sora_cli.tasks.encoded import Encoded, Predictions
from sora_cli.tasks.labels import encode_classes
from sora_cli.tasks.metrics import number_parts
from sora_cli.tasks.stand_ins import check_finite, with_column
from sora_cli.tasks.texts import check_text, columns_in, made_texts, require_column, row_error

USUAL_COLUMNS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("sentence",),
    ("text",),
)


class _Sequence(OneNumber):
    """Shared part of both families: text columns, tokenising, padding, one label per row."""

    def bind(self, train: Dataset) -> None:
        columns = train.column_names
        named_label = "label_column" in self.data.model_fields_set
        self._entries = self._find_text_columns(columns)
        named = (name for entry in self._entries for name in columns_in(entry, columns))
        self.input_columns = tuple(dict.fromkeys(named))
        self.label_column = self.data.label_column
        key, hint = "data.label_column", "data.label_column=COLUMN"
        require_column(self.label_column, columns, key=key if named_label else None, hint=hint)

    def check(self, rows: Dataset) -> None:
        for column in (*self.input_columns, self.data.label_column):
            require_column(column, rows.column_names)
        for column in self.input_columns:
            for row, text in enumerate(rows[column][:]):
                check_text(text, column, row, key="data.text_columns", empty=True)
        self.check_labels(rows)

    def encode(self, rows: Dataset, processor: Any, *, training: bool = False) -> Encoded:
        labels = self.encode_labels(rows[self.data.label_column][:])
        texts = made_texts(rows, self._entries)
        features = tokenise(texts, processor, max_length=self.data.max_length)
        truncated, tokens = sum(features[TRUNCATED][:]), features[TOKENS][:]
        lengths, limit = token_counts(features), self.data.max_length
        features = features.remove_columns([TRUNCATED, TOKENS])
        features = features.add_column("labels", np.asarray(labels))
        empty = np.array([not "".join(map(str, row.values())).strip() for row in texts])
        pair = len(texts.column_names) == 2
        # without empty rows: `lacking` counts each row once
        unread = unread_rows(tokens, processor, max_length=limit, pair=pair) & ~empty
        lacking = {
            "have no text": int(empty.sum()),
            "have no text within data.max_length": int(unread.sum()),
        }
        return Encoded(features, lengths, truncated, max(tokens), lacking=lacking)

    def template(self, processor: Any) -> str | None:
        made = [entry for entry in self._entries if entry not in self.input_columns]
        return " and ".join(map(repr, made)) or None

    @abstractmethod
    def check_labels(self, rows: Dataset) -> None:
        """Check the labels of a split."""

    @abstractmethod
    def encode_labels(self, values: Any) -> list[Any]:
        """Return labels in the form that the loss needs."""

    def collator(self, processor: Any) -> Any:
        from transformers import DataCollatorWithPadding

        return DataCollatorWithPadding(processor)

    def _find_text_columns(self, columns: list[str]) -> tuple[str, ...]:
        wanted, label = self.data.text_columns, self.data.label_column
        others = (name for name in columns if name.isidentifier() and name != label)
        hint = f"name one or two: data.text_columns=[{next(others, 'COLUMN')}]"
        if wanted is None:
            for usual in USUAL_COLUMNS:
                if set(usual) <= set(columns):
                    return usual
            raise RowError(f"no text columns found among {listed(columns)}", hint=hint)
        if not 1 <= len(wanted) <= 2:
            raise SoraError(
                f"data.text_columns takes one or two columns, not {len(wanted)}",
                key="data.text_columns",
            )
        for column in (name for entry in wanted for name in columns_in(entry, columns)):
            require_column(column, columns, key="data.text_columns", hint=hint)
        return tuple(wanted)


class SequenceClassification(OneClass, _Sequence):
    """One class per text or pair; cross-entropy."""

    @classmethod
    def is_for(cls, config: Any) -> bool:
        return not SequenceRegression.is_for(config)

    def find_inputs(self, train: Dataset) -> None:
        super().bind(train)

    def bind(self, train: Dataset) -> None:
        super().bind(train)
        self._bind_labels(train, self.data.label_column)

    def check_labels(self, rows: Dataset) -> None:
        self._check_labels(rows)

    def encode_labels(self, values: Any) -> list[int]:
        return encode_classes(list(values), self._names, column=self.data.label_column)


class SequenceRegression(_Sequence):
    """One number per text or pair; squared error."""

    @classmethod
    def is_for(cls, config: Any) -> bool:
        return bool(config.problem_type == "regression" or config.num_labels == 1)

    def stand_in(self, rows: Dataset) -> Dataset:
        return with_column(rows, self.data.label_column, [0.0] * len(rows))

    def model_options(self) -> dict[str, Any]:
        return {"num_labels": 1, "problem_type": "regression"}

    def check_labels(self, rows: Dataset) -> None:
        self.encode_labels(rows[self.data.label_column][:])

    def encode_labels(self, values: Any) -> list[float]:
        labels: list[float] = []
        column, key = self.data.label_column, "data.label_column"
        if have_decimal_commas(values):
            values = [value and value.replace(",", ".") for value in values]
        for row, value in enumerate(values):
            try:
                labels.append(float(_no_bool(value)))
            except (TypeError, ValueError) as error:
                what = f"column '{column}' is not all numbers: {shown_value(value)}"
                hint = "task.name=sequence-classification"
                raise row_error(what, row, key=key, hint=hint) from error
        bad = next((row for row, label in enumerate(labels) if not math.isfinite(label)), None)
        if bad is not None:
            raise row_error(
                f"column '{column}' holds a number that is NaN or infinite", bad, key=key
            )
        return labels

    def constant_loss(self, rows: Encoded) -> float | None:
        """Return the loss of the mean label as the answer to all rows."""
        labels = self.labels(rows)
        assert labels is not None
        mean = np.full(len(labels), labels.mean())
        return self.loss(Predictions(mean, labels, rows))

    def loss(self, predictions: Predictions) -> float:
        given = predictions.outputs.reshape(-1).astype(np.float64)
        return float(np.mean((given - predictions.true_labels) ** 2))

    def answers(self, predictions: Predictions) -> np.ndarray:
        return predictions.outputs.reshape(-1)

    def metrics(self, predictions: Predictions) -> dict[str, float]:
        return self.scorer(self.answers(predictions), predictions.true_labels)

    def row_parts(self, predictions: Predictions) -> tuple[Any, ...]:
        return number_parts(self.best, self.answers(predictions), predictions.true_labels)

    def answer_columns(self, predictions: Predictions) -> list[Sequence[Any]]:
        check_finite(predictions.outputs)
        return [[float(number) for number in self.answers(predictions)]]

    def readable(self, predictions: Predictions) -> list[dict[str, Any]]:
        return [
            {"prediction": float(p), "label": float(y)}
            for p, y in zip(self.answers(predictions), predictions.true_labels, strict=True)
        ]


def _no_bool(value: Any) -> Any:
    """Return the value unless it is a bool, which Python accepts as a number."""
    if isinstance(value, bool):
        raise TypeError(f"{value} is no number")
    return value
