"""Proximal steps on gates: the operators, their reach, and the threshold that a budget asks for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from methods.torch_internals import foreach_copy_


def threshold_reach(factors: Sequence[float], prox: str) -> float:
    """Return how far from zero a gate may start for the proximal steps alone to bring it there.

    Args:
        factors: of each step, the threshold as a multiple of xi.
        prox: the authors' operator also clears what is within xi after its shrinking.

    Returns:
        Distance in units of xi.
    """
    moved = reach = 0.0
    for factor in factors:
        moved += factor
        reach = max(reach, moved + factor if prox == "official" else moved)
    return reach


def budget_threshold(gates: Tensor, allowed: Tensor) -> Tensor:
    """Return the smallest xi with which a proximal step leaves at most so many gates.

    A soft one and a hard one alike: both set to zero what is not larger than xi.

    Args:
        gates: (n,).
        allowed: a number; below 0 is 0.
    """
    sizes = gates.abs().sort(descending=True).values
    sizes = torch.cat([sizes, sizes.new_zeros(1)])  # if no more than allowed are there, xi is 0
    return sizes.take(allowed.clamp(0, gates.numel()))  # an index in brackets would be waited for


def soft_threshold_(gates: list[Tensor], xi: float | Tensor) -> None:
    """Apply `sign(g) max(|g| - xi, 0)` in place: the proximal operator of xi |g| (paper, eq. 9)."""
    flat = torch.cat(gates)  # one pass over all layers' gates
    _write(gates, flat.sign() * (flat.abs() - xi).clamp_(min=0))


def hard_threshold_(gates: list[Tensor], xi: float | Tensor) -> None:
    """Set every |g| <= xi to 0 in place: the proximal operator of xi^2 / 2 for g != 0 (L0)."""
    flat = torch.cat(gates)
    _write(gates, flat.masked_fill_(flat.abs() <= xi, 0))


def official_threshold_(gates: list[Tensor], xi: float | Tensor) -> None:
    """Apply the authors' operator in place: |g| > xi shrinks by xi, then every |g| < xi becomes 0.

    So the dead zone reaches to 2 xi, and |g| = xi stays.
    """
    flat = torch.cat(gates)
    shrunk = torch.where(flat.abs() > xi, flat - flat.sign() * xi, flat)
    _write(gates, shrunk.masked_fill_(shrunk.abs() < xi, 0))


def _write(gates: list[Tensor], flat: Tensor) -> None:
    foreach_copy_(gates, torch.split(flat, [g.numel() for g in gates]))
