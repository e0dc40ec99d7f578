"""Order, filter and table of the entries of `sora list`. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

from sora_cli.adapter.ranks import Rank
from sora_cli.core.console import count, duration
from sora_cli.core.table import Column, Table
from sora_cli.experiments.listing.entry import Entry
from sora_cli.experiments.listing.walk import Node
from sora_cli.recipe.metric_facts import facts_of

_COLUMNS = (
    "run", "status", "method", "task", "seed", "score", "components", Column("parameters", count),
    Column("time", duration), "started", "resume", "",
)  # fmt: skip
_INDENT = "  "
_LONGEST_NOTE = 100  # characters; the JSON holds the whole note

Key = Callable[[Entry], Any]
_LAST = float("inf")  # entries without the value, or with NaN, come last


def _score(entry: Entry) -> float:
    if entry.score is None or entry.score != entry.score:
        return _LAST
    return entry.score if facts_of(entry.metric or "").smaller_is_better else -entry.score


SORTS: Mapping[str, Key | None] = {
    "name": None,
    "started": lambda entry: entry.started or "",
    "score": _score,
    "parameters": lambda entry: _LAST if entry.parameters is None else entry.parameters,
    "time": lambda entry: _LAST if entry.seconds is None else entry.seconds,
    "status": lambda entry: entry.status,
}
"""Sort orders: smallest first, best score first; names keep the order of the search."""


def ordered(nodes: Sequence[Node], key: str) -> list[Node]:
    """Sort the entries, and within each entry its parts."""
    by = SORTS[key]
    parts = [Node(node.entry, ordered(node.parts, key)) for node in nodes]
    return parts if by is None else sorted(parts, key=lambda node: by(node.entry))


def chosen(nodes: Sequence[Node], wanted: Mapping[str, str]) -> list[Node]:
    """Return the entries with these values, each inside its sweep, path or search.

    Args:
        wanted: field of an entry -> value, such as {"status": "failed"}.
    """
    matching = []
    for node in nodes:
        parts = chosen(node.parts, wanted)
        if parts or all(getattr(node.entry, name) == value for name, value in wanted.items()):
            matching.append(Node(node.entry, parts))
    return matching


def entries(nodes: Sequence[Node]) -> Iterator[Entry]:
    """Yield all entries, each before its parts."""
    for node in nodes:
        yield node.entry
        yield from entries(node.parts)


def run_table(nodes: Sequence[Node], place: Path) -> Table:
    """Return a table with a row per entry, without empty columns."""
    return Table(str(place), _COLUMNS, _rows(nodes, place)).without_empty()


def _rows(nodes: Sequence[Node], place: Path, depth: int = 0) -> Iterator[list[Any]]:
    """Yield the row of each entry; names are relative to the directory around the entry."""
    for node in nodes:
        yield _cells(node.entry, place, depth)
        yield from _rows(node.parts, Path(node.entry.directory), depth + 1)


def _cells(entry: Entry, place: Path, depth: int) -> list[Any]:
    directory = Path(entry.directory)
    name = entry.directory if directory == place else str(directory.relative_to(place))
    left = entry.components
    return [
        _INDENT * depth + name,
        entry.status,
        entry.method,
        entry.task,
        entry.seed,
        None if entry.score is None else f"{entry.metric} {entry.score:.4f}",
        None if left is None else Rank(left, entry.components_start or 0),
        entry.parameters,
        entry.seconds,
        (entry.started or "")[:16].replace("T", " "),
        _resume(entry),
        shorten("; ".join(entry.notes), _LONGEST_NOTE, placeholder=" ..."),
    ]


def _resume(entry: Entry) -> str:
    if not entry.resumable:
        return ""
    return "yes" if entry.step is None else f"step {entry.step}"
