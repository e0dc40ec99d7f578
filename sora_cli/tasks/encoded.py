"""Rows as a model's inputs, and a model's outputs on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from datasets import Dataset

NO_EXAMPLES = Dataset.from_dict({})


@dataclass(frozen=True)
class Encoded:
    """Rows as inputs of the model, with the labels that its loss needs.

    Attributes:
        dataset: the model's rows; usually one per raw row, but a long context is read in several
            windows, and packed texts share a row.
        lengths: (rows,) tokens of each row, by which rows are grouped into batches.
        truncated: number of rows cut at max_length.
        longest: tokens of the longest row before the cut; 0: unknown.
        examples: further data for scoring, one row per raw row; families that need none have none.
        lacking: number of raw rows without anything to learn, by remark ("have no text"); each row
            is counted once.
        notes: number of raw rows by any other remark.
        tokens: (rows,) tokens of each row, which decide its memory, if rows are not grouped by
            them; None: `lengths`.
    """

    dataset: Dataset
    lengths: np.ndarray
    truncated: int
    longest: int = 0
    examples: Dataset = NO_EXAMPLES
    lacking: Mapping[str, int] = field(default_factory=dict)
    notes: Mapping[str, int] = field(default_factory=dict)
    tokens: np.ndarray | None = None

    @property
    def sizes(self) -> np.ndarray:
        """The tokens of each row, which decide its memory, (rows,)."""
        return self.lengths if self.tokens is None else self.tokens


@dataclass(frozen=True)
class Lengths:
    """Numbers of tokens of rows before any cut.

    Attributes:
        tokens: (rows,) tokens that the model reads.
        targets: (rows,) tokens that the model is to write, if they have a limit of their own.
        window: number of tokens that is long enough for any row, because longer rows are read in
            several windows; None if rows are not read in windows.
    """

    tokens: np.ndarray
    targets: np.ndarray | None = None
    window: int | None = None


@dataclass(frozen=True)
class Found:
    """The documents of a corpus that are most similar to each query, the best first.

    Attributes:
        places: (queries, k) int64, numbers of documents.
        scores: (queries, k), their cosines.
    """

    places: np.ndarray
    scores: np.ndarray


@dataclass(frozen=True)
class Predictions:
    """A model's outputs on encoded rows.

    Attributes:
        outputs: (rows, ...) the results of `Task.outputs_to_keep`, in the data set's order.
        labels: (rows,) if each row has one label, else None.
        rows: the model's input rows.
        texts: generated texts, one per example; None if nothing was generated.
        reference: (rows, ...) float64, the part of the reference model's outputs that rewards are
            measured against; None for families without one.
        found: the documents of a fixed corpus that the queries find; None: there is no corpus.
    """

    outputs: np.ndarray
    labels: np.ndarray | None
    rows: Encoded | None = None
    texts: Sequence[str] | None = None
    reference: np.ndarray | None = None
    found: Found | None = None

    @property
    def encoded(self) -> Encoded:
        """The model's input rows; only for families whose scores need these rows."""
        assert self.rows is not None
        return self.rows

    @property
    def true_labels(self) -> np.ndarray:
        """The labels, for families with one label per row."""
        assert self.labels is not None
        return self.labels
