"""Ranks of all layers from one budget: the largest singular values of all layers are kept.

Singular values compete across layers, so layers with large updates get more rank. If all layers
have one shape, this is the best approximation of all updates together (Eckart-Young on their direct
sum). Source: PARA (arXiv 2604.27796), which prunes a trained LoRA by one threshold over all layers.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    Values = Mapping[str, Tensor]
    """Singular values of each layer's update, descending, float64."""


def strongest(values: Values, count: int, cost: Mapping[str, int] | None = None) -> dict[str, int]:
    """Return each layer's rank if the `count` largest singular values of all layers are kept.

    Zeros are never kept.

    Args:
        cost: numbers in a component of each layer; if given, values compete by s^2 / cost.
    """
    import torch

    # s / sqrt(cost) has the order of s^2 / cost, the squared error saved per number stored
    weighed = {path: s if cost is None else s / math.sqrt(cost[path]) for path, s in values.items()}
    # the empty tensor: torch.cat refuses an empty list
    everything = torch.cat([*weighed.values(), torch.zeros(0, dtype=torch.float64)])
    chosen = torch.zeros_like(everything, dtype=torch.bool)
    chosen[torch.argsort(everything, descending=True, stable=True)[:count]] = True
    chosen &= everything > 0
    parts = torch.split(chosen, [s.numel() for s in weighed.values()])
    return {path: int(part.sum()) for path, part in zip(weighed, parts, strict=True)}


def holding_energy(values: Values, energy: float) -> dict[str, int]:
    """Return the ranks of the fewest components that hold a share of all squared singular values.

    Args:
        energy: the share, above 0 and up to 1, over all layers together.
    """
    import torch

    ordered = torch.sort(torch.cat([*values.values()]), descending=True).values.double()
    kept = torch.cumsum(ordered**2, 0)
    if not kept.numel() or kept[-1] == 0:
        return dict.fromkeys(values, 0)
    return strongest(values, int((kept < energy * kept[-1]).sum()) + 1)


def within_parameters(
    values: Mapping[str, Tensor | Sequence[float]], cost: Mapping[str, int], max_params: int
) -> dict[str, int]:
    """Return each layer's rank so that all factors together hold at most `max_params` numbers.

    A component of singular value s in a layer of in x out costs (in + out) numbers and saves s^2 of
    the squared error. Components are taken in the order of s^2 per number, largest first, if they
    still fit. The result is optimal if all layers have one shape; otherwise it is the greedy
    solution of a knapsack problem, less than one component short of the optimum.

    Does not import torch.

    Args:
        values: singular values of each layer's update, descending.
        cost: numbers in a component of each layer.
    """
    keep = dict.fromkeys(values, 0)
    queue = [(_worth(s, cost[path], 0), path) for path, s in values.items() if len(s)]
    heapq.heapify(queue)
    left = max_params
    while queue:
        worth, path = heapq.heappop(queue)
        if cost[path] > left or worth == 0:
            continue  # drop the layer: its later components cost the same and are worth less
        left -= cost[path]
        keep[path] += 1
        if keep[path] < len(values[path]):
            heapq.heappush(queue, (_worth(values[path], cost[path], keep[path]), path))
    return keep


def _worth(values: Tensor | Sequence[float], cost: int, component: int) -> float:
    """Return minus the squared singular value per number: `heapq` pops the smallest first."""
    return -(float(values[component]) ** 2) / cost


class Pair(Protocol):
    """The two factors of a layer, (r, in) and (out, r)."""

    @property
    def A(self) -> Tensor: ...  # noqa: D102, N802
    @property
    def B(self) -> Tensor: ...  # noqa: D102, N802


def cost_of(pair: Pair) -> int:
    """Return the numbers that one component of a layer stores: in + out."""
    return pair.A.shape[1] + pair.B.shape[0]


def costs_of(layers: Mapping[str, Pair]) -> dict[str, int]:
    """Return the numbers that one component of each layer stores."""
    return {path: cost_of(pair) for path, pair in layers.items()}
