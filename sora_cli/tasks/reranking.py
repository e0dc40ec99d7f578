"""Rerankers: a number for a query with a document, read together, orders the documents of a query.

Rows hold a query with lists of documents and labels, or a single document of a query, whose
documents are then those of all rows with its text. Losses and scores are those of sentence-
transformers' CrossEncoder: binary cross-entropy of each pair (Nogueira and Cho 2019, arXiv
1901.04085), and LambdaLoss.

Encoded rows are pairs; for a loss that compares a query's documents, trained rows are queries.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Value
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from sora_cli.core.errors import SoraError
from sora_cli.core.words import shown_value
from sora_cli.data.overlap import input_hashes
from sora_cli.data.places import RowError
from sora_cli.data.processor import pad_inputs
from sora_cli.data.repeats import list_hashes
from sora_cli.data.tokens import TOKENS, TRUNCATED, grouped, token_counts, tokenise, unread_rows
from sora_cli.recipe.reranking_options import LISTED, SINGLE, RerankingOptions
from sora_cli.tasks.base import Task
from sora_cli.tasks.encoded import Encoded, Predictions
from sora_cli.tasks.family.head import without
from sora_cli.tasks.ranking_scores import PADDED, compared, lambda_sum, ranked
from sora_cli.tasks.stand_ins import check_finite, with_column
from sora_cli.tasks.texts import check_text, require_column, row_error

_PARTS = ("query", "documents", "labels")
_LABELS, _PLACES = "labels", "places"  # in a batch
_IDS, _KEY, _RANKING = "input_ids", "key", "ranking"


@dataclass(frozen=True)
class Pairs:
    """The collator: pads pairs, of queries with their documents one after the other."""

    tokenizer: Any

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Return the inputs (pairs, tokens) and the labels, if rows have them.

        Labels are (pairs,); of queries (queries, documents), padded with -inf, with the place of
        each pair among them.
        """
        if not isinstance(rows[0][_IDS][0], list):
            batch = pad_inputs(self.tokenizer, rows)
            if _LABELS in rows[0]:
                batch[_LABELS] = torch.tensor([row[_LABELS] for row in rows])
            return batch
        names = [name for name in self.tokenizer.model_input_names if name in rows[0]]
        pairs = [
            dict(zip(names, pair, strict=True))
            for row in rows
            for pair in zip(*(row[name] for name in names), strict=True)
        ]
        batch = pad_inputs(self.tokenizer, pairs)
        labels = [torch.tensor(row[_LABELS]) for row in rows]
        batch[_LABELS] = nn.utils.rnn.pad_sequence(labels, True, PADDED)
        batch[_PLACES] = (batch[_LABELS] > PADDED).flatten().nonzero().squeeze(1)
        return batch


class Reranking(Task):
    """A model with one number as its head; its larger numbers are for more relevant documents."""

    options: RerankingOptions
    _listed: bool
    """True if a row has a list of documents; set by `bind`."""
    _labelled = True
    """False if the labels are stand-ins."""

    @classmethod
    def is_for(cls, config: Any) -> bool:
        del config  # such a model looks like one of sequence-regression
        return False

    @property
    def answered_by(self) -> Sequence[str]:
        return (LISTED,) if self._listed else (SINGLE,)

    def bind(self, train: Dataset) -> None:
        columns = self.require_columns(train.column_names, _PARTS)
        self._query, self._documents, self.label_column = (columns[part] for part in _PARTS)
        self.input_columns = (self._query, self._documents)
        self._listed = _has_lists(train, self._documents)

    def stand_in(self, rows: Dataset) -> Dataset:
        self._labelled = False
        documents, label = (self.part_column(rows.column_names, part) for part in _PARTS[1:])
        require_column(documents, rows.column_names, key="data.columns.documents",
                       hint="name the documents: data.columns.documents=COLUMN")  # fmt: skip
        values = rows[documents][:]
        lists = _has_lists(rows, documents)
        blank = [[0.0] * len(v or ()) for v in values] if lists else [0.0] * len(values)
        return with_column(rows, label, blank)

    def raw_keys(self, rows: Dataset) -> list[np.ndarray]:
        """Return keys of the queries: rows of one query depend on each other."""
        return [input_hashes(rows, [self._query])]

    def input_keys(self, rows: Encoded, *, answers: bool = False) -> list[np.ndarray]:
        del answers
        return [np.asarray(rows.examples[_KEY][:], dtype=np.uint64)]

    def check(self, rows: Dataset) -> None:
        for column in (*self.input_columns, self.label_column):
            require_column(str(column), rows.column_names)
        for row, query in enumerate(rows[self._query][:]):
            check_text(query, self._query, row, key="data.columns.query")
        documents = self._checked_documents(rows)
        labels = self._checked_labels(rows, documents)
        if not self._labelled:
            return
        if not any(label > 0 for own in labels for label in own):
            raise RowError(
                f"no document is relevant: column '{self.label_column}' holds no number above 0",
                hint="name the column of relevance: data.columns.labels=COLUMN",
                key="data.columns.labels",
            )
        if np.bincount(self._rankings(rows), [len(own) for own in documents]).max() < 2:
            raise RowError(
                "each query has one document: there is nothing to rank",
                hint="give queries with several documents, or score pairs by themselves: "
                "task.name=sequence-classification",
                key="data.columns.documents",
            )

    def _checked_documents(self, rows: Dataset) -> list[list[str]]:
        column, key, texts = self._documents, "data.columns.documents", []
        for row, value in enumerate(rows[column][:]):
            if not self._listed:
                check_text(value, column, row, key=key)
            elif not value:
                raise row_error(f"column '{column}' has no documents", row, key=key)
            for document in value if self._listed else ():
                check_text(document, column, row, key=key)
            texts.append([str(text) for text in (value if self._listed else [value])])
        return texts

    def _checked_labels(
        self, rows: Dataset, documents: Sequence[Sequence[str]]
    ) -> list[list[float]]:
        column, key, labels = self.label_column, "data.columns.labels", []
        for row, value in enumerate(rows[column][:]):
            if isinstance(value, list) != self._listed:
                form = "lists" if self._listed else "single texts"
                what = f"column '{column}' holds {shown_value(value)}"
                raise row_error(f"{what}, but '{self._documents}' {form}", row, key=key)
            own = value if self._listed else [value]
            if len(own) != len(documents[row]):
                what = f"{len(documents[row])} documents in '{self._documents}'"
                raise row_error(
                    f"{what}, but {len(own)} labels in '{column}'", row, key=key,
                    hint="give each document a label",
                )  # fmt: skip
            wrong = [one for one in own if not _is_relevance(one)]
            if wrong:
                what = f"column '{column}' holds {shown_value(wrong[0])}"
                raise row_error(f"{what}, which is no number of at least 0", row, key=key)
            if self.options.loss == "binary" and max(own) > 1:
                what = f"column '{column}' holds {max(own):g}: loss binary takes labels up to 1"
                raise row_error(
                    what, row, key=key, hint="take labels of any size: task.loss=lambda"
                )
            labels.append([float(one) for one in own])
        return labels

    def _rankings(self, rows: Dataset) -> np.ndarray:
        """Return the number of the ranking that each row belongs to, (rows,)."""
        if self._listed:
            return np.arange(len(rows))
        known: dict[str, int] = {}
        return np.array([known.setdefault(str(q), len(known)) for q in rows[self._query][:]])

    def encode(self, rows: Dataset, processor: Any, *, training: bool = False) -> Encoded:
        documents = self._checked_documents(rows)
        labels, rankings = self._checked_labels(rows, documents), self._rankings(rows)
        queries = [str(query) for query in rows[self._query][:]]
        owner = np.repeat(np.arange(len(rows)), [len(own) for own in documents])  # row of each pair
        texts = {
            "query": [queries[row] for row in owner],
            "document": [text for own in documents for text in own],
        }
        limit = self.data.max_length
        flat = tokenise(Dataset.from_dict(texts), processor, max_length=limit)
        tokens, lengths = flat[TOKENS][:], token_counts(flat)
        cut = np.unique(owner[np.asarray(flat[TRUNCATED][:])])
        unread = owner[unread_rows(tokens, processor, max_length=limit, pair=True)]
        flat = flat.remove_columns([TRUNCATED, TOKENS])
        every = np.concatenate([np.asarray(own) for own in labels])
        lacking = {"have no text within data.max_length": len(np.unique(unread))}
        notes, sized = {}, None
        if training and self.options.loss == "lambda":
            wanted = _differing(every, rankings[owner])[rankings]
            wanted[unread] = True  # counted above
            lacking["have no two documents with different labels"] = int((~wanted).sum())
            flat, lengths, sized = _joined(flat, every, lengths, rankings[owner], wanted[owner])
        elif training:
            flat = flat.add_column(_LABELS, every)
        elif self._labelled:
            none = np.bincount(rankings[owner], every > 0) == 0
            what = "are of a query without a relevant document, which scores 0"
            notes[what] = int(none[rankings].sum())
        examples: dict[str, Any] = {_KEY: _query_keys(queries, processor, limit)}
        if not training:
            examples |= {"query": queries, "documents": documents, "labels": labels}
            examples[_RANKING] = rankings
        return Encoded(
            flat,
            lengths,
            truncated=len(cut),
            longest=max(tokens),
            examples=Dataset.from_dict(examples),
            lacking=lacking,
            notes=notes,
            tokens=sized,
        )

    def model_options(self) -> dict[str, Any]:
        return {"num_labels": 1, "problem_type": "regression"}

    def adapt_model(self, model: nn.Module, processor: Any) -> None:
        super().adapt_model(model, processor)
        config: Any = model.config
        if config.is_encoder_decoder and self.options.loss == "lambda":
            raise SoraError(
                f"loss lambda is not for a {config.model_type} model",
                hint="task.loss=binary, or name an encoder or a decoder: model.path=MODEL",
                key="task.loss",
            )

    def collator(self, processor: Any) -> Any:
        return Pairs(processor)

    def loss_items(self, batch: Mapping[str, Any]) -> int:
        """Return the number of pairs; of queries that of two documents with different labels."""
        if self.options.loss == "binary":
            return len(batch[_LABELS])
        return int(compared(batch[_LABELS]).sum())

    def inputs_of(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        return without(batch, _LABELS, _PLACES)

    def loss_of(self, outputs: Any, batch: Mapping[str, Any]) -> Tensor:
        scores, labels = outputs["logits"][:, 0], batch[_LABELS]
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        if self.options.loss == "binary":
            return binary_cross_entropy_with_logits(scores, labels.to(scores))
        table = scores.new_zeros(labels.numel()).index_put((batch[_PLACES],), scores)
        return lambda_sum(table.view_as(labels), labels) / compared(labels).sum().clamp(min=1)

    def outputs_to_keep(self, outputs: Any, batch: Mapping[str, Any]) -> Tensor:
        """Return the number of each pair, (pairs,)."""
        kept: Tensor = outputs["logits"][:, 0]
        return kept

    def constant_loss(self, rows: Encoded) -> float | None:
        """Return the loss of one number for every pair: the mean label's."""
        if self.options.loss == "lambda":
            return None
        mean = float(np.mean(rows.dataset[_LABELS][:]))
        return -sum(p * math.log(p) for p in (mean, 1 - mean) if p > 0)

    def loss(self, predictions: Predictions) -> float:
        rankings = _by_ranking(predictions)
        scores, labels = (
            [torch.from_numpy(np.asarray(ranking[i], dtype=np.float64)) for ranking in rankings]
            for i in (0, 1)
        )
        if self.options.loss == "binary":
            return float(binary_cross_entropy_with_logits(torch.cat(scores), torch.cat(labels)))
        each = [(lambda_sum(s[None], y[None]), compared(y[None]).sum())
                for s, y in zip(scores, labels, strict=True)]  # fmt: skip
        total, items = (float(torch.stack(part).sum()) for part in zip(*each, strict=True))
        return total / max(items, 1)

    def metrics(self, predictions: Predictions) -> dict[str, float]:
        found = _scores(predictions)
        return {name: float(found[name].mean()) for name in self.metric_names}

    def row_parts(self, predictions: Predictions) -> tuple[Any, ...]:
        """Return the score of each row's ranking; a ranking of several rows counts once."""
        rankings = np.asarray(predictions.encoded.examples[_RANKING][:])
        found = _scores(predictions)[self.best][rankings]
        if self._listed:
            return "mean", found
        return "mean by query", found, np.ones(len(rankings)), rankings

    def answer_columns(self, predictions: Predictions) -> list[Sequence[Any]]:
        rows = self._checked(predictions)
        return [rows if self._listed else [number for (number,) in rows]]

    def compared_answers(self, predictions: Predictions) -> Sequence[Any]:
        """Return the text of the document that each row's query puts first."""
        self._checked(predictions)
        best = _first_documents(predictions)
        rankings = predictions.encoded.examples[_RANKING][:]
        if len(predictions.outputs) == len(best):
            raise RowError(
                "models are compared by the document that they put first, and each query has one",
                hint="give queries with several documents",
                key="data.columns.documents",
            )
        return [best[ranking] for ranking in rankings]

    def _checked(self, predictions: Predictions) -> list[list[float]]:
        """Return the numbers of each row's documents, which must be finite."""
        ends = np.cumsum([len(own) for own in predictions.encoded.examples["documents"][:]])
        # by row: the sum of a row is finite if all of its numbers are
        check_finite(np.add.reduceat(predictions.outputs, [0, *ends[:-1]]))
        return [own.tolist() for own in np.split(predictions.outputs, ends[:-1])]

    def readable(self, predictions: Predictions) -> list[dict[str, Any]]:
        numbers, examples = self._checked(predictions), predictions.encoded.examples
        rows = list(zip(examples["query"][:], examples["documents"][:], strict=True))
        labels = examples["labels"][:]
        if not self._listed:
            return [
                {"source": [query, document], "prediction": number, "label": label}
                for (query, (document,)), (number,), (label,) in zip(
                    rows, numbers, labels, strict=True
                )
            ]
        first, right = _first_documents(predictions), _first_documents(predictions, relevant=True)
        return [
            {"source": query, "prediction": best, "label": wanted, "scores": own}
            for (query, _), best, wanted, own in zip(rows, first, right, numbers, strict=True)
        ]


def _has_lists(rows: Dataset, column: str) -> bool:
    # datasets names the features of lists otherwise in each version
    return not isinstance(rows.features[column], Value)


def _is_relevance(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and value >= 0


def _differing(labels: np.ndarray, rankings: np.ndarray) -> np.ndarray:
    """Return which rankings have two different labels, (rankings,).

    Args:
        labels, rankings: (pairs,).
    """
    most, least = (np.full(rankings.max() + 1, end) for end in (-np.inf, np.inf))
    np.maximum.at(most, rankings, labels)
    np.minimum.at(least, rankings, labels)
    return np.asarray(most > least)


def _joined(
    flat: Dataset, labels: np.ndarray, lengths: np.ndarray, rankings: np.ndarray, wanted: np.ndarray
) -> tuple[Dataset, np.ndarray, np.ndarray]:
    """Return a row for each ranking, the tokens of its longest document, and of all, padded.

    Args:
        flat: the pairs.
        labels, lengths, rankings, wanted: (pairs,); the last says which pairs are taken.
    """
    order = np.flatnonzero(wanted)[np.argsort(rankings[wanted], kind="stable")]
    _, sizes = np.unique(rankings[order], return_counts=True)
    ends = np.cumsum(sizes)
    if not len(order):
        return flat.select([]), lengths[order], lengths[order]
    rows = grouped(flat.add_column(_LABELS, labels).select(order), ends)
    longest = np.maximum.reduceat(lengths[order], [0, *ends[:-1]])
    return rows, longest, longest * sizes


def _query_keys(queries: Sequence[str], processor: Any, limit: int) -> np.ndarray:
    """Return a hash of each query as the model reads it, (rows,)."""
    own, which = np.unique(queries, return_inverse=True)
    read = tokenise(Dataset.from_dict({"query": own.tolist()}), processor, max_length=limit)
    return list_hashes(read, _IDS)[which]


def _by_ranking(predictions: Predictions) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the numbers and the labels of each ranking's documents."""
    order, ends = _order(predictions)
    labels = np.array([y for own in predictions.encoded.examples["labels"][:] for y in own])
    parts = (np.split(values[order], ends[:-1]) for values in (predictions.outputs, labels))
    return list(zip(*parts, strict=True))


def _order(predictions: Predictions) -> tuple[np.ndarray, np.ndarray]:
    """Return the pairs, sorted by their rankings, and the end of each ranking among them."""
    examples = predictions.encoded.examples
    sizes = [len(own) for own in examples["documents"][:]]
    rankings = np.repeat(np.asarray(examples[_RANKING][:]), sizes)
    return np.argsort(rankings, kind="stable"), np.cumsum(np.bincount(rankings))


def _first_documents(predictions: Predictions, *, relevant: bool = False) -> list[str]:
    """Return the document that each ranking puts first, of all or of the relevant ones only.

    "": none is relevant.
    """
    order, ends = _order(predictions)
    texts = [text for own in predictions.encoded.examples["documents"][:] for text in own]
    rankings = _by_ranking(predictions)
    found = []
    for (numbers, labels), pairs in zip(rankings, np.split(order, ends[:-1]), strict=True):
        among = np.where(labels > 0, numbers, -np.inf) if relevant else numbers
        lacks = relevant and not (labels > 0).any()
        found.append("" if lacks else texts[pairs[among.argmax()]])
    return found


def _scores(predictions: Predictions) -> dict[str, np.ndarray]:
    """Return each metric of each ranking, (rankings,); NaN if any number is not finite."""
    rankings = _by_ranking(predictions)
    finite = bool(np.isfinite(predictions.outputs).all())
    made = [ranked(*ranking) if finite else (math.nan, math.nan) for ranking in rankings]
    both = np.array(made, dtype=np.float64).T
    return dict(zip(RerankingOptions.METRICS, both, strict=True))
