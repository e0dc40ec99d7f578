"""Find the columns of texts and of labels by their kinds and names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from sora_cli.core.errors import SoraError
from sora_cli.core.words import listed
from sora_cli.data.columns import Column, Kind
from sora_cli.tasks.sequence import USUAL_COLUMNS

Columns = Mapping[str, Column]
READ: tuple[Kind, ...] = ("text", "word")
"""Kinds of columns that a model can read as text."""

_LABELS = (
    "label", "labels", "class", "category", "target", "sentiment", "rating", "score", "stars",
    "similarity", "grade", "topic", "intent", "emotion", "answer", "y",
)  # fmt: skip
_PAIRS = (
    *(pair for pair in USUAL_COLUMNS if len(pair) == 2),
    ("question", "passage"), ("query", "passage"), ("query", "document"), ("text", "text_pair"),
)  # fmt: skip
_TEXTS = (
    "text", "sentence", "review", "comment", "message", "content", "body", "tweet", "document",
    "description", "post",
)  # fmt: skip


def of_kinds(columns: Columns, *kinds: Kind) -> list[str]:
    """Return the names of all columns of these kinds."""
    return [name for name, column in columns.items() if column.kind in kinds]


def one_of(names: Sequence[str], what: str, hint: str, columns: Columns) -> str:
    """Return the only name; several names are an error.

    Args:
        what: part of the column, for the error message.
        hint: override that decides.
    """
    if len(names) > 1:
        raise undecided(what, names, columns, hint)
    return names[0]


def undecided(what: str, names: Sequence[str], columns: Columns, hint: str) -> SoraError:
    """Return the error for a part that several columns fit."""
    return SoraError(
        f"{len(names)} columns could be the {what}: {listed(names)}",
        where="; ".join(f"{name}: {columns[name].about}" for name in names[:4]),
        hint=f"say which: {hint}",
    )


def usual_label(columns: Columns) -> str | None:
    """Return a column of labels with a usual name; None: there is none."""
    lower = {name.lower(): name for name in reversed(list(columns))}
    names = (lower[name] for name in _LABELS if name in lower)
    kinds = ("class", "number", "whole", "word")
    return next((name for name in names if columns[name].kind in kinds), None)


def find_label(columns: Columns, read: Iterable[str]) -> str | None:
    """Return the column of labels; None: no column fits. Several that fit are an error.

    Args:
        read: columns that already have another part.
    """
    taken = set(read)
    free = {name: column for name, column in columns.items() if name not in taken}
    usual = usual_label(free)
    if usual is not None:
        return usual
    kinds: tuple[Kind, ...] = ("class", "number", "whole")
    for kind in kinds:
        names = of_kinds(free, kind)
        if names:
            return one_of(names, "label", f"data.label_column={names[-1]}", columns)
    return None


def find_texts(columns: Columns, label: str) -> tuple[list[str], dict[str, str]]:
    """Return the column of texts, or the two columns of pairs; and notes on unused texts.

    Several columns that fit equally well are an error.
    """
    free = {name: column for name, column in columns.items() if name != label}
    readable = of_kinds(free, *READ)
    for pair in (*_PAIRS, *_numbered(readable)):
        if set(pair) <= set(readable):
            return list(pair), {}
    usual = [name for name in readable if name.lower() in _TEXTS]
    texts = of_kinds(free, "text") or readable
    chosen = usual[:1] if len(usual) == 1 else texts
    if len(chosen) > 1:
        both = ",".join(chosen[:2])
        hint = f"data.text_columns=[{chosen[-1]}], or [{both}] for pairs"
        raise undecided("text", chosen, columns, hint)
    left = {name: f"{columns[name].about}; data.text_columns can add it" for name in texts}
    return chosen, {name: why for name, why in left.items() if name not in chosen}


def _numbered(names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield pairs of names that differ only in the last character: text_a, text_b."""
    for one, two in (("1", "2"), ("0", "1"), ("a", "b"), ("A", "B")):
        for name in names:
            other = f"{name[:-1]}{two}"
            if len(name) > 1 and name.endswith(one) and other in names:
                yield name, other
