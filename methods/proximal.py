"""Proximal steps on gates: the operators, their reach, and the threshold that meets a budget."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from methods.torch_internals import foreach_copy_


def threshold_reach(factors: Sequence[float], prox: str) -> float:
    """Return the largest |gate|, in units of xi, that the proximal steps alone bring to zero.

    Args:
        factors: threshold of each step, as a multiple of xi.
        prox: "official" reaches further: it also zeroes gates that are within xi after shrinking.
    """
    moved = reach = 0.0
    for factor in factors:
        moved += factor
        reach = max(reach, moved + factor if prox == "official" else moved)
    return reach


def budget_threshold(gates: Tensor, allowed: Tensor) -> Tensor:
    """Return the smallest xi with which a proximal step leaves at most `allowed` gates alive.

    It is the same for soft and hard steps: both zero the gates with |g| <= xi.

    Args:
        gates: (n,).
        allowed: a scalar; negative values count as 0.
    """
    sizes = gates.abs().sort(descending=True).values
    sizes = torch.cat([sizes, sizes.new_zeros(1)])  # xi is 0 if no more than `allowed` gates exist
    # take, because indexing with brackets would wait for the GPU
    return sizes.take(allowed.clamp(0, gates.numel()))


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

    Gates below 2 xi become 0, except |g| = xi, which stays (neither inequality holds for it).
    """
    flat = torch.cat(gates)
    shrunk = torch.where(flat.abs() > xi, flat - flat.sign() * xi, flat)
    _write(gates, shrunk.masked_fill_(shrunk.abs() < xi, 0))


def _write(gates: list[Tensor], flat: Tensor) -> None:
    foreach_copy_(gates, torch.split(flat, [g.numel() for g in gates]))
