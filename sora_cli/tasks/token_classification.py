"""Token classification: one tag for each word; entities are spans of words with tags."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.functional import cross_entropy

from sora_cli.core.errors import SoraError
from sora_cli.data.processor import pad_column, pad_inputs
from sora_cli.recipe.task_options import TokenClassificationOptions
from sora_cli.tasks.base import Task
from sora_cli.tasks.classes import class_options
from sora_cli.tasks.encoded import NO_EXAMPLES, Encoded, Predictions
from sora_cli.tasks.family.head import without
from sora_cli.tasks.language import IGNORED
from sora_cli.tasks.stand_ins import check_finite, first_class, with_column
from sora_cli.tasks.tags import (
    align,
    find_tag_names,
    read_tags,
    read_words,
    tag_labels,
    tags_inside,
)

_OUTSIDE = "O"
_ENTITY_PARTS = ("B-", "I-", "E-", "S-")
_UNREAD = -1  # a word without a token


class TokenClassification(Task):
    """Each word gets the tag of its first token; cross-entropy."""

    options: TokenClassificationOptions

    def bind(self, train: Dataset) -> None:
        self._columns = self.require_columns(train.column_names, ("tokens", "tags"))
        self.input_columns = (self._columns["tokens"],)
        self.label_column = self._columns["tags"]
        tags = tag_labels(train, self._columns["tags"])
        self._names = find_tag_names(tags, self.data)
        self._trained = replace(tags, values=tags.values[:1], rows=tags.rows[:1])
        self._check_entities()

    def stand_in(self, rows: Dataset) -> Dataset:
        words = rows[self.require_columns(rows.column_names, ["tokens"])["tokens"]][:]
        name = first_class(self.data)
        tags = [[name] * (len(own) if isinstance(own, list) else 0) for own in words]
        return with_column(rows, self.part_column(rows.column_names, "tags"), tags)

    def check(self, rows: Dataset) -> None:
        named = self.require_columns(rows.column_names, tuple(self._columns))
        words = read_words(rows, named["tokens"])
        tag_labels(rows, named["tags"]).check_fits(self._trained)
        read_tags(rows, named["tags"], words, self._names)

    def encode(self, rows: Dataset, processor: Any, *, training: bool = False) -> Encoded:
        named = self.require_columns(rows.column_names, tuple(self._columns))
        words = read_words(rows, named["tokens"])
        tags = read_tags(rows, named["tags"], words, self._names)
        inside = tags_inside(self._names) if self.options.label_all_pieces else None
        limit = self.data.max_length
        made = align(words, tags, processor, max_length=limit, inside=inside)
        tokens = np.asarray(made["tokens"][:])
        made = made.remove_columns("tokens")
        unread = [max(labels) == IGNORED for labels in made["labels"]]
        if training and sum(unread) < len(unread):  # a batch without labels has the loss NaN
            made = made.select([row for row, nothing in enumerate(unread) if not nothing])
        return Encoded(
            made,
            np.array([len(ids) for ids in made["input_ids"]]),
            truncated=int((tokens > limit).sum()),
            longest=int(tokens.max()),
            examples=NO_EXAMPLES if training else Dataset.from_dict({"words": words, "tags": tags}),
            lacking={"have no word within data.max_length": sum(unread)},
        )

    @property
    def label_names(self) -> list[str]:
        return self._names

    def model_options(self) -> dict[str, Any]:
        return class_options(self._names)

    def class_counts(self, rows: Encoded) -> np.ndarray:
        """Count the words of each tag, (tags,), without words beyond max_length."""
        columns = (rows.dataset[name][:] for name in ("labels", "places"))
        tags = [
            tag
            for row in zip(*columns, strict=True)
            for tag, place in zip(*row, strict=True)
            if place != IGNORED
        ]
        return np.bincount(np.asarray(tags, dtype=np.int64), minlength=len(self._names))

    def collator(self, processor: Any) -> Any:
        def collate(rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
            return {**pad_inputs(processor, rows), "labels": pad_column(rows, "labels", IGNORED)}

        return collate

    def loss_items(self, batch: Mapping[str, Any]) -> int:
        return int((batch["labels"] != IGNORED).sum())

    def scored_inputs(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        return without(batch, "labels")

    def outputs_to_keep(self, outputs: Any, batch: Mapping[str, Any]) -> Tensor:
        """Return predicted tags and losses, (rows, tokens, 2); NaN if a logit is not finite."""
        logits = outputs["logits"].float()
        labels = batch["labels"]
        losses = cross_entropy(
            logits.flatten(0, 1), labels.flatten(), reduction="none", ignore_index=IGNORED
        ).view_as(labels)
        # a loss can be finite although a logit is not; such a row must not count as right
        broken = ~torch.isfinite(logits).all(dim=-1) & (labels != IGNORED)
        losses = losses.masked_fill(broken, math.nan)
        return torch.stack([logits.argmax(dim=-1).float(), losses], dim=-1)

    def loss(self, predictions: Predictions) -> float:
        rows = zip(predictions.outputs, predictions.encoded.dataset["labels"], strict=True)
        losses = [kept[: len(labels), 1][np.array(labels) != IGNORED] for kept, labels in rows]
        return float(np.concatenate(losses).mean(dtype=np.float64))

    def metrics(self, predictions: Predictions) -> dict[str, float]:
        if not math.isfinite(self.loss(predictions)):
            return dict.fromkeys(self.metric_names, math.nan)
        wanted = predictions.encoded.examples["tags"][:]
        given = self._tags(predictions)
        scores = {"accuracy": _accuracy(wanted, given)}
        if set(self.metric_names) - {"accuracy"}:
            scores |= self._entity_scores(wanted, given)
        return {name: scores[name] for name in self.metric_names}

    def row_parts(self, predictions: Predictions) -> tuple[Any, ...]:
        wanted = predictions.encoded.examples["tags"][:]
        words = [len(tags) for tags in wanted]
        if not math.isfinite(self.loss(predictions)):
            return "ratio", np.full(len(wanted), math.nan), words
        given = self._tags(predictions)
        if self.best == "accuracy":
            pairs = zip(wanted, given, strict=True)
            return "ratio", [np.equal(a, b).sum() for a, b in pairs], words
        kind = "entity_f1" if self.best == "f1" else self.best
        predicted = [_entities(tags) for tags in self._read(given)]
        true = [_entities(tags) for tags in self._named(wanted)]
        right = [len(a & b) for a, b in zip(predicted, true, strict=True)]
        return kind, right, [*map(len, predicted)], [*map(len, true)]

    def remarks(self, parts: Mapping[str, Encoded]) -> list[str]:
        """Count the words that are scored but have no token."""
        remarks = []
        for name, part in parts.items():
            if part.examples is NO_EXAMPLES:
                continue
            words = sum(len(tags) for tags in part.examples["tags"][:])
            read = sum(p != IGNORED for places in part.dataset["places"][:] for p in places)
            if read < words:
                lost = f"{words - read:,} of {words:,} words of {name} count as missed"
                remarks.append(f"{lost}: they have no token, such as words beyond data.max_length")
        return remarks

    def answer_columns(self, predictions: Predictions) -> list[Sequence[Any]]:
        check_finite(predictions.outputs)
        return [
            [
                [None if tag == _UNREAD else self._names[tag] for tag in tags]
                for tags in self._tags(predictions)
            ]
        ]

    def readable(self, predictions: Predictions) -> list[dict[str, Any]]:
        rows = zip(predictions.encoded.examples, self._tags(predictions), strict=True)
        return [
            {
                "tokens": row["words"],
                "prediction": [None if tag == _UNREAD else self._names[tag] for tag in tags],
                "label": [self._names[tag] for tag in row["tags"]],
            }
            for row, tags in rows
        ]

    def _check_entities(self) -> None:
        """Check that the tags describe entities, which precision, recall and F1 need."""
        entities = [name for name in self.metric_names if name != "accuracy"]
        other = [n for n in self._names if n != _OUTSIDE and not n.startswith(_ENTITY_PARTS)]
        if entities and (other or len(self._names) == 1):
            raise SoraError(
                f"tag '{(other or self._names)[0]}' marks no entity (B-PER, I-PER, ..., or O), but "
                f"{entities[0]} is computed for entities",
                hint="task.metrics=[accuracy]; tags that are numbers: data.label_names=[O, B-PER, "
                "...]",
                key="task.metrics",
            )

    def _tags(self, predictions: Predictions) -> list[list[int]]:
        """Return the predicted tag of each word in each row; _UNREAD if the word was cut off."""
        given = []
        rows = predictions.encoded
        texts = zip(rows.examples["tags"], rows.dataset["places"], predictions.outputs, strict=True)
        for own, listed, kept in texts:
            places = np.array(listed)
            tags, firsts = np.full(len(own), _UNREAD), places != IGNORED
            tags[places[firsts]] = kept[: len(places), 0][firsts].astype(int)
            given.append([int(tag) for tag in tags])
        return given

    def _entity_scores(
        self, wanted: Sequence[Sequence[int]], given: Sequence[Sequence[int]]
    ) -> dict[str, float]:
        """Score all entities; an entity is right if its kind, first word and last word are right.

        Source: Tjong Kim Sang and De Meulder 2003 (conlleval), by seqeval.
        """
        from seqeval.metrics.sequence_labeling import precision_recall_fscore_support

        precision, recall, f1, _ = precision_recall_fscore_support(
            self._named(wanted), self._read(given), average="micro", zero_division=0
        )
        return {"precision": float(precision), "recall": float(recall), "f1": float(f1)}

    def _named(self, rows: Sequence[Sequence[int]]) -> list[list[str]]:
        return [[self._names[tag] for tag in tags] for tags in rows]

    def _read(self, rows: Sequence[Sequence[int]]) -> list[list[str]]:
        """Return the names of predicted tags; a word that was cut off is outside any entity."""
        return [[_OUTSIDE if t == _UNREAD else self._names[t] for t in tags] for tags in rows]


def _entities(tags: list[str]) -> set[tuple[str, int, int]]:
    """Return the entities of one row: kind, first word, last word."""
    from seqeval.metrics.sequence_labeling import get_entities

    return set(get_entities(tags))


def _accuracy(wanted: Sequence[Sequence[int]], given: Sequence[Sequence[int]]) -> float:
    """Return the share of words with the right tag; words without a token count as wrong."""
    return float(np.mean(np.concatenate(wanted) == np.concatenate(given)))
