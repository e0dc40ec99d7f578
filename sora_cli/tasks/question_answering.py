"""Extractive question answering: the answer is a span of a context, which may be long."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import torch
from datasets import Dataset
from torch import Tensor

from sora_cli.data.overlap import input_hashes
from sora_cli.data.places import RowError
from sora_cli.data.processor import pad_inputs
from sora_cli.data.repeats import hashes_of
from sora_cli.recipe.task_options import QuestionAnsweringOptions
from sora_cli.tasks.answers import Answers, read_answers, read_texts
from sora_cli.tasks.base import Task
from sora_cli.tasks.encoded import Encoded, Lengths, Predictions
from sora_cli.tasks.family.head import without
from sora_cli.tasks.stand_ins import TEXT, check_finite, with_column
from sora_cli.tasks.windows import best_span, make_windows, window_losses


@dataclass(frozen=True)
class Span:
    """An answer: its text, its place in the context (-1: no answer), and its sum of logits."""

    text: str = ""
    start: int = -1
    end: int = -1
    score: float = -math.inf


_WINDOW = 384  # tokens of a window, as in BERT's SQuAD and most later work
_SPAN = ("text", "start", "end", "score")
_POSITIONS = ("start_positions", "end_positions")


class QuestionAnswering(Task):
    """The model scores each token as the answer's first and last; cross-entropy over a window."""

    options: QuestionAnsweringOptions

    def bind(self, train: Dataset) -> None:
        columns = train.column_names
        self._columns = self.require_columns(columns, ("question", "context", "answers"))
        self._id = self.find_columns(columns, ("id",)).get("id")
        self.input_columns = (self._columns["question"], self._columns["context"])
        self.label_column = self._columns["answers"]

    def stand_in(self, rows: Dataset) -> Dataset:
        columns = rows.column_names
        contexts = rows[self.require_columns(columns, ["question", "context"])["context"]][:]
        firsts = [(str(context).split() or [TEXT])[:1] for context in contexts]
        return with_column(rows, self.part_column(columns, "answers"), firsts)

    def input_keys(self, rows: Encoded, *, answers: bool = False) -> list[np.ndarray]:
        """Return a key of all windows of a row."""
        (windows,) = super().input_keys(rows)
        first = np.flatnonzero(np.diff(rows.dataset["example"][:], prepend=-1))
        offsets = np.append(first, len(windows)).astype(np.int32)
        return [hashes_of(pa.ListArray.from_arrays(offsets, pa.array(windows.view(np.int64))))]

    def shared_part(self, rows: Encoded) -> tuple[str, np.ndarray]:
        return "context", input_hashes(rows.examples, ["context"])

    def check(self, rows: Dataset) -> None:
        _, _, answers = self._read(rows)
        if not any(answer.usable for answer in answers):
            raise RowError(
                "there is nothing to learn: no answer occurs in its context",
                hint="name the columns that belong together: data.columns='{context: COLUMN, "
                "answers: COLUMN}'",
            )

    def encode(self, rows: Dataset, processor: Any, *, training: bool = False) -> Encoded:
        questions, contexts, answers = self._read(rows)
        places = [answer.place or (-1, -1) for answer in answers]
        texts = Dataset.from_dict(
            {
                "row": range(len(answers)),
                "question": questions,
                "context": contexts,
                "start": [start for start, _ in places],
                "end": [end for _, end in places],
            }
        )
        kept = _usable(answers) if training else range(len(answers))
        windows = make_windows(
            texts.select(kept),
            processor,
            max_length=self.data.max_length,
            stride=self.options.stride,
        )
        lengths = np.array([len(ids) for ids in windows["input_ids"]])
        about: dict[str, list[Any]] = {
            "answers": [answer.texts for answer in answers],
            "usable": [answer.usable for answer in answers],
        }
        if not training:
            about |= {"question": questions, "context": contexts, **self._ids(rows)}
        return Encoded(windows, lengths, truncated=0, examples=Dataset.from_dict(about))

    def token_lengths(self, rows: Dataset, processor: Any) -> Lengths:
        encoded = self.encode(rows, processor, training=True)
        return Lengths(encoded.lengths, window=_WINDOW)

    def model_options(self) -> dict[str, Any]:
        return {"num_labels": 2}  # scores as first and as last token

    def inputs_of(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        return {name: value for name, value in batch.items() if name not in _POSITIONS}

    def loss_of(self, outputs: Any, batch: Mapping[str, Any]) -> Tensor:
        """Return the mean of each window's own loss: the model's would count padding, too."""
        positions = torch.stack([batch[name] for name in _POSITIONS], dim=1)
        real = batch["attention_mask"].bool()
        return window_losses(_logits(outputs), real, positions).mean()

    def collator(self, processor: Any) -> Any:
        def collate(rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
            positions = {name: torch.tensor([row[name] for row in rows]) for name in _POSITIONS}
            return {**pad_inputs(processor, rows), **positions}

        return collate

    def loss_items(self, batch: Mapping[str, Any]) -> int:
        return len(batch["start_positions"])

    def scored_inputs(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        return without(batch, *_POSITIONS)

    def outputs_to_keep(self, outputs: Any, batch: Mapping[str, Any]) -> Tensor:
        """Return the logits (windows, tokens, 2)."""
        return _logits(outputs).float()

    def loss(self, predictions: Predictions) -> float:
        if not _finite(predictions):
            return math.nan
        windows = predictions.encoded.dataset
        positions = np.stack([windows[name][:] for name in _POSITIONS], axis=1)
        losses = window_losses(
            torch.from_numpy(predictions.outputs.astype(np.float64)),
            torch.from_numpy(_not_padding(predictions)),
            torch.from_numpy(positions),
        )
        return float(losses.mean())

    def metrics(self, predictions: Predictions) -> dict[str, float]:
        if not _finite(predictions):
            return dict.fromkeys(self.metric_names, math.nan)
        wanted = predictions.encoded.examples["answers"][:]
        given = [answer.text for answer in self._answers(predictions)]
        scores = _squad(given, wanted)
        return {name: scores[name] for name in self.metric_names}

    def row_parts(self, predictions: Predictions) -> tuple[Any, ...]:
        kind = "right" if self.best == "exact_match" else "mean"
        wanted = predictions.encoded.examples["answers"][:]
        if not _finite(predictions):
            return kind, np.full(len(wanted), math.nan)
        pairs = zip(self._answers(predictions), wanted, strict=True)
        return kind, np.array([_squad([span.text], [own])[self.best] for span, own in pairs])

    def remarks(self, parts: Mapping[str, Encoded]) -> list[str]:
        """Count rows without any answer in their context: they have no right span."""
        remarks = []
        for name, part in parts.items():
            lost = len(part.examples) - sum(part.examples["usable"][:])
            if lost:
                scored = "context" in part.examples.column_names
                remarks.append(
                    f"{lost:,} of {len(part.examples):,} rows of {name} "
                    f"{'count as wrong' if scored else 'are left out'}: none of their answers "
                    "occurs in the context"
                )
        return remarks

    def answer_columns(self, predictions: Predictions) -> list[Sequence[Any]]:
        broken = ~(np.isfinite(predictions.outputs) | ~_not_padding(predictions)[..., None])
        sound = np.zeros(len(predictions.encoded.examples))
        windows = np.asarray(predictions.encoded.dataset["example"][:])
        sound[windows[broken.any(axis=(1, 2))]] = math.nan
        check_finite(sound)
        answers = self._answers(predictions)
        return [[getattr(answer, name) for answer in answers] for name in _SPAN]

    def compared_answers(self, predictions: Predictions) -> Sequence[Any]:
        """Return text and place of each answer: one text may stand at two places."""
        texts, starts, ends, _ = self.answer_columns(predictions)
        return list(zip(texts, starts, ends, strict=True))

    def readable(self, predictions: Predictions) -> list[dict[str, Any]]:
        answers = self._answers(predictions)
        return [
            {**({"id": row["id"]} if "id" in row else {}), "question": row["question"],
             "prediction": span.text, "label": row["answers"], "score": span.score}
            for row, span in zip(predictions.encoded.examples, answers, strict=True)
        ]  # fmt: skip

    def _read(self, rows: Dataset) -> tuple[list[str], list[str], list[Answers]]:
        """Return questions, contexts and answers of rows."""
        named = self.require_columns(rows.column_names, tuple(self._columns))
        questions, contexts = (read_texts(rows, named[p], p) for p in ("question", "context"))
        answers = read_answers(
            rows, named["answers"], contexts, unanswerable=self.options.unanswerable
        )
        return questions, contexts, answers

    def _ids(self, rows: Dataset) -> dict[str, list[Any]]:
        there = self._id is not None and self._id in rows.column_names
        return {"id": rows[self._id][:]} if there else {}

    def _answers(self, predictions: Predictions) -> list[Span]:
        """Return each row's best answer over its windows.

        If rows may have no answer, SQuAD 2.0's rule decides (Devlin et al. 2019, section 4.3), with
        a threshold of 0. The answer is empty if the null place scores more than the best span, even
        in the window in which the null place scores least.
        """
        rows = predictions.encoded
        contexts = rows.examples["context"][:]
        spans = [Span()] * len(contexts)
        nulls = np.full(len(contexts), np.inf)
        for window, logits in zip(rows.dataset, predictions.outputs, strict=True):
            row, first, size = window["example"], window["first"], len(window["starts"])
            inside = logits[first : first + size].astype(np.float64)
            score, start, end = best_span(
                inside[:, 0], inside[:, 1], self.options.max_answer_length
            )
            nulls[row] = min(nulls[row], float(logits[window["null"]].sum()))
            if score > spans[row].score:
                place = window["starts"][start], window["ends"][end]
                spans[row] = _span(contexts[row], *place, score)
        if not self.options.unanswerable:
            nulls[:] = -np.inf
        return [
            Span(score=float(null)) if null > span.score else span
            for span, null in zip(spans, nulls, strict=True)
        ]


def _span(context: str, start: int, end: int, score: float) -> Span:
    """Return the text between two places of a context, without outer white space."""
    text = context[start:end].strip()
    start += len(context[start:end]) - len(context[start:end].lstrip())
    return Span(text, start, start + len(text), float(score))


def _squad(given: Sequence[str], wanted: Sequence[list[str]]) -> dict[str, float]:
    """Return SQuAD's exact match and F1, in 0..1, each against the best of the right answers."""
    from torchmetrics.functional.text.squad import squad

    scores = squad(
        [{"id": str(i), "prediction_text": text} for i, text in enumerate(given)],
        [
            {"id": str(i), "answers": {"text": texts or [""], "answer_start": []}}
            for i, texts in enumerate(wanted)
        ],
    )
    return {name: float(value) / 100 for name, value in scores.items()}


def _usable(answers: Sequence[Answers]) -> list[int]:
    """Return rows to learn from: an answer is in the context, or the row is known to have none."""
    return [i for i, answer in enumerate(answers) if answer.usable]


def _logits(outputs: Any) -> Tensor:
    return torch.stack([outputs["start_logits"], outputs["end_logits"]], dim=-1)


def _not_padding(predictions: Predictions) -> np.ndarray:
    """Return a mask (windows, tokens) that is False on padding."""
    places = np.arange(predictions.outputs.shape[1])
    return np.asarray(places < predictions.encoded.lengths[:, None])


def _finite(predictions: Predictions) -> bool:
    return bool(np.isfinite(predictions.outputs[_not_padding(predictions)]).all())
