"""Questions, contexts and answers of raw rows, and each answer's place in its context.

Answers are SQuAD's texts with places ({text: [...], answer_start: [...]}, or a list with one such
mapping per answer), or texts without places (ReCoRD), for which the first occurrence counts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset

from sora_cli.core.words import shown_value
from sora_cli.tasks.texts import row_error


@dataclass(frozen=True)
class Answers:
    """All right answers of a row.

    Attributes:
        texts: empty if the context has no answer.
        place: (first character, character after the last) of the first answer that occurs in the
            context; None if no answer occurs there.
    """

    texts: list[str]
    place: tuple[int, int] | None

    @property
    def usable(self) -> bool:
        """True if an answer occurs in the context, or the row is known to have none."""
        return self.place is not None or not self.texts


def read_texts(rows: Dataset, column: str, part: str) -> list[str]:
    """Return a column's texts; a row without a text is an error."""
    texts = []
    for row, value in enumerate(rows[column][:]):
        if not isinstance(value, str) or not value.strip():
            holds = f"holds {shown_value(value)}" if value and str(value).strip() else "has no text"
            raise row_error(f"column '{column}' {holds}", row, key=f"data.columns.{part}")
        texts.append(value)
    return texts


def read_answers(
    rows: Dataset, column: str, contexts: Sequence[str], *, unanswerable: bool
) -> list[Answers]:
    """Return the answers of each row.

    Args:
        contexts: (rows,) the texts that should contain the answers.
        unanswerable: True if rows may have no answer.
    """
    answers = []
    for row, (value, context) in enumerate(zip(rows[column][:], contexts, strict=True)):
        pairs = _pairs(value)
        if pairs is None:
            what = f"column '{column}' holds {shown_value(value)}, which is not a list of answers"
            raise row_error(what, row, key="data.columns.answers")
        if not pairs and not unanswerable:
            raise row_error(
                f"column '{column}' has no answer",
                row,
                key="task.unanswerable",
                hint="task.unanswerable=true, if such a row means that the context has no answer",
            )
        places = (_place(text, start, context) for text, start in pairs)
        place = next((place for place in places if place is not None), None)
        answers.append(Answers([text for text, _ in pairs], place))
    return answers


def _pairs(value: Any) -> list[tuple[str, int | None]] | None:
    """Return pairs of text and start (None: unknown); None if the value does not hold answers."""
    if isinstance(value, str):
        value = [value]
    if isinstance(value, Mapping):
        texts, starts = value.get("text"), value.get("answer_start")
        texts = [texts] if isinstance(texts, str) else texts
        starts = [starts] if isinstance(starts, int) else starts
    elif isinstance(value, list) and value and all(isinstance(v, Mapping) for v in value):
        texts, starts = [v.get("text") for v in value], [v.get("answer_start") for v in value]
    else:
        texts, starts = value, None
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        return None
    starts = starts if isinstance(starts, list) and starts else [None] * len(texts)
    if len(starts) != len(texts) or not all(s is None or isinstance(s, int) for s in starts):
        return None
    return [pair for pair in zip(texts, starts, strict=True) if pair[0].strip()]


def _place(text: str, start: int | None, context: str) -> tuple[int, int] | None:
    """Return the text's place in its context: at `start`, or else its nearest occurrence."""
    text = text.strip()
    if start is not None and context.startswith(text, start):
        return start, start + len(text)
    places = [match.start() for match in re.finditer(re.escape(text), context)]
    at = min(places, key=lambda place: abs(place - (start or 0)), default=None)
    return None if at is None else (at, at + len(text))
