"""Removal of dead components from layers during training.

A dead component costs as much time and memory as a live one. After some steps it may be removed for
good, together with its moments in the optimiser. This changes the method: a removed gate gets no
gradient and cannot come back. The other components are computed as before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from methods.errors import MethodError
from methods.layer import Layers, LowRankLinear, select_components
from methods.sharding import is_sharded, joined, whole


class DeadSteps:
    """Counts, for each component, the optimiser steps since it died.

    A component is dead if its gate is zero; in a layer without gates, if its row of A and column of
    B are both zero (then neither gets a gradient, so it stays dead).

    Attributes:
        steps: (all components,) consecutive dead steps up to now, layer by layer.
    """

    def __init__(self, layers: Layers) -> None:
        self.layers = layers
        self.steps = torch.zeros_like(self.alive(), dtype=torch.long)

    def alive(self) -> Tensor:
        """Return a mask of the live components, (all components,) bool, layer by layer."""
        return joined(_alive(layer) for layer in self.layers.values())

    def step(self) -> None:
        """Update the counts; call it after every optimiser step."""
        self.steps = (self.steps + 1).masked_fill_(self.alive(), 0)

    def at_least(self, steps: int) -> Tensor:
        """Return a mask of components dead for at least `steps` steps, (all components,) bool."""
        return self.steps >= steps

    def drop(self, gone: Tensor) -> None:
        """Drop the counts of removed components."""
        self.steps = self.steps[~gone]


def _alive(layer: LowRankLinear) -> Tensor:
    if layer.d is not None:
        return whole(layer.d.detach()).ne(0)
    return whole(layer.A.detach()).any(dim=1) | whole(layer.B.detach()).any(dim=0)


def remove_components(
    layers: Layers, gone: Tensor, state: Mapping[Tensor, dict[str, Any]]
) -> dict[str, Tensor]:
    """Remove components from the layers, in place, and their moments from the optimiser.

    The parameters stay the same objects. Call it after `zero_grad`. Sharded layers are refused:
    FSDP keeps their parameters in memory of its own.

    Args:
        gone: (all components,) bool, layer by layer.
        state: `optimizer.state`, the moments by parameter.

    Returns:
        A mask of the components left, (rank before,) bool, by layer path.
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
