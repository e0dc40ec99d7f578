"""The tokens of raw rows, before anything is cut."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset

from sora_cli.data.places import Origin, locating
from sora_cli.run.propose.rules import IMAGES
from sora_cli.tasks.base import Task

_ROWS = 5000  # counted, at equal distances
_WINDOW = 384  # tokens of a window of a long context, as in BERT's and most others' SQuAD


@dataclass(frozen=True)
class Lengths:
    """Tokens of rows.

    Attributes:
        tokens: (rows,) that the model reads.
        targets: (rows,) that it is to write, where these are cut on their own.
        window: tokens that rows need not be longer than, since the rest is read in another window.
    """

    tokens: np.ndarray
    targets: np.ndarray | None = None
    window: int | None = None


def token_lengths(task: Task, rows: Dataset, origin: Origin, processor: Any) -> Lengths | None:
    """Count the tokens of at most 5,000 rows; None for rows without any.

    Args:
        task: bound, with limits that no row reaches.
    """
    step = -(-len(rows) // _ROWS)
    numbers = range(0, len(rows), step)
    seen = rows.select(numbers)
    if task.name in IMAGES:
        if task.name != "image-text":
            return None
        texts = [str(text) for text in seen[task.input_columns[1]][:]]
        ids = processor.tokenizer(texts, verbose=False)["input_ids"]
        return Lengths(np.array([len(row) for row in ids]))
    with locating(origin.of(numbers)):
        encoded = task.encode(seen, processor, training=True)
    targets = None
    if encoded.examples is not None and "target_tokens" in encoded.examples.column_names:
        targets = np.asarray(encoded.examples["target_tokens"][:])
    window = _WINDOW if task.name == "question-answering" else None
    return Lengths(encoded.lengths, targets, window)
