"""Ranks per module as a table: layers down, kinds of modules across. Pure data, no torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

OTHER = "other"
"""Row of modules outside any numbered layer."""


@dataclass(frozen=True)
class Rank:
    """Components of one module, or of several together."""

    live: int
    start: int
    """Components at the start of training."""

    def __add__(self, other: Rank) -> Rank:
        return Rank(self.live + other.live, self.start + other.start)

    def __str__(self) -> str:
        """Return "17/24", or just "24" if no component was removed."""
        return str(self.live) if self.live == self.start else f"{self.live}/{self.start}"


@dataclass(frozen=True)
class RankMap:
    """Ranks of an adapter, layers x kinds of modules.

    Attributes:
        rows: layers in order, such as "bert.encoder.layer.0"; `OTHER` last.
        columns: module paths inside a layer, such as "attention.self.query".
        cells: (row, column) -> rank, for the modules that exist.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: Mapping[tuple[str, str], Rank]

    def row_total(self, row: str) -> Rank:
        """Sum all modules of a layer."""
        return _sum(rank for (r, _), rank in self.cells.items() if r == row)

    def column_total(self, column: str) -> Rank:
        """Sum all modules of a kind."""
        return _sum(rank for (_, c), rank in self.cells.items() if c == column)

    @property
    def total(self) -> Rank:
        """Sum all modules."""
        return _sum(self.cells.values())

    def row_labels(self) -> list[str]:
        """Return rows without their common beginning: "0", "1", ... for one stack of layers."""
        numbered = [row for row in self.rows if row != OTHER]
        stacks = {row.rpartition(".")[0] for row in numbered}
        if len(stacks) == 1:
            return [row if row == OTHER else row.rpartition(".")[2] for row in self.rows]
        shared = _shared_parts([row.split(".") for row in numbered])
        return [row if row == OTHER else ".".join(row.split(".")[shared:]) for row in self.rows]

    def column_labels(self) -> list[str]:
        """Return each kind's shortest ending that differs from the endings of all other kinds."""
        return shortest_names(self.columns)


def rank_map(live: Mapping[str, int], start: Mapping[str, int] | None = None) -> RankMap:
    """Arrange ranks by the first number in each module path.

    Args:
        live: module path -> live components.
        start: module path -> components at the start; an unknown start counts as the live ones.
    """
    known = start or {}
    cells: dict[tuple[str, str], Rank] = {}
    for path, rank in live.items():
        cells[_place(path)] = Rank(rank, known.get(path, rank))
    rows = sorted({row for row, _ in cells}, key=lambda row: (row == OTHER, natural_key(row)))
    ordered = sorted(cells, key=lambda cell: cell[0] == OTHER)  # stable: kinds of layers first
    return RankMap(tuple(rows), tuple(dict.fromkeys(c for _, c in ordered)), cells)


def natural_key(path: str) -> list[tuple[int, int, str]]:
    """Return a key that sorts "layer.10" after "layer.9"."""
    # tuples of equal types, since Python does not compare numbers with words
    return [(0, int(p), "") if p.isdigit() else (1, 0, p) for p in re.split(r"[._]", path)]


def shortest_names(paths: Sequence[str], mark: str = ".") -> list[str]:
    """Return each path's shortest ending that differs from the endings of all other paths.

    Args:
        mark: stands between the parts of a path.
    """
    names = []
    for path in paths:
        parts = path.split(mark)
        others = [f"{mark}{other}" for other in paths if other != path]
        for n in range(1, len(parts) + 1):
            name = mark.join(parts[-n:])
            if not any(other.endswith(f"{mark}{name}") for other in others):
                break
        names.append(name)
    return names


def _place(path: str) -> tuple[str, str]:
    """Return the (row, column) of a module: its path split after the first number."""
    parts = path.split(".")
    for i, part in enumerate(parts):
        if part.isdigit():
            inside = ".".join(parts[i + 1 :])
            return ".".join(parts[: i + 1]), inside or (parts[i - 1] if i else "layer")
    return OTHER, path


def _shared_parts(paths: Sequence[Sequence[str]]) -> int:
    """Return the number of leading parts that all paths share; the last two parts do not count."""
    shared = 0
    while all(len(p) > shared + 2 for p in paths) and len({p[shared] for p in paths}) == 1:
        shared += 1
    return shared


def _sum(ranks: Iterable[Rank]) -> Rank:
    return sum(ranks, Rank(0, 0))
