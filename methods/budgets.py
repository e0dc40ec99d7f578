"""Budgets over all layers together: which singular values are kept, and so each layer's rank.

One choice over all layers sends rank where it matters. For equally large layers it is the best
approximation of all updates together (Eckart-Young on their direct sum).
Source: PARA (arXiv 2604.27796), which prunes a trained LoRA by one threshold over all layers.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    Values = Mapping[str, Tensor]
    """Singular values of each layer's update, descending, float64."""


def strongest(values: Values, count: int, cost: Mapping[str, int] | None = None) -> dict[str, int]:
    """Return the ranks that keep the `count` largest singular values of all layers together.

    Zeros are never kept.

    Args:
        cost: numbers a component of each layer takes; then by s^2 per number instead of s.
    """
    import torch

    weighed = {path: s if cost is None else s / math.sqrt(cost[path]) for path, s in values.items()}
    everything = torch.cat([*weighed.values(), torch.zeros(0, dtype=torch.float64)])
    chosen = torch.zeros_like(everything, dtype=torch.bool)
    chosen[torch.argsort(everything, descending=True, stable=True)[:count]] = True
    chosen &= everything > 0
    parts = torch.split(chosen, [s.numel() for s in weighed.values()])
    return {path: int(part.sum()) for path, part in zip(weighed, parts, strict=True)}


def holding_energy(values: Values, energy: float) -> dict[str, int]:
    """Return the ranks of the fewest components that keep a share of all squared singular values.

    Args:
        energy: above 0 and up to 1.
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
    """Return each layer's rank so that all factors hold at most `max_params` numbers.

    A component of singular value s in a layer of in x out costs (in + out) numbers and saves s^2 of
    the squared error. Components are taken by s^2 per number, best first, each that still fits; a
    layer's come in the order of its singular values. That is the optimum whenever all layers are of
    one shape, and near it (the greedy rule for knapsacks: short of it by less than one component)
    otherwise.

    Torch is not needed.

    Args:
        values: singular values of each layer's update, descending.
        cost: numbers a component of each layer takes.
    """
    keep = dict.fromkeys(values, 0)
    queue = [(_worth(s, cost[path], 0), path) for path, s in values.items() if len(s)]
    heapq.heapify(queue)
    left = max_params
    while queue:
        worth, path = heapq.heappop(queue)
        if cost[path] > left or worth == 0:
            continue  # the layer's further components cost as much and are worth less
        left -= cost[path]
        keep[path] += 1
        if keep[path] < len(values[path]):
            heapq.heappush(queue, (_worth(values[path], cost[path], keep[path]), path))
    return keep


def _worth(values: Tensor | Sequence[float], cost: int, component: int) -> float:
    """Return squared singular value per number, negative: heaps have the smallest on top."""
    return -(float(values[component]) ** 2) / cost
