"""Which components of an adapter to keep, by the singular values of each layer's update.

Whatever the rule, what it gives for each layer is the best approximation of that rank in the
Frobenius norm (Eckart-Young); the head is never touched.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from methods.factors import LowRankFactors, rank_for_energy
from sora_cli.errors import SoraError

Layers = Mapping[str, LowRankFactors]


@dataclass(frozen=True)
class Loss:
    """What pruning did to one layer, or to all."""

    before: int
    """Components stored before."""
    after: int
    dropped: float
    """Squared Frobenius norm of what was lost."""
    squared: float
    """Squared Frobenius norm of dW before."""

    @property
    def relative_error(self) -> float:
        """||dW - pruned dW||_F / ||dW||_F; 0 for a layer that did nothing."""
        return math.sqrt(self.dropped / self.squared) if self.squared else 0.0

    def __add__(self, other: Loss) -> Loss:
        return Loss(
            self.before + other.before,
            self.after + other.after,
            self.dropped + other.dropped,
            self.squared + other.squared,
        )


def prune_layers(
    layers: Layers,
    *,
    energy: float | None = None,
    rank: int | None = None,
    max_params: int | None = None,
) -> tuple[dict[str, LowRankFactors], dict[str, Loss]]:
    """Shrink the layers by one rule; without any, only terms that are exactly zero are left out.

    Args:
        energy: each layer keeps the smallest rank with that share of its squared Frobenius norm.
        rank: each layer keeps at most that many components.
        max_params: numbers the factors of all layers may hold together (the head not counted).

    Returns:
        The layers, dead ones with rank 0 among them, and the loss of each.

    Raises:
        SoraError: more than one rule, or a value out of range.
    """
    _check(energy, rank, max_params)
    live = {path: factors.drop_zeros() for path, factors in layers.items()}
    values = {path: factors.singular_values() for path, factors in live.items()}
    keep = {path: factors.rank for path, factors in live.items()}
    if energy is not None:
        keep = {path: rank_for_energy(s, energy) for path, s in values.items()}
    elif rank is not None:
        keep = dict.fromkeys(live, rank)
    elif max_params is not None:
        keep = ranks_for_parameters(live, values, max_params)
    pruned, losses = {}, {}
    for path, factors in live.items():
        small = keep[path] < factors.rank
        pruned[path] = factors.truncate(keep[path]) if small else factors
        squared = values[path] ** 2
        dropped = float(squared[keep[path] :].sum()) if small else 0.0
        losses[path] = Loss(layers[path].rank, pruned[path].rank, dropped, float(squared.sum()))
    return pruned, losses


def ranks_for_parameters(
    layers: Layers, values: Mapping[str, Tensor], max_params: int
) -> dict[str, int]:
    """The rank of each layer, so that all factors together hold at most `max_params` numbers.

    One choice over all layers: a component of singular value s in a layer of in x out costs
    (in + out) numbers and saves s^2 of the squared error. Components are taken by s^2 per number,
    best first, each that still fits; a layer's come in the order of its singular values. That is
    the optimum whenever all layers are of one shape, and near it (the greedy rule for knapsacks:
    short of it by less than one component) otherwise. If everything fits, everything is kept.
    """
    if sum(factors.parameters for factors in layers.values()) <= max_params:
        return {path: factors.rank for path, factors in layers.items()}
    cost = {path: f.A.shape[1] + f.B.shape[0] for path, f in layers.items()}
    keep = dict.fromkeys(layers, 0)
    queue = [(-(float(s[0]) ** 2) / cost[path], path) for path, s in values.items() if s.numel()]
    heapq.heapify(queue)
    left = max_params
    while queue:
        worth, path = heapq.heappop(queue)
        if cost[path] > left or worth == 0:
            continue  # the layer's further components cost as much and are worth less
        left -= cost[path]
        keep[path] += 1
        if keep[path] < values[path].numel():
            value = float(values[path][keep[path]])
            heapq.heappush(queue, (-(value**2) / cost[path], path))
    return keep


def _check(energy: float | None, rank: int | None, max_params: int | None) -> None:
    rules = {"--energy": energy, "--rank": rank, "--max-params": max_params}
    given = [name for name, value in rules.items() if value is not None]
    if len(given) > 1:
        raise SoraError(f"{' and '.join(given)} exclude each other: give one of them")
    if energy is not None and not 0 < energy <= 1:
        raise SoraError(f"--energy is a share above 0 and up to 1, not {energy:g}")
    if rank is not None and rank < 1:
        raise SoraError(f"--rank must be at least 1, not {rank}")
    if max_params is not None and max_params < 1:
        raise SoraError(f"--max-params must be at least 1, not {max_params}")
