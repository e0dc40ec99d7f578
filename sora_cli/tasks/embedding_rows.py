"""Rows of queries and documents: each text once, tokenised, and the places of each row's texts.

A row's documents are texts in columns, or lists of texts in one column, whose lengths may differ.
Each right document of a row makes a pair with its query; a row's wrong documents belong to all of
its pairs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset

from sora_cli.data.tokens import TOKENS, tokenise, unread_rows
from sora_cli.tasks.embedding_scores import NO_TEXT

IDS = "input_ids"


@dataclass(frozen=True)
class RowTexts:
    """The texts of rows, each once, and the rows' places among them.

    Attributes:
        queries, documents: different texts.
        places: of each row: its query's, those of its right documents, and of its wrong ones;
            documents are counted on from the queries.
        right: (rows,) number of right documents.
    """

    queries: list[str]
    documents: list[str]
    places: list[list[int]]
    right: list[int]


@dataclass(frozen=True)
class Tokens:
    """Tokenised texts: the tokens that are kept, and facts of each text, (texts,) each."""

    ids: list[list[int]]
    tokens: np.ndarray
    cut: np.ndarray
    unread: np.ndarray

    def join(self, other: Tokens) -> Tokens:
        """Return these texts and others."""
        return Tokens(
            self.ids + other.ids,
            np.concatenate([self.tokens, other.tokens]),
            np.concatenate([self.cut, other.cut]),
            np.concatenate([self.unread, other.unread]),
        )


def texts_in(value: Any) -> list[Any]:
    """Return the texts of a cell: a list's items, or the value itself."""
    return value if isinstance(value, list) else [value]


def read_rows(rows: Dataset, columns: Sequence[str]) -> RowTexts:
    """Read checked rows.

    Args:
        columns: of the query, of its right documents, and of wrong ones.
    """
    queries, documents = dict[str, int](), dict[str, int]()
    places = [[queries.setdefault(text, len(queries))] for text in rows[columns[0]][:]]
    right = [len(texts_in(cell)) for cell in rows[columns[1]][:]]
    for column in columns[1:]:
        for row, cell in zip(places, rows[column][:], strict=True):
            row += (documents.setdefault(text, len(documents)) for text in texts_in(cell))
    after = [[row[0], *(len(queries) + place for place in row[1:])] for row in places]
    return RowTexts(list(queries), list(documents), after, right)


def tokens_of(texts: Sequence[str], prompt: str, limit: int, processor: Any) -> Tokens:
    """Tokenise texts, each after the prompt and cut at the limit."""
    rows = Dataset.from_dict({"text": [f"{prompt}{text}" for text in texts]})
    features = tokenise(rows, processor, max_length=limit)
    tokens = np.asarray(features[TOKENS][:], dtype=np.int64)
    unread = unread_rows(tokens.tolist(), processor, max_length=limit, prefix=prompt)
    return Tokens(features[IDS][:], tokens, tokens > limit, unread)


def pairs_of(rows: Iterable[Sequence[int]], right: Iterable[int]) -> np.ndarray:
    """Return a row for each pair, (pairs, 2 + k): query, right document, wrong ones, `NO_TEXT`.

    Args:
        rows: numbers of each row's texts, in the order of `RowTexts.places`.
        right: number of right documents of each row.
    """
    pairs = [
        [row[0], document, *row[1 + own :]]
        for row, own in zip(rows, right, strict=True)
        for document in row[1 : 1 + own]
    ]
    width = max(map(len, pairs), default=2)
    filled = [pair + [NO_TEXT] * (width - len(pair)) for pair in pairs]
    return np.array(filled, dtype=np.int64).reshape(-1, width)


def padded_keys(rows: Sequence[Sequence[int]]) -> np.ndarray:
    """Return each row's keys, (rows, most keys), filled up with its first one; (rows,) of one."""
    width = max(map(len, rows), default=1)
    filled = [[*row, *[row[0]] * (width - len(row))] for row in rows]
    made = np.array(filled, dtype=np.int64).reshape(-1, width)
    return made if width > 1 else made[:, 0]
