"""Sequence classification and regression, of single texts or pairs."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

import numpy as np
from datasets import Dataset

from sora_cli.core.errors import SoraError
from sora_cli.core.words import shown_value
from sora_cli.data.tokens import TOKENS, TRUNCATED, token_counts, tokenise
from sora_cli.recipe.recipe import DataBlock, TaskBlock
from sora_cli.tasks.base import Encoded, Predictions, Task
from sora_cli.tasks.classes import (
    OneClass,
    class_options,
    class_records,
    encode_classes,
    find_class_names,
)
from sora_cli.tasks.metrics import Scorer
from sora_cli.tasks.texts import columns_in, made_texts

_USUAL_COLUMNS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("sentence",),
    ("text",),
)


class _Sequence(Task):
    """What both have in common: text columns, tokenising, padding, one label a row."""

    peft_type = "SEQ_CLS"

    def __init__(self, task: TaskBlock, data: DataBlock) -> None:
        super().__init__(task, data)
        self.scorer = Scorer(self.metric_names)

    def bind(self, train: Dataset) -> None:
        columns = train.column_names
        self._entries = self._find_text_columns(columns)
        named = (name for entry in self._entries for name in columns_in(entry, columns))
        self.input_columns = tuple(dict.fromkeys(named))
        self.label_column = self.data.label_column
        if self.data.label_column not in train.column_names:
            raise _missing("data.label_column", self.data.label_column, train.column_names)

    def encode(self, rows: Dataset, processor: Any, *, training: bool = False) -> Encoded:
        del training
        for column in (*self.input_columns, self.data.label_column):
            if column not in rows.column_names:
                raise _missing("column", column, rows.column_names, key="data")
        for column in self.input_columns:
            _check_texts(column, rows[column][:])
        labels = self.encode_labels(rows[self.data.label_column][:])
        texts = made_texts(rows, self._entries)
        features = tokenise(texts, processor, max_length=self.data.max_length)
        truncated, longest = sum(features[TRUNCATED][:]), max(features[TOKENS][:])
        lengths = token_counts(features)
        features = features.remove_columns([TRUNCATED, TOKENS])
        features = features.add_column("labels", np.asarray(labels))
        return Encoded(features, lengths, truncated, longest)

    @abstractmethod
    def encode_labels(self, values: Any) -> list[Any]:
        """Labels as the loss takes them."""

    def model_class(self) -> Any:
        from transformers import AutoModelForSequenceClassification

        return AutoModelForSequenceClassification

    def collator(self, processor: Any) -> Any:
        from transformers import DataCollatorWithPadding

        return DataCollatorWithPadding(processor)

    def _find_text_columns(self, columns: list[str]) -> tuple[str, ...]:
        wanted = self.data.text_columns
        if wanted is None:
            for usual in _USUAL_COLUMNS:
                if set(usual) <= set(columns):
                    return usual
            raise SoraError(
                f"no text columns found among {', '.join(columns)}",
                hint="name one or two: data.text_columns=[premise,hypothesis]",
                key="data.text_columns",
            )
        if not 1 <= len(wanted) <= 2:
            raise SoraError(
                f"data.text_columns takes one or two columns, not {len(wanted)}",
                key="data.text_columns",
            )
        for column in (name for entry in wanted for name in columns_in(entry, columns)):
            if column not in columns:
                raise _missing("data.text_columns", column, columns)
        return tuple(wanted)


class SequenceClassification(OneClass, _Sequence):
    """One class per text or pair; cross-entropy."""

    def bind(self, train: Dataset) -> None:
        super().bind(train)
        self._names = find_class_names(train, self.data)

    def model_options(self) -> dict[str, Any]:
        return {**class_options(self._names), "problem_type": "single_label_classification"}

    def encode_labels(self, values: Any) -> list[int]:
        return encode_classes(list(values), self._names, column=self.data.label_column)

    def readable(self, predictions: Predictions) -> list[dict[str, Any]]:
        return class_records(predictions, self._names)


class SequenceRegression(_Sequence):
    """One number per text or pair; squared error."""

    def model_options(self) -> dict[str, Any]:
        return {"num_labels": 1, "problem_type": "regression"}

    def encode_labels(self, values: Any) -> list[float]:
        labels: list[float] = []
        for row, value in enumerate(values):
            try:
                labels.append(float(value))
            except (TypeError, ValueError) as error:
                raise SoraError(
                    f"column '{self.data.label_column}' is not all numbers: "
                    f"{shown_value(value)} in row {row} (counted from 0)",
                    hint="task.name=sequence-classification",
                    key="data.label_column",
                ) from error
        bad = next((row for row, label in enumerate(labels) if not math.isfinite(label)), None)
        if bad is not None:
            raise SoraError(
                f"column '{self.data.label_column}' holds NaN or infinite numbers, as in row {bad} "
                "(counted from 0)",
                hint="take out the rows without a label",
                key="data.label_column",
            )
        return labels

    def loss(self, predictions: Predictions) -> float:
        given = predictions.outputs.reshape(-1).astype(np.float64)
        return float(np.mean((given - predictions.known) ** 2))

    def answers(self, predictions: Predictions) -> np.ndarray:
        return predictions.outputs.reshape(-1)

    def metrics(self, predictions: Predictions) -> dict[str, float]:
        return self.scorer(self.answers(predictions), predictions.known)

    def readable(self, predictions: Predictions) -> list[dict[str, Any]]:
        return [
            {"prediction": float(p), "label": float(y)}
            for p, y in zip(self.answers(predictions), predictions.known, strict=True)
        ]


def _missing(what: str, column: str, columns: list[str], key: str | None = None) -> SoraError:
    return SoraError(
        f"{what}: no column '{column}'", where=f"there are: {', '.join(columns)}", key=key or what
    )


def _check_texts(column: str, values: Iterable[Any]) -> None:
    for row, text in enumerate(values):
        if isinstance(text, str | int | float):
            continue
        holds = "has no text" if text is None else f"holds {shown_value(text)}, which is no text,"
        raise SoraError(
            f"column '{column}' {holds} in row {row} (counted from 0)",
            hint="take such rows out of the data, or name other columns: data.text_columns",
            key="data.text_columns",
        )
