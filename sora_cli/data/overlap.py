"""Finds rows that are scored but were also trained on, by their raw texts and images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from datasets import Dataset

from sora_cli.data.content import comparable_batches

_BATCH = 10_000


@dataclass(frozen=True)
class Overlap:
    """The rows of a split whose input is also a training row's, to the letter.

    Attributes:
        contradicted: of them, those that have another label there.
    """

    rows: int
    contradicted: int


def find_overlaps(
    train: Dataset, splits: Mapping[str, Dataset], *, texts: Sequence[str], label: str | None
) -> dict[str, Overlap]:
    """Compare splits with the training rows.

    400,000 pairs take about two seconds: of each row, 64 bits of a keyed hash are compared.

    Args:
        texts: columns that the model's input is made of.
        label: column of what is to be predicted; None where it is among the texts.
    """
    inputs, pairs = _hashes(train, texts, label)
    found = {}
    for name, rows in splits.items():
        own_inputs, own_pairs = _hashes(rows, texts, label)
        there = np.isin(own_inputs, inputs)
        agrees = np.isin(own_pairs[there], pairs)
        found[name] = Overlap(int(there.sum()), int((~agrees).sum()))
    return found


def input_hashes(rows: Dataset, texts: Sequence[str]) -> np.ndarray:
    """Return a hash of each row's input, (rows,) int64, equal for equal inputs in one process."""
    return _hashes(rows, texts, None)[0]


def _hashes(
    rows: Dataset, texts: Sequence[str], label: str | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return two arrays, (rows,) int64: of the input alone, and of input and label together."""
    inputs, pairs = [], []
    columns = [*texts, label] if label is not None else list(texts)
    for batch in comparable_batches(rows.select_columns(columns), _BATCH):
        inputs_of = [[str(text) for text in batch[name]] for name in texts]  # as tokenised
        own = [hash(row) for row in zip(*inputs_of, strict=True)]
        inputs.append(np.array(own, dtype=np.int64))
        answers = [0] * len(own) if label is None else [str(value) for value in batch[label]]
        both = [hash(pair) for pair in zip(own, answers, strict=True)]
        pairs.append(np.array(both, dtype=np.int64))
    return np.concatenate(inputs), np.concatenate(pairs)
