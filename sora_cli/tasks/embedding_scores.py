"""Losses and scores of vectors: finding a query's documents, and the order of pairs' scores.

Sources: InfoNCE with the other rows' documents as wrong ones (van den Oord et al. 2018, arXiv
1807.03748; Henderson et al. 2017, arXiv 1705.00652), CoSENT (Su 2022, kexue.fm/archives/8847), and
the scores of retrieval as in sentence-transformers' InformationRetrievalEvaluator.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

_BLOCK = 1024  # rows that are compared with all others at a time
AT = 10
"""Places that are looked at."""
NO_TEXT = -1
"""Key of a text that is not there, in rows with fewer documents than others; no hash is -1."""


def infonce(vectors: Tensor, keys: Tensor, rows: Tensor, scale: float) -> Tensor:
    """Return the losses of some rows, each of which chooses its document among all, (n,).

    A document is no wrong answer to a query if it has the text of the query or of its own document,
    or if it is the document of a row with the same query; nor is a document that is not there.

    Args:
        vectors: (N, 1 + k, d) of a query, its document and k - 1 wrong documents.
        keys: (N, 1 + k), equal for equal texts; `NO_TEXT` for none.
        rows: (n,) numbers of rows.
        scale: factor of the cosines.
    """
    units = normalize(vectors, dim=-1)
    documents = units[:, 1:].transpose(0, 1).flatten(0, 1)  # (k N, d), each row's own first
    texts = keys[:, 1:].T.flatten()
    asked, own = (keys[rows, column, None] for column in (0, 1))  # (n, 1) each
    right = (texts == own) | (texts == asked) | (texts == NO_TEXT)
    right[:, : len(keys)] |= keys[:, 0] == asked
    right[torch.arange(len(rows), device=rows.device), rows] = False  # the one to be chosen
    cosines = units[rows, 0] @ documents.T
    return cross_entropy((scale * cosines).masked_fill(right, -torch.inf), rows, reduction="none")


def cosent(vectors: Tensor, scores: Tensor, scale: float) -> Tensor:
    """Return the loss of pairs: log(1 + the sum over all i above j of e^(scale (cos j - cos i))).

    Args:
        vectors: (N, 2, d).
        scores: (N,); pair i is above pair j if its score is larger.
        scale: factor of the cosines.
    """
    units = normalize(vectors, dim=-1)
    cosines = scale * (units[:, 0] * units[:, 1]).sum(dim=-1)
    scores, order = scores.sort()
    cosines = cosines[order]
    # of each pair: log of the sum of e^-cos over the pairs above it, without N^2 numbers
    above = torch.logcumsumexp(-cosines.flip(0), dim=0).flip(0)
    above = torch.cat([above, above.new_full((1,), -torch.inf)])
    terms = cosines + above[torch.searchsorted(scores, scores, right=True)]
    return torch.logsumexp(torch.cat([terms.new_zeros(1), terms]), dim=0)


def step_loss(
    vectors: Tensor, keys: Tensor, scores: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Return the losses of all rows, (N,), and the gradient of their mean by the vectors.

    Args:
        scores: of pairs, each of which then has the loss of all; None: see `infonce`.
    """
    leaf = vectors.detach().requires_grad_()
    every, losses = torch.arange(len(leaf), device=leaf.device), []
    with torch.enable_grad():
        for rows in torch.split(every, _BLOCK) if scores is None else [every]:
            part = row_losses(leaf, keys, scores, scale, rows)
            torch.autograd.backward(part.sum() / len(leaf))
            losses.append(part.detach())
    assert leaf.grad is not None
    return torch.cat(losses), leaf.grad


def row_losses(
    vectors: Tensor, keys: Tensor, scores: Tensor | None, scale: float, rows: Tensor | None = None
) -> Tensor:
    """Return the losses of some rows among all (None: of all), whose mean is the loss, (n,).

    Args:
        scores: of pairs, each of which has the loss of all of them; None: see `infonce`.
    """
    rows = torch.arange(len(vectors), device=vectors.device) if rows is None else rows
    with torch.autocast(vectors.device.type, enabled=False):
        if scores is None:
            return infonce(vectors, keys, rows, scale)
        return cosent(vectors, scores, scale).expand(len(rows))


def mean_loss(vectors: Tensor, keys: Tensor, scores: Tensor | None, scale: float) -> float:
    """Return the loss of a whole split as one step, in blocks of rows."""
    every = torch.arange(len(vectors))
    blocks = torch.split(every, _BLOCK) if scores is None else [every]
    parts = [row_losses(vectors, keys, scores, scale, rows).sum() for rows in blocks]
    return float(torch.stack(parts).sum() / len(vectors))


def ranks_of(queries: Tensor, documents: Tensor, wanted: np.ndarray) -> np.ndarray:
    """Return the place, from 1, of a document among all by its cosine to a query, (pairs,).

    Of equally similar documents the earlier one comes first.

    Args:
        queries: (n, d).
        documents: (m, d).
        wanted: (pairs, 2), numbers of a query and of a document.
    """
    asked, others = normalize(queries, dim=-1), normalize(documents, dim=-1).T
    before = torch.arange(len(documents))
    ranks = []
    for query, document in (part.T for part in torch.split(torch.from_numpy(wanted), _BLOCK)):
        cosines = asked[query] @ others
        own = cosines.gather(1, document[:, None])
        ahead = (cosines > own) | ((cosines == own) & (before < document[:, None]))
        ranks.append(ahead.sum(dim=1) + 1)
    return torch.cat(ranks).numpy()


def nearest(queries: Tensor, others: Tensor) -> np.ndarray:
    """Return, for each unit vector, the row of the most similar vector in `others`, (rows,)."""
    rows = [(block @ others.T).argmax(dim=1) for block in torch.split(queries, _BLOCK)]
    return torch.cat(rows).numpy()


def found(
    ranks: np.ndarray, query: np.ndarray, queries: int, grades: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Return each score of finding by query, (queries,) each.

    A document's gain is its grade / log2(1 + place): linear, as trec_eval has it (Jarvelin and
    Kekalainen 2002, with the discount from the first place on).

    Args:
        ranks: (pairs,) places, from 1, of the documents that belong to a query.
        query: (pairs,) number of that query.
        grades: (pairs,) above 0; None: all 1.
    """
    grades = np.ones(len(ranks)) if grades is None else grades
    right = np.bincount(query, minlength=queries)
    near = ranks <= AT
    gains = np.where(near, grades / np.log2(ranks + 1.0), 0.0)
    best = np.lexsort((-grades, query))  # each query's documents, those of the best grade first
    place = np.arange(len(ranks)) - (np.cumsum(right) - right)[query[best]]
    ideal = np.where(place < AT, grades[best] / np.log2(place + 2), 0.0)
    first = np.zeros(queries)
    np.maximum.at(first, query, np.where(near, 1 / ranks, 0.0))
    return {
        "ndcg_at_10": np.bincount(query, gains, queries) / np.bincount(query[best], ideal, queries),
        "mrr_at_10": first,
        "recall_at_1": np.bincount(query, ranks == 1, queries) / right,
        "recall_at_10": np.bincount(query, near, queries) / right,
        "accuracy_at_1": (first == 1).astype(np.float64),
        "accuracy_at_10": (first > 0).astype(np.float64),
    }
