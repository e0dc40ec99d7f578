"""The singular values of an adapter's layers, and the ranks of its layers after a cut.

Torch is not needed here: the values may be its tensors or numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from methods.keep import Keep

SHARES = (0.5, 0.3, 0.15)
"""Shares of the parameters that an adapter may be cut to."""


@dataclass(frozen=True)
class Module:
    """The facts about a layer that choosing ranks needs."""

    stored: int
    """Number of stored components, zero ones included."""
    live: int
    values: Any
    """Singular values of dW, descending, in float64: a tensor, or a sequence of numbers."""
    cost: int
    """Numbers in one component: in + out."""
    squared: float | None = None
    """Squared norm of dW, if only its leading singular values are known."""
    decomposition: Any = None
    """`methods.factors.Decomposition` of its live components, if it is to be cut."""


def kept_ranks(
    known: Mapping[str, Module], keep: Keep, *, modules: int | None = None
) -> dict[str, int]:
    """Return the rank that a truncation rule gives each module; see `Keep.ranks`."""
    return keep.ranks(
        {path: m.values for path, m in known.items()},
        {path: m.cost for path, m in known.items()},
        live={path: m.live for path, m in known.items()},
        squared={path: m.squared for path, m in known.items() if m.squared is not None},
        modules=modules,
    )


@dataclass(frozen=True)
class SmallerCut:
    """The adapter that `sora prune --max-params` would leave.

    Attributes:
        share: of the numbers in the stored factors.
        max_params: the same as a number.
        ranks: of each module in the file.
        parameters: numbers in the factors that are left.
        energy: share of ||dW||_F^2 over all modules that is left.
    """

    share: float
    max_params: int
    ranks: Mapping[str, int]
    parameters: int
    energy: float

    @property
    def components(self) -> int:
        """Components that are left, in all modules."""
        return sum(self.ranks.values())

    def as_json(self, modules: int) -> dict[str, Any]:
        """Return plain data; the mean rank is over all known modules."""
        mean = {"components": self.components, "mean_rank": self.components / modules}
        return {**asdict(self), **mean}


def cuts(modules: Mapping[str, Module]) -> list[SmallerCut]:
    """Return the cuts of an adapter to the `SHARES`, large to small; none that would leave nothing.

    The rule is that of `sora prune --max-params`: singular values of all modules together.
    """
    stored = sum(m.stored * m.cost for m in modules.values())
    squares = {path: [float(s) ** 2 for s in m.values] for path, m in modules.items()}
    energy = math.fsum(s for values in squares.values() for s in values)
    smaller = []
    for share in SHARES:
        budget = int(share * stored)  # down: a size that a user types is never exceeded
        ranks = kept_ranks(modules, Keep(max_params=budget))
        kept = math.fsum(s for path, rank in ranks.items() for s in squares[path][:rank])
        if kept > 0:
            size = sum(rank * modules[path].cost for path, rank in ranks.items())
            smaller.append(SmallerCut(share, budget, ranks, size, kept / energy))
    return smaller
