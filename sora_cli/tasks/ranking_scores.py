"""Scores and a loss of one query's documents in the order of their numbers.

Sources: the scores are those of sentence-transformers' CrossEncoderRerankingEvaluator; LambdaLoss:
Wang et al. 2018 (CIKM, doi 10.1145/3269206.3271784), NDCG-Loss2++ (section 5.3, mu = 10) with
sigma = 1 and logarithms to base 2, as sentence-transformers' LambdaLoss.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

PADDED = -math.inf
"""The label of a place without a document."""
_AT = 10
_MU = 10.0
_LAST = -1e16  # the number of a place without a document: it is sorted behind all others


def ranked(numbers: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Return NDCG and MRR among the first 10 documents; both are 0 if no document is relevant.

    A document is relevant if its label is above 0, and its gain is the label. Of documents with
    equal numbers, NDCG takes the mean over their orders, and MRR the worst order.

    Args:
        numbers, labels: (documents,).
    """
    from sklearn.metrics import ndcg_score

    relevant = labels > 0
    if not relevant.any():
        return 0.0, 0.0
    if len(labels) == 1:
        return 1.0, 1.0
    best = numbers[relevant].max()
    place = 1 + int((numbers[~relevant] >= best).sum())
    return float(ndcg_score([labels], [numbers], k=_AT)), 1 / place if place <= _AT else 0.0


def compared(labels: Tensor) -> Tensor:
    """Return which documents i are more relevant than j, (queries, i, j).

    Args:
        labels: (queries, documents), padded with `PADDED`.
    """
    above, below = labels[:, :, None], labels[:, None, :]
    return (above > below) & (below > PADDED)


def lambda_sum(numbers: Tensor, labels: Tensor) -> Tensor:
    """Return the sum of LambdaLoss over all two documents that `compared` names.

    Args:
        numbers, labels: (queries, documents); labels are padded with `PADDED`.
    """
    numbers, order = numbers.masked_fill(labels == PADDED, _LAST).sort(dim=1, descending=True)
    sorted_labels = labels.gather(1, order)
    documents = torch.arange(labels.shape[1], device=labels.device)
    discount = torch.log2(documents.to(numbers) + 2)  # D of place k is log2(1 + k)
    gains = 2 ** sorted_labels.clamp(min=0).to(numbers) - 1
    ideal = gains.sort(dim=1, descending=True).values / discount
    gains = gains / ideal.sum(dim=1, keepdim=True).clamp(min=1e-10)
    apart = (documents[:, None] - documents).abs()
    shares = 1 / discount
    deltas = (shares[apart - 1] - shares[apart]).abs() * (apart > 0)  # equation 16
    weights = _MU * deltas + (shares[:, None] - shares).abs()
    weights = weights * (gains[:, :, None] - gains[:, None, :]).abs()
    likely = logsigmoid((numbers[:, :, None] - numbers[:, None, :]).clamp(-1e8, 1e8)) / math.log(2)
    # an index by a mask would wait for the device
    return -torch.where(compared(sorted_labels), weights * likely, 0).sum()
