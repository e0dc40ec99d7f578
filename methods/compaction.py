"""Removal of dead components from layers that are still being trained.

A dead component costs as much time and memory as a live one. If it has been dead for long, it may
be removed for good, together with its moments in the optimiser. This is another algorithm than the
methods' own: a removed gate gets no gradient any more and cannot come back. What stays is computed
as before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from methods.errors import MethodError
from methods.layer import Layers, LowRankLinear, select_components
from methods.sharding import is_sharded, joined, whole


class DeadSpells:
    """The number of optimiser steps in a row that each component has been dead for.

    Dead is a component whose gate is zero, or, in a layer without gates, one whose row of A and
    column of B are both zero: neither has a gradient then, so it stays so.

    Attributes:
        steps: (all components,) steps that each has been dead for.
    """

    def __init__(self, layers: Layers) -> None:
        self.layers = layers
        self.steps = torch.zeros_like(self.alive(), dtype=torch.long)

    def alive(self) -> Tensor:
        """Return which components are not dead now, (all components,) bool, layer by layer."""
        return joined(_alive(layer) for layer in self.layers.values())

    def step(self) -> None:
        """Look at the components once more; called after every optimiser step."""
        self.steps = (self.steps + 1).masked_fill_(self.alive(), 0)

    def at_least(self, steps: int) -> Tensor:
        """Return which components have been dead for that many steps, (all components,) bool."""
        return self.steps >= steps

    def drop(self, gone: Tensor) -> None:
        """Forget components that were removed."""
        self.steps = self.steps[~gone]


def _alive(layer: LowRankLinear) -> Tensor:
    if layer.d is not None:
        return whole(layer.d.detach()).ne(0)
    return whole(layer.A.detach()).any(dim=1) | whole(layer.B.detach()).any(dim=0)


def remove_components(
    layers: Layers, gone: Tensor, state: Mapping[Tensor, dict[str, Any]]
) -> dict[str, Tensor]:
    """Remove components from the layers, in place, and their moments from the optimiser.

    The parameters stay the same objects. Call it while they have no gradients.

    Args:
        gone: (all components,) bool, layer by layer.
        state: the optimiser's, `optimizer.state`: moments by parameter.

    Returns:
        By layer path, (rank before,) bool: which components are left.

    Raises:
        MethodError: the layers are sharded, whose memory is not theirs alone.
    """
    for path, layer in layers.items():
        if is_sharded(layer.A):
            raise MethodError(
                f"'{path}' is sharded: components can be removed after training only; "
                f"method.factors(layer).drop_zeros() leaves dead ones out"
            )
    ranks = [layer.rank for layer in layers.values()]
    keep = dict(zip(layers, torch.split(~gone, ranks), strict=True))
    for path, layer in layers.items():
        if not bool(keep[path].all()):
            _cut(layer, keep[path], state)
    return keep


def _cut(layer: LowRankLinear, keep: Tensor, state: Mapping[Tensor, dict[str, Any]]) -> None:
    for kind, p in layer.named_factors():
        moments = state.get(p, {})
        for name, value in moments.items():
            if isinstance(value, Tensor) and value.shape == p.shape:
                moments[name] = select_components(value, kind, keep)
        p.grad = None
        p.data = select_components(p.data, kind, keep)
