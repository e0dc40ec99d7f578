"""Sequence classification and regression, of single texts or pairs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Value

from sora_cli.errors import SoraError
from sora_cli.tasks.base import Encoded, Task
from sora_cli.tokens import TRUNCATED, token_counts, tokenise

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
        self.text_columns = self._find_text_columns(train.column_names)
        if self.data.label_column not in train.column_names:
            raise _missing("data.label_column", self.data.label_column, train.column_names)

    def encode(self, rows: Dataset, tokenizer: Any) -> Encoded:
        for column in (*self.text_columns, self.data.label_column):
            if column not in rows.column_names:
                raise _missing("column", column, rows.column_names)
        for column in self.text_columns:
            empty = next((i for i, text in enumerate(rows[column][:]) if text is None), None)
            if empty is not None:
                raise SoraError(f"column '{column}' has no text in row {empty} (counted from 0)")
        labels = self.encode_labels(rows[self.data.label_column][:])
        texts = rows.select_columns(list(self.text_columns))
        features = tokenise(texts, tokenizer, max_length=self.data.max_length)
        truncated = sum(features[TRUNCATED][:])
        lengths = token_counts(features)
        features = features.remove_columns(TRUNCATED).add_column("labels", np.asarray(labels))
        return Encoded(features, lengths, truncated)

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
            )
        if len(wanted) > 2:
            raise SoraError(f"data.text_columns takes one or two columns, not {len(wanted)}")
        for column in wanted:
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
            unseen = sorted({str(v) for v in values if v not in self._index})
            labels = [self._index.get(v, -1) for v in values]
        else:
            unseen = sorted({str(v) for v in values if not _is_index(v, n)})
            labels = [int(v) if _is_index(v, n) else -1 for v in values]
        if unseen:
            raise SoraError(
                f"labels that are none of the {n} classes: {', '.join(unseen[:_SHOWN])}",
                where=f"column '{self.data.label_column}'; classes: {', '.join(self._names)}",
                hint="a split without labels can not be evaluated; see data.label_names",
            )
        return labels

    def loss(self, predictions: np.ndarray, labels: np.ndarray) -> float:
        import torch

        logits = torch.from_numpy(np.asarray(predictions, dtype=np.float64))
        return float(torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels).long()))

    def metrics(self, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        if not np.isfinite(predictions).all():
            return self.scorer(predictions, labels)  # the largest of NaNs is no prediction
        return self.scorer(predictions.argmax(axis=-1), labels)

    def readable(self, predictions: np.ndarray, labels: np.ndarray) -> list[dict[str, Any]]:
        chosen = predictions.argmax(axis=-1)
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
        if self.data.label_names is not None:
            return self.data.label_names
        if isinstance(feature, ClassLabel):
            return list(feature.names)
        values = set(train[column][:])
        if isinstance(feature, Value) and feature.dtype.startswith("float"):
            raise SoraError(
                f"column '{column}' holds fractional numbers, which are no classes",
                hint="task.name=sequence-regression",
            )
        if all(isinstance(v, str) for v in values):
            return sorted(values)
        if not all(isinstance(v, int) for v in values) or min(values) < 0:
            shown = ", ".join(sorted(map(str, values))[:_SHOWN])
            raise SoraError(f"column '{column}' holds no classes from 0 upwards: {shown}")
        return [str(i) for i in range(max(values) + 1)]


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
        try:
            labels = [float(v) for v in values]
        except (TypeError, ValueError) as error:
            raise SoraError(
                f"column '{self.data.label_column}' is not all numbers: {error}",
                hint="task.name=sequence-classification",
            ) from error
        if not np.isfinite(labels).all():
            raise SoraError(f"column '{self.data.label_column}' holds NaN or infinite numbers")
        return labels

    def loss(self, predictions: np.ndarray, labels: np.ndarray) -> float:
        return float(np.mean((predictions.reshape(-1).astype(np.float64) - labels) ** 2))

    def metrics(self, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        return self.scorer(predictions.reshape(-1), labels)

    def readable(self, predictions: np.ndarray, labels: np.ndarray) -> list[dict[str, Any]]:
        return [
            {"prediction": float(p), "label": float(y)}
            for p, y in zip(predictions.reshape(-1), labels, strict=True)
        ]


def _is_index(value: Any, n: int) -> bool:
    return isinstance(value, int | np.integer) and bool(0 <= value < n)


def _missing(what: str, column: str, columns: list[str]) -> SoraError:
    return SoraError(f"{what}: no column '{column}'", where=f"there are: {', '.join(columns)}")
