"""The leading singular triples of a dense matrix (say, of the difference of two weights)."""

from __future__ import annotations

import torch
from torch import Tensor

_OVERSAMPLING = 16  # directions beyond the rank asked for; Halko et al. advise at least 5 to 10
_PASSES = 2  # power iterations; singular values of a fine-tune's difference decay slowly
_SMALL = 256  # rows or columns up to which the exact decomposition is fast enough
# values below this share of the largest are zeros: float32's SVD returned zeros as values of up to
# 9 eps, for matrices of up to 2048 x 2048
_NOISE = 16 * torch.finfo(torch.float32).eps
_SHARE = 4  # random projection saves nothing with more than a fourth of all directions


def leading_svd(matrix: Tensor, rank: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Return the leading singular triples: U (out, k), S (k,), Vt (k, in), in float32.

    Exact if the matrix is small or most triples are asked for; otherwise by random projection with
    two power iterations. Then U is orthonormal and `U diag(S) Vt` is the best approximation in its
    span, so the squared error still equals `||matrix||^2 - sum(S^2)`.

    Source: Halko, Martinsson, Tropp (2011), arXiv 0909.4061, algorithms 4.4 and 5.1.

    Args:
        matrix: (out, in), float32.
        rank: number of triples asked for; k is smaller if the matrix has a lower rank.
        seed: of the random directions.
    """
    smaller = min(matrix.shape)
    tried = rank + _OVERSAMPLING
    if smaller <= _SMALL or tried * _SHARE >= smaller:
        u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    else:
        basis = _range(matrix, tried, torch.Generator().manual_seed(seed))  # (out, tried)
        inner, s, vt = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
        u = basis @ inner
    k = min(rank, int((s > _NOISE * s[:1]).sum()))
    return u[:, :k].contiguous(), s[:k].contiguous(), vt[:k].contiguous()


def _range(matrix: Tensor, columns: int, generator: torch.Generator) -> Tensor:
    """Return an orthonormal basis (out, columns) that nearly spans the leading columns of U."""
    start = torch.randn(matrix.shape[1], columns, generator=generator)
    basis: Tensor = torch.linalg.qr(matrix @ start)[0]
    for _ in range(_PASSES):
        # orthonormalised after every product: powers of the matrix would lose the small directions
        basis = torch.linalg.qr(matrix.T @ basis)[0]
        basis = torch.linalg.qr(matrix @ basis)[0]
    return basis
