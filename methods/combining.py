"""Several updates of one layer made into one: TIES and DARE.

Both papers work on task vectors, the differences that fine-tunings made to a model's parameters.
Here a task vector is the dense update `dW` of one layer, which is that difference for a low-rank
adapter: its factors have no meaning of their own, for `B A = (B M)(M^-1 A)`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def ties(updates: Sequence[Tensor], weights: Sequence[float], density: float) -> Tensor:
    """Return the updates trimmed, their signs elected, and their disjoint mean.

    Each update keeps its largest numbers; each number's sign is that of the weighted sum of the
    trimmed updates; the mean is over the updates that have a number of that sign there, and is
    multiplied by the sum of all weights, which is the paper's lambda. Trimmed is each layer by
    itself (the paper: all parameters together).

    Source: Yadav et al. (2023), "TIES-Merging", arXiv 2306.01708, algorithm 1.

    Args:
        updates: (out, in) each.
        weights: above 0, one each.
        density: the share of numbers that each update keeps, above 0 and up to 1.
    """
    kept = [trimmed(update, density) for update in updates]
    total = torch.zeros_like(kept[0])
    for update, weight in zip(kept, weights, strict=True):
        total.add_(update, alpha=weight)
    sign = total.sign()
    total.zero_()
    mass = torch.zeros_like(total)
    for update, weight in zip(kept, weights, strict=True):
        agrees = (update.sign() == sign) & (sign != 0)
        total.add_(update * agrees, alpha=weight)
        mass.add_(agrees, alpha=weight)
    mean = torch.where(mass > 0, total / mass, 0.0)
    return mean * math.fsum(weights)


def trimmed(update: Tensor, density: float) -> Tensor:
    """Return an update with all but the largest of its numbers zero, by magnitude.

    Numbers as large as the smallest that is kept are kept, too.
    """
    sizes = update.abs().reshape(-1)
    count = math.ceil(density * sizes.numel())
    if count >= sizes.numel():
        return update
    smallest = sizes.kthvalue(sizes.numel() - count + 1).values
    return torch.where(update.abs() >= smallest, update, 0.0)


def dare(update: Tensor, density: float, generator: torch.Generator) -> Tensor:
    """Return an update with numbers dropped at random, and the others made larger for them.

    Each number is kept with probability `density` (the paper's 1 - p) and divided by it, so that
    the mean of the result is the update.

    Source: Yu et al. (2023), "Language Models are Super Mario", arXiv 2311.03099, equation 1.
    """
    mask = torch.rand(update.shape, generator=generator) < density
    return update * mask / density
