"""Every row against every other: the contrastive loss, and which is nearest.

Radford et al. 2021 (arXiv 2103.00020), figure 3.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_BLOCK = 1024  # rows against all others at a time


def contrastive_loss(texts: Tensor, images: Tensor, scale: float) -> float:
    """The mean cross-entropy of which image is a text's and which text is an image's.

    Args:
        texts, images: (rows, d) of unit length; the same row of both belongs together.
        scale: what cosines are multiplied by.
    """
    return (_mean_entropy(texts, images, scale) + _mean_entropy(images, texts, scale)) / 2


def nearest(asked: Tensor, others: Tensor) -> np.ndarray:
    """(rows,) of each vector of unit length the row of the most similar one among others."""
    found = [(block @ others.T).argmax(dim=1) for block in torch.split(asked, _BLOCK)]
    return torch.cat(found).numpy()


def _mean_entropy(asked: Tensor, others: Tensor, scale: float) -> float:
    total, first, columns = 0.0, 0, others.double().T
    for block in torch.split(asked.double(), _BLOCK):
        own = torch.arange(first, first + len(block))
        logits = scale * block @ columns  # (block, rows)
        total += float(torch.nn.functional.cross_entropy(logits, own, reduction="sum"))
        first += len(block)
    return total / first
