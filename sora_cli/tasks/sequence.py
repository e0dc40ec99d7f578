"""Sequence classification and regression, of single texts or pairs."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Value

from sora_cli.errors import SoraError
from sora_cli.plain_words import shown_value
from sora_cli.tasks.base import Encoded, Task
from sora_cli.tasks.templates import columns_in, made_texts
from sora_cli.tokens import TOKENS, TRUNCATED, token_counts, tokenise

_USUAL_COLUMNS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("sentence",),
    ("text",),
)
_SHOWN = 5  # values listed in an error


class _Sequence(Task):
    """What both have in common: text columns, tokenising, padding, one label a row."""

    peft_type = "SEQ_CLS"

    def bind(self, train: Dataset) -> None:
        columns = train.column_names
        self._entries = self._find_text_columns(columns)
        named = (name for entry in self._entries for name in columns_in(entry, columns))
        self.text_columns = tuple(dict.fromkeys(named))
        if self.data.label_column not in train.column_names:
            raise _missing("data.label_column", self.data.label_column, train.column_names)

    def encode(self, rows: Dataset, tokenizer: Any) -> Encoded:
        for column in (*self.text_columns, self.data.label_column):
            if column not in rows.column_names:
                raise _missing("column", column, rows.column_names, key="data")
        for column in self.text_columns:
            _check_texts(column, rows[column][:])
        labels = self.encode_labels(rows[self.data.label_column][:])
        texts = made_texts(rows, self._entries)
        features = tokenise(texts, tokenizer, max_length=self.data.max_length)
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

    def collator(self, tokenizer: Any) -> Any:
        from transformers import DataCollatorWithPadding

        return DataCollatorWithPadding(tokenizer)

    def loss_items(self, batch: Mapping[str, Any]) -> int:
        return len(batch["labels"])

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


class SequenceClassification(_Sequence):
    """One class per text or pair; cross-entropy."""

    name = "sequence-classification"
    default_metrics = ("accuracy",)

    def bind(self, train: Dataset) -> None:
        super().bind(train)
        self._names = self._find_label_names(train)
        self._index = {name: i for i, name in enumerate(self._names)}

    @property
    def label_names(self) -> list[str]:
        return self._names

    def model_options(self) -> dict[str, Any]:
        return {
            "num_labels": len(self._names),
            "id2label": dict(enumerate(self._names)),
            "label2id": self._index,
            "problem_type": "single_label_classification",
        }

    def encode_labels(self, values: Any) -> list[int]:
        values = list(values)
        n = len(self._names)
        if any(isinstance(v, str) for v in values):
            labels = [self._index.get(v, -1) if isinstance(v, str) else -1 for v in values]
            unseen = sorted({str(v) for v, i in zip(values, labels, strict=True) if i < 0})
        else:
            unseen = sorted({str(v) for v in values if not _is_index(v, n)})
            labels = [int(v) if _is_index(v, n) else -1 for v in values]
        if unseen:
            raise SoraError(
                f"labels that are none of the {n} classes: {', '.join(unseen[:_SHOWN])}",
                where=f"column '{self.data.label_column}'; classes: {', '.join(self._names)}",
                hint="a split without labels can not be evaluated; see data.label_names",
                key="data.label_names",
            )
        return labels

    def loss(self, predictions: np.ndarray, labels: np.ndarray) -> float:
        import torch

        logits = torch.from_numpy(np.asarray(predictions, dtype=np.float64))
        return float(torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels).long()))

    def metrics(self, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        if not np.isfinite(predictions).all():
            return self.scorer(predictions, labels)  # the largest of NaNs is no prediction
        return self.scorer(self.answers(predictions), labels)

    def answers(self, predictions: np.ndarray) -> np.ndarray:
        return np.asarray(predictions.argmax(axis=-1))

    def readable(self, predictions: np.ndarray, labels: np.ndarray) -> list[dict[str, Any]]:
        chosen = self.answers(predictions)
        return [
            {
                "prediction": self._names[int(p)],
                "label": self._names[int(y)],
                "logits": [float(x) for x in row],
            }
            for p, y, row in zip(chosen, labels, predictions, strict=True)
        ]

    def _find_label_names(self, train: Dataset) -> list[str]:
        column = self.data.label_column
        feature = train.features[column]
        if isinstance(feature, ClassLabel):
            return _renamed(list(feature.names), self.data.label_names)
        if self.data.label_names is not None:
            return self.data.label_names
        values = train[column][:]
        _check_labels(column, values)
        if isinstance(feature, Value) and feature.dtype.startswith("float"):
            raise SoraError(
                f"column '{column}' holds fractional numbers, which are no classes",
                hint="task.name=sequence-regression",
                key="data.label_column",
            )
        return _class_names(column, set(values), len(values))


class SequenceRegression(_Sequence):
    """One number per text or pair; squared error."""

    name = "sequence-regression"
    default_metrics = ("pearson_spearman", "pearson", "spearman")

    @property
    def label_names(self) -> None:
        return None

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

    def loss(self, predictions: np.ndarray, labels: np.ndarray) -> float:
        return float(np.mean((predictions.reshape(-1).astype(np.float64) - labels) ** 2))

    def answers(self, predictions: np.ndarray) -> np.ndarray:
        return predictions.reshape(-1)

    def metrics(self, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        return self.scorer(self.answers(predictions), labels)

    def readable(self, predictions: np.ndarray, labels: np.ndarray) -> list[dict[str, Any]]:
        return [
            {"prediction": float(p), "label": float(y)}
            for p, y in zip(self.answers(predictions), labels, strict=True)
        ]


def _is_index(value: Any, n: int) -> bool:
    return isinstance(value, int | np.integer) and bool(0 <= value < n)


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


def _check_labels(column: str, values: Iterable[Any]) -> None:
    """Each row must have a label, a plain one."""
    for row, value in enumerate(values):
        if value is None or value != value:  # NaN
            what = f"column '{column}' has no label in row {row} (counted from 0)"
        elif not isinstance(value, str | int | float):
            what = f"column '{column}' holds {shown_value(value)} in row {row}, which is no label"
        else:
            continue
        raise SoraError(
            what,
            hint="take such rows out of the data, or name another column: data.label_column",
            key="data.label_column",
        )


def _renamed(names: list[str], wanted: list[str] | None) -> list[str]:
    """Names for the classes of a data set that has some itself: as many, and not in another order.

    Raises:
        SoraError: they would be other classes.
    """
    if wanted is None or wanted == names:
        return names
    if len(wanted) != len(names) or sorted(wanted) == sorted(names):
        raise SoraError(
            f"data.label_names do not fit the data's classes: {', '.join(wanted[:_SHOWN])}",
            where=f"the data's, in their order: {', '.join(names[:_SHOWN])}",
            hint="data.label_names=null",
            key="data.label_names",
        )
    return wanted


def _class_names(column: str, values: set[Any], rows: int) -> list[str]:
    """The classes of a column of texts, or of numbers from 0."""
    shown = ", ".join(sorted(map(str, values))[:_SHOWN])
    if len(values) == 1:
        raise SoraError(
            f"column '{column}' holds one class only: {shown}",
            hint="name all classes there are: data.label_names=[...]",
            key="data.label_column",
        )
    if all(isinstance(v, str) for v in values):
        return sorted(values)
    if not all(isinstance(v, int) for v in values) or min(values) < 0:
        raise SoraError(
            f"column '{column}' holds no classes from 0 upwards: {shown}",
            hint="name another column: data.label_column; or all classes: data.label_names",
            key="data.label_column",
        )
    if max(values) >= max(rows, 2):
        raise SoraError(
            f"column '{column}' holds numbers up to {max(values)} in {rows} rows, which are no "
            "classes",
            hint="task.name=sequence-regression, or another data.label_column",
            key="data.label_column",
        )
    return [str(i) for i in range(max(values) + 1)]
