"""Scores and answers of vectors: what queries find, in a split's own documents or in a corpus.

Without a corpus each query chooses among all documents of its split, so that the rows depend on
each other. In a fixed corpus (`data.corpus`) every query is searched by itself: the score of a row
is the same whatever other rows are scored. There a query with several rows counts once.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.functional import normalize

from sora_cli.core.errors import SoraError
from sora_cli.core.words import shown_value
from sora_cli.data.places import RowError
from sora_cli.recipe.embedding_options import FOUND, EmbeddingOptions
from sora_cli.tasks.base import Task
from sora_cli.tasks.corpus import Corpus, Measured, Reader, best_documents, open_corpus
from sora_cli.tasks.embedding_batch import SCORE
from sora_cli.tasks.embedding_rows import pairs_of
from sora_cli.tasks.embedding_scores import AT, found, nearest, ranks_of
from sora_cli.tasks.encoded import Encoded, Found, Predictions
from sora_cli.tasks.metrics import number_parts
from sora_cli.tasks.row_scores import RowScores, row_scores
from sora_cli.tasks.stand_ins import check_finite
from sora_cli.tasks.texts import row_error

PARTS = ("query", "positive")
"""The parts of a row that are answered."""
_WANTED, _GRADE = "wanted", "grade"  # of scored rows: their documents in the corpus, with grades
_RIGHT = ("accuracy_at_1", "accuracy_at_10")  # a query is right or wrong by definition
_ONE = ("recall_at_1", "recall_at_10")  # the same where each query has one document


class Retrieval(Task):
    """The side of a family of vectors that scores and answers."""

    options: EmbeddingOptions
    _there: tuple[str, ...] = PARTS  # of a row: the texts that are answered
    _several = False  # the right documents are in lists
    _answers = False  # rows are only answered: `stand_in` made their documents
    _columns: dict[str, str]
    _texts: tuple[str, ...]  # columns: queries, documents, wrong documents
    _measured: Measured | None = None

    @property
    def corpus(self) -> Corpus | None:
        name = self.data.corpus
        return open_corpus(name) if name is not None and self.options.searches else None

    @property
    def answered_by(self) -> Sequence[str]:
        if self.data.corpus is not None:
            return FOUND
        names = zip(PARTS, self.options.ANSWERED_BY, strict=True)
        ends = {"query": "", "positive": "s" if self._several else ""}
        return tuple(f"{name}{ends[part]}" for part, name in names if part in self._there)

    @property
    def answered_columns(self) -> tuple[str, ...]:
        return self.input_columns if self.corpus is None else self._texts[:1]

    @property
    def searches_alone(self) -> bool:
        """True for queries without documents: the corpus has them, and rows have stand-ins."""
        return self._answers and self.corpus is not None

    @property
    def _scored(self) -> bool:
        """True if rows are pairs of texts with a score."""
        return self.options.loss == "cosent"

    def corpus_tokens(self, processor: Any) -> Measured | None:
        corpus = self.corpus
        if corpus is not None and self._measured is None:
            parts = (self.documents(texts, processor) for texts in corpus.parts())
            self._measured = Measured.of(corpus, parts)
        return self._measured

    def some_documents(self, processor: Any, numbers: np.ndarray) -> Encoded | None:
        corpus = self.corpus
        return None if corpus is None else self.documents(corpus.texts(numbers), processor)

    @abstractmethod
    def documents(self, texts: Sequence[str], processor: Any) -> Encoded:
        """Return documents as inputs of the model."""

    def grade_column(self, columns: Sequence[str]) -> dict[str, str]:
        """Return the column of grades, if documents lie in a corpus and rows have one."""
        if self.data.corpus is not None:
            return self.find_columns(columns, [_GRADE])
        if _GRADE in self.data.columns:
            raise SoraError(
                "data.columns.grade is of documents in a corpus, and the recipe names none",
                hint="data.corpus=FILE",
                key="data.columns.grade",
            )
        return {}

    def in_texts(self, rows: Dataset) -> Dataset:
        """Return rows with the texts of the documents that they name by id."""
        corpus = None if self.searches_alone else self.corpus
        if corpus is None:
            return rows
        for column in self._texts[1:]:
            texts = corpus.named(rows[column][:], column)
            if texts is not None:
                names = rows.column_names
                rows = rows.remove_columns([column]).add_column(column, texts).select_columns(names)
        return rows

    def wanted(self, rows: Dataset) -> dict[str, Any]:
        """Return the number and the grade of each scored row's document in the corpus, if any."""
        corpus = None if self.searches_alone else self.corpus
        if corpus is None:
            return {}
        numbers = corpus.numbers(rows[self._texts[1]][:], self._texts[1])
        return {_WANTED: numbers, _GRADE: self._grades(rows, [len(own) for own in numbers])}

    def _grades(self, rows: Dataset, documents: Sequence[int]) -> list[list[float]]:
        """Return a grade for each right document of each row; one number is the grade of all."""
        column, made = self._columns.get(_GRADE), []
        given = [1.0] * len(rows) if column is None else rows[column][:]
        for row, (cell, right) in enumerate(zip(given, documents, strict=True)):
            grades = cell if isinstance(cell, list) else [cell] * right
            for grade in grades:
                if isinstance(grade, bool) or not isinstance(grade, int | float) or not grade > 0:
                    what = f"column '{column}' holds {shown_value(grade)}, no grade above 0"
                    raise row_error(what, row, key="data.columns.grade")
            if len(grades) != right:
                what = f"column '{column}' has {len(grades)} grades for {right} documents"
                raise row_error(what, row, key="data.columns.grade")
            made.append([float(grade) for grade in grades])
        return made

    def adapted_rows(self, rows: Encoded) -> int | None:
        return _queries(rows) if self.options.queries_alone else None

    def settled(self, rows: Encoded, outputs: np.ndarray, reader: Reader) -> np.ndarray:
        first = self.adapted_rows(rows)
        if first is None:
            return outputs

        def documents() -> Encoded:
            places = range(first, len(rows.dataset))
            return Encoded(rows.dataset.select(places), rows.lengths[first:], truncated=0)

        return np.concatenate([outputs, reader.bare(rows, documents)])

    def found(self, rows: Encoded, outputs: np.ndarray, reader: Reader) -> Found | None:
        corpus = self.corpus
        if corpus is None:
            return None
        queries = as_tensor(outputs)[: _queries(rows)]
        parts = reader.vectors(
            corpus,
            lambda texts: self.documents(texts, reader.processor),
            bare=self.options.queries_alone,
        )
        return best_documents(queries, parts, max(AT, self.options.top_k))

    def blank_scores(self, rows: Encoded) -> RowScores | None:
        if self.corpus is None:
            return None
        none = np.full((_queries(rows), 1), -1)
        found = Found(none, np.zeros(none.shape))
        return self.row_scores(Predictions(np.zeros((1, 1)), None, rows, found=found))

    def metrics(self, predictions: Predictions) -> dict[str, float]:
        return {
            name: self.loss(predictions)
            if name == "loss"
            else row_scores(name, *self._parts(predictions, name)).value
            for name in self.metric_names
        }

    def row_parts(self, predictions: Predictions) -> tuple[Any, ...]:
        """Return the main metric by row."""
        if self.best == "loss":
            raise SoraError(
                "the loss compares all rows: a single row has no loss",
                hint=f"task.best_metric={'spearman' if self._scored else 'ndcg_at_10'}",
                key="task.best_metric",
            )
        return self._parts(predictions, self.best)

    def _parts(self, predictions: Predictions, metric: str) -> tuple[Any, ...]:
        raw, among = predictions.encoded.examples, predictions.found
        if not np.isfinite(predictions.outputs).all():
            return "mean", np.full(len(raw), math.nan)
        if self._scored:
            return number_parts(metric, self._cosines(predictions), np.asarray(raw[SCORE][:]))
        if among is not None:
            return self._in_corpus(predictions.encoded, among, metric)
        queries, documents, places = _split(predictions)
        # a query's right documents are those of all rows with this query
        pairs = pairs_in(predictions.encoded, "places")[:, :2]
        wanted = np.unique(pairs - [0, len(queries)], axis=0)
        ranks = ranks_of(queries, documents, wanted)
        return "mean", found(ranks, wanted[:, 0], len(queries))[metric][places[:, 0]]

    def _in_corpus(self, rows: Encoded, among: Found, metric: str) -> tuple[Any, ...]:
        """Return the parts of a metric of rows whose queries are searched in the corpus."""
        query = np.array([row[0] for row, _ in rows_in(rows, "places")], dtype=np.int64)
        if not np.isfinite(among.scores).all():
            return "mean", np.full(len(query), math.nan)
        wanted, given = (rows.examples[column][:] for column in (_WANTED, _GRADE))
        asked = np.repeat(query, [len(own) for own in wanted])
        pairs = np.stack([asked, np.concatenate([np.asarray(own) for own in wanted])], axis=1)
        pairs, which = np.unique(pairs, axis=0, return_inverse=True)
        grades = np.zeros(len(pairs))  # of a document that a query has twice, the better one
        np.maximum.at(grades, which.ravel(), np.concatenate([np.asarray(own) for own in given]))
        here = among.places[pairs[:, 0]] == pairs[:, 1:]
        ranks = np.where(here.any(axis=1), here.argmax(axis=1) + 1, np.iinfo(np.int64).max)
        values = found(ranks, pairs[:, 0], len(among.places), grades)[metric][query]
        right = metric in _RIGHT or (metric in _ONE and len(pairs) == len(among.places))
        return f"{'right' if right else 'mean'} by query", values, np.ones(len(query)), query

    def _cosines(self, predictions: Predictions) -> np.ndarray:
        queries, documents, places = _split(predictions)
        pairs = queries[places[:, 0]], documents[places[:, 1]]
        return torch.cosine_similarity(*pairs, dim=1).numpy()

    def answer_columns(self, predictions: Predictions) -> list[Sequence[Any]]:
        check_finite(predictions.outputs)
        rows, corpus = list(rows_in(predictions.encoded, "places")), self.corpus
        among, queries = predictions.found, [row[0] for row, _ in rows]
        if corpus is not None and among is not None:
            check_finite(among.scores)
            best = among.places[queries, : self.options.top_k].tolist()
            ids = [[corpus.ids[number] for number in row] for row in best]
            return [ids, among.scores[queries, : self.options.top_k].tolist()]
        vectors = predictions.outputs
        answers: dict[str, Sequence[Any]] = {"query": vectors[queries].tolist()}
        documents = [vectors[row[1 : 1 + right]].tolist() for row, right in rows]
        answers["positive"] = documents if self._several else [only for (only,) in documents]
        return [answers[part] for part in self._there]

    def compared_answers(self, predictions: Predictions) -> Sequence[Any]:
        """Return the document that is nearest to each query: its text, or its id in the corpus."""
        check_finite(predictions.outputs)
        if self._there != PARTS and predictions.found is None:
            raise RowError(
                "models are compared by the document that they find for each query",
                hint="give rows of queries and documents: data.columns.positive=COLUMN",
                key="data.columns.positive",
            )
        return self._nearest(predictions)

    def _nearest(self, predictions: Predictions) -> list[str]:
        queries, documents, places = _split(predictions)
        corpus, among = self.corpus, predictions.found
        if corpus is not None and among is not None:
            check_finite(among.scores)
            return [corpus.ids[among.places[query, 0]] for query in places[:, 0]]
        texts = predictions.encoded.dataset["text"][:][len(queries) :]
        best = nearest(normalize(queries, dim=-1), normalize(documents, dim=-1))
        return [texts[best[query]] for query in places[:, 0]]

    def readable(self, predictions: Predictions) -> list[dict[str, Any]]:
        texts, raw = predictions.encoded.dataset["text"][:], predictions.encoded.examples
        cosines = self._cosines(predictions).tolist()
        pairs = [(texts[row[0]], texts[row[1]]) for row in raw["places"][:]]
        if self._scored:
            rows = zip(pairs, cosines, raw[SCORE][:], strict=True)
            return [{"source": list(p), "prediction": c, "label": y} for p, c, y in rows]
        chosen, labels = self._nearest(predictions), [document for _, document in pairs]
        if self.corpus is not None:
            labels = [self.corpus.ids[numbers[0]] for numbers in raw[_WANTED][:]]
        return [
            {"source": query, "prediction": best, "label": label, "cosine": cosine}
            for (query, _), best, label, cosine in zip(pairs, chosen, labels, cosines, strict=True)
        ]


def rows_in(rows: Encoded, column: str) -> Iterator[tuple[list[int], int]]:
    """Yield each raw row's numbers of its texts, and how many right documents it has."""
    yield from zip(rows.examples[column][:], rows.examples["right"][:], strict=True)


def pairs_in(rows: Encoded, column: str) -> np.ndarray:
    """Return a row for each query with a right document: see `pairs_of`."""
    return pairs_of(rows.examples[column][:], rows.examples["right"][:])


def as_tensor(outputs: np.ndarray) -> Tensor:
    """Return outputs of a model, which may lie anyhow in memory."""
    return torch.from_numpy(np.ascontiguousarray(outputs))


def _queries(rows: Encoded) -> int:
    """Return the number of different queries of scored rows."""
    return max(row[0] for row, _ in rows_in(rows, "places")) + 1


def _split(predictions: Predictions) -> tuple[Tensor, Tensor, np.ndarray]:
    """Return vectors of queries and of documents; each row's places of one and its first other."""
    vectors, queries = as_tensor(predictions.outputs), _queries(predictions.encoded)
    rows = rows_in(predictions.encoded, "places")
    places = np.array([row[:2] for row, _ in rows], dtype=np.int64)
    return vectors[:queries], vectors[queries:], places - [0, queries]
