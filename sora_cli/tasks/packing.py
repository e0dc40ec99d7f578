"""Several short rows in one long one, each kept apart by positions that start again at 0.

Rows are put where they leave the least room (best fit, the longest first), and never cut. Models
that make their attention mask from the positions (transformers' `create_causal_mask`) keep packed
rows apart exactly; whether a model does is tried, see `decoder_checks`.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

Row = dict[str, list[int]]


def bins(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Rows that go together: numbers of rows, whose lengths add up to at most `size`.

    Args:
        lengths: of each row, none above `size`.
    """
    open_: list[tuple[int, int]] = []  # (room, number of the bin), sorted
    made: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        at = bisect_left(open_, (lengths[row], -1))
        room, number = open_.pop(at) if at < len(open_) else (size, len(made))
        if number == len(made):
            made.append([])
        made[number].append(row)
        insort(open_, (room - lengths[row], number))
    return [sorted(rows) for rows in made]


def packed(rows: Sequence[Row], size: int) -> list[Row]:
    """Rows of `input_ids` and `labels` as fewer ones, with `position_ids`.

    The first label of each row must be ignored, or it would be learned from the row before it.
    """
    result = []
    for members in bins([len(row["input_ids"]) for row in rows], size):
        together: Row = {"input_ids": [], "labels": [], "position_ids": []}
        for row in (rows[i] for i in members):
            together["input_ids"] += row["input_ids"]
            together["labels"] += row["labels"]
            together["position_ids"] += range(len(row["input_ids"]))
        result.append(together)
    return result
