"""What a command wrote, and the ranks that a cut must keep of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tests.machine.place import EXACT, Tensors, apart, rank_of, singular, truncated

ROUNDED = {3: 0.4, 4: 0.2, 8: 0.02}
"""Bits -> the largest relative change of an update."""
NARROW = 0.01
"""The same of an update that is stored in 16 bits."""
_ZERO = torch.zeros(1)


@dataclass(frozen=True)
class Thing:
    """What a command wrote.

    Attributes:
        kind: run, stopped (a run that a signal ended), adapter, packed or merged.
        narrow: stored in 16 bits.
        numbers: a name of the update and the head: things with the same name are equal.
        make: the command that trains the run, with OUT for its directory; and how to resume it.
        folded: the `numbers` of all adapters that a merged model holds.
    """

    name: str
    kind: str
    numbers: str
    update: Tensors
    head: Tensors
    ranks: Mapping[str, int]
    lineage: tuple[str, ...] = ()
    bits: int | None = None
    narrow: bool = False
    twin: Mapping[str, bytes] | None = None
    make: tuple[str, ...] = ()
    resume: tuple[str, ...] = ()
    folded: tuple[str, ...] = ()

    @property
    def is_alive(self) -> bool:
        """Whether the update is more than zero."""
        return any(bool(change.any()) for change in self.update.values())


def check_kept(
    thing: Thing, words: Sequence[str], update: Tensors, ranks: Mapping[str, int],
    bits: int | None,
) -> None:  # fmt: skip
    """Each module is its best approximation of its rank, and the ranks are the rule's."""
    kept = {path: ranks.get(path, 0) if update.get(path, _ZERO).any() else 0
            for path in thing.update}  # fmt: skip
    best = {path: truncated(thing.update[path], rank) for path, rank in kept.items()}
    tolerance = ROUNDED[bits] if bits else NARROW if thing.narrow else EXACT
    assert apart(best, update) < tolerance
    live = {path: thing.ranks[path] for path in thing.update}
    assert all(kept[path] <= live[path] for path in kept)
    if live != {path: rank_of(change) for path, change in thing.update.items()}:
        return  # adapters side by side have more components than their sum has ranks
    values = singular(thing.update)
    rules: dict[str, Callable[[str], object]] = {
        "--rank": lambda n: kept == {p: min(int(n), rank) for p, rank in live.items()},
        "--energy": lambda share: kept == {
            p: _holding(values[p][: live[p]], float(share)) for p in kept
        },
        "--mean-rank": lambda mean: kept == _strongest(values, live, float(mean)),
        "--max-params": lambda most: sum(
            rank * sum(thing.update[p].shape) for p, rank in kept.items()
        ) <= int(most),
        "--max-drop": lambda _: sum(kept.values()) <= sum(live.values()),
    }  # fmt: skip
    rule = next((word for word in words if word in rules), None)
    if rule is None:
        assert kept == live
    else:
        assert rules[rule](words[words.index(rule) + 1]), (rule, kept, live)


def _holding(values: Tensor, share: float) -> int:
    """The fewest singular values that hold a share of the squared norm."""
    held = (values**2).cumsum(0) / (values**2).sum() if len(values) else values
    return int((held < share - 1e-9).sum()) + 1 if len(values) else 0


def _strongest(values: Tensors, live: Mapping[str, int], mean: float) -> dict[str, int]:
    """Ranks that keep the largest singular values of all modules (there are six) together."""
    pooled = sorted(
        ((float(v), path) for path, vs in values.items() for v in vs[: live[path]]), reverse=True
    )
    kept = dict.fromkeys(values, 0)
    for _, path in pooled[: int(mean * 6)]:
        kept[path] += 1
    return kept
