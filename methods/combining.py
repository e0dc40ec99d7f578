"""TIES and DARE: combine several updates of one layer.

Both papers work on task vectors: fine-tuned minus original parameters. For a low-rank adapter this
difference is the dense update `dW` of a layer. The factors themselves cannot be combined, because
they are not unique: `B A = (B M)(M^-1 A)`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def ties(updates: Sequence[Tensor], weights: Sequence[float], density: float) -> Tensor:
    """Combine updates by TIES: trim, elect signs, average the entries with the elected sign.

    Trim: each update keeps its largest entries by magnitude (here per layer; in the paper over all
    parameters together). Elect: an entry's sign is that of the weighted sum of the trimmed updates.
    The result is the weighted mean over the updates whose entry has this sign, times the sum of all
    weights (the paper's lambda).

    Source: Yadav et al. (2023), "TIES-Merging", arXiv 2306.01708, algorithm 1.

    Args:
        updates: (out, in) each.
        weights: one per update, above 0.
        density: share of the entries that each update keeps, above 0 and up to 1.
    """
    kept = [trimmed(update, density) for update in updates]
    total = torch.zeros_like(kept[0])
    for update, weight in zip(kept, weights, strict=True):
        total.add_(update, alpha=weight)
    sign = total.sign()
    total.zero_()  # reused for the sum of the disjoint mean: an update may be large
    mass = torch.zeros_like(total)
    for update, weight in zip(kept, weights, strict=True):
        agrees = (update.sign() == sign) & (sign != 0)
        total.add_(update * agrees, alpha=weight)
        mass.add_(agrees, alpha=weight)
    mean = torch.where(mass > 0, total / mass, 0.0)
    return mean * math.fsum(weights)


def trimmed(update: Tensor, density: float) -> Tensor:
    """Zero all but the largest entries of an update, by magnitude.

    Entries tied with the smallest kept entry are kept, too.
    """
    sizes = update.abs().reshape(-1)
    count = math.ceil(density * sizes.numel())
    if count >= sizes.numel():
        return update
    # kthvalue counts from 1, smallest first
    smallest = sizes.kthvalue(sizes.numel() - count + 1).values
    return torch.where(update.abs() >= smallest, update, 0.0)


def dare(update: Tensor, density: float, generator: torch.Generator) -> Tensor:
    """Drop entries of an update at random and rescale the rest (DARE).

    Each entry is kept with probability `density` (the paper's 1 - p) and divided by `density`, so
    the expected result is the update.

    Source: Yu et al. (2023), "Language Models are Super Mario", arXiv 2311.03099, equation 1.
    """
    mask = torch.rand(update.shape, generator=generator) < density
    return update * mask / density
