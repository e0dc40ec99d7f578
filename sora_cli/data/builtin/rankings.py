"""Questions with four texts each, one of which has the answer (`builtin://rankings`).

The texts are those of `builtin://passages`. The three others are about other people or companies,
and have many words of the question.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Any

from sora_cli.data.builtin.passages import load_passages

_DOCUMENTS = 4
_DRAWN = 60  # texts, of which those with the most words of the question are taken


def load_rankings(
    *, train_rows: int = 400, validation_rows: int = 150, seed: int = 0
) -> dict[str, list[dict[str, object]]]:
    """Make the training and validation rows.

    Args:
        train_rows, validation_rows: number of questions of each split.
        seed: the same seed gives the same rows.

    Returns:
        "train" and "validation": rows with the columns `query`, `documents` and `labels` (1 for the
        text with the answer, else 0). A random order has an ndcg_at_10 of 0.64 in the mean.
    """
    made = load_passages(train_rows=train_rows, validation_rows=validation_rows, seed=seed)
    rng = random.Random(f"{seed}/rankings")
    return {split: _ranked(rows, rng) for split, rows in made.items()}


def _ranked(rows: Sequence[dict[str, Any]], rng: random.Random) -> list[dict[str, object]]:
    words = [_words(row["context"]) for row in rows]
    made: list[dict[str, object]] = []
    for own in rows:
        asked, query = _words(own["question"]), str(own["question"])
        subjects = [name for name in str(own["title"]).split(" and ") if name in query]
        others = [i for i, row in enumerate(rows) if not any(s in row["context"] for s in subjects)]
        drawn = rng.sample(others, min(_DRAWN, len(others)))
        drawn.sort(key=lambda i: -len(words[i] & asked))
        chosen = [(rows[i]["context"], 0.0) for i in drawn[: _DOCUMENTS - 1]]
        chosen.append((own["context"], 1.0))
        rng.shuffle(chosen)
        documents, labels = zip(*chosen, strict=True)
        made.append({"query": query, "documents": list(documents), "labels": list(labels)})
    return made


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))
