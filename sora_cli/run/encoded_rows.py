"""Format encoded rows for a person: the tokens, and the part of them that carries the loss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from sora_cli.core.console import count, printable
from sora_cli.core.words import shown_value
from sora_cli.tasks.base import Task
from sora_cli.tasks.encoded import Encoded
from sora_cli.tasks.language import IGNORED
from sora_cli.tasks.pairs import SIDES

_CHARACTERS = 240  # longest text that is printed in full
_CHOICES = 8


def row_lines(task: Task, processor: Any, rows: Encoded, number: int) -> Iterator[str]:
    """Yield the lines that show one encoded row.

    Args:
        processor: the tokenizer or processor that encoded the row.
        number: index of the encoded row, from 0.
    """
    row = rows.dataset[number]
    ids = row.get("input_ids")
    if ids is None:
        yield from (f"{name}: {_short(value)}" for name, value in _column_texts(row, task))
        return
    tokenizer = getattr(processor, "tokenizer", processor)
    labels = row.get("labels")
    if ids and isinstance(ids[0], list) and _of_tokens(labels):
        yield from _pair(tokenizer, ids, labels)
        return
    if ids and isinstance(ids[0], list):
        for place, choice in enumerate(ids[:_CHOICES]):
            mark = "right" if place == labels else "choice"
            if isinstance(labels, list):
                mark = f"label {labels[place]:g}"
            if labels is None:  # a query, its document, and wrong ones
                mark = list(task.options.COLUMNS)[min(place, 2)]
            yield f"{mark:<8} {_short(_tokens(tokenizer, choice))}"
        return
    if isinstance(labels, list) and len(labels) == len(ids) and task.label_names is None:
        yield from _learned(tokenizer, ids, labels)
        yield from (f"{n:<8} {str(v).lower()}" for n, v in row.items() if isinstance(v, bool))
        return
    names = task.label_names
    if isinstance(labels, list) and len(labels) == len(ids) and names is not None:
        yield f"{'tokens':<8} {_short(_tagged(tokenizer, ids, labels, names))}"
        return
    yield f"{'tokens':<8} {_short(_tokens(tokenizer, ids))}"
    if isinstance(labels, list):
        yield f"{'learned':<8} {_short(_tokens(tokenizer, labels))}"
    elif labels is not None:
        yield f"{'label':<8} {_label(labels, names)}"
    if "start_positions" in row:
        span = ids[row["start_positions"] : row["end_positions"] + 1]
        yield f"{'answer':<8} {_short(_tokens(tokenizer, span))}"


def length_of(task: Task, rows: Encoded, number: int) -> str:
    """Describe a row's length: its tokens, the tokens that carry the loss, and a possible cut."""
    row, tokens = rows.dataset[number], int(rows.lengths[number])
    if "input_ids" not in row:
        return ""
    text = f"{count(tokens)} tokens"
    labels = row.get("labels")
    if isinstance(labels, list) and (
        _of_tokens(labels) or not isinstance(row["input_ids"][0], list)
    ):
        texts = labels if _of_tokens(labels) else [labels]
        learned = [count(sum(label != IGNORED for label in part)) for part in texts]
        text += f", {' + '.join(learned)} carry the loss"
    if rows.truncated and tokens >= task.data.max_length:
        text += ", cut at data.max_length"
    return text


def _of_tokens(labels: Any) -> bool:
    """Return True if these are lists of labels of tokens, one for each text of a row."""
    return isinstance(labels, list) and bool(labels) and isinstance(labels[0], list)


def _learned(tokenizer: Any, ids: Sequence[int], labels: Sequence[int]) -> Iterator[str]:
    """Yield a text in alternating pieces: "learned" tokens carry the loss, "read" tokens do not."""
    for learned, part in groupby(zip(ids, labels, strict=True), key=lambda p: p[1] != IGNORED):
        text = tokenizer.decode([token for token, _ in part])
        yield f"{'learned' if learned else 'read':<8} {_short(text)}"


def _pair(
    tokenizer: Any, ids: Sequence[Sequence[int]], labels: Sequence[Sequence[int]]
) -> Iterator[str]:
    """Yield the prompt, once, and the learned part of both answers."""
    start = next(i for i, label in enumerate(labels[0]) if label != IGNORED)
    yield f"{'read':<8} {_short(tokenizer.decode(ids[0][:start]))}"
    for side, part in zip(SIDES, labels, strict=True):
        text = tokenizer.decode([label for label in part if label != IGNORED])
        yield f"{side:<8} {_short(text)}"


def _tagged(tokenizer: Any, ids: Sequence[int], labels: Sequence[int], names: Sequence[str]) -> str:
    pairs = zip(tokenizer.convert_ids_to_tokens(list(ids)), labels, strict=True)
    return " ".join(t if label == IGNORED else f"{t}/{names[label]}" for t, label in pairs)


def _tokens(tokenizer: Any, ids: Sequence[int]) -> str:
    known = [token for token in ids if token >= 0]
    return " ".join(str(token) for token in tokenizer.convert_ids_to_tokens(known))


def _label(label: Any, names: Sequence[str] | None) -> str:
    return f"{label:g}" if names is None else f"'{printable(names[label])}'"


def _column_texts(row: Mapping[str, Any], task: Task) -> Iterator[tuple[str, str]]:
    """Yield (name, text) for each column of a row without token ids, such as an image's."""
    names = task.label_names
    for name, value in row.items():
        if isinstance(value, dict | bytes):
            yield name, "an image"
        elif names is not None and name == task.label_column and isinstance(value, int):
            yield name, _label(value, names)
        else:
            yield name, shown_value(value)


def _short(text: str) -> str:
    """Return a text in one line; of a long text only its beginning and end."""
    line = printable(text)
    half = _CHARACTERS // 2
    return line if len(line) <= _CHARACTERS else f"{line[:half]} ... {line[-half:]}"
