"""Algebra on the low-rank factors of one layer's update `dW = B A`.

Everything after training (inspect, prune, export, merge) works on `LowRankFactors`, for adapters of
any method or tool. The dense `dW` is formed by `dense` alone: singular values come from thin
decompositions of the factors and one r x r SVD, in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_DEPENDENT = 1e4
"""Largest tr(G^-1) for which Cholesky replaces QR; G is the Gram matrix of r columns of length one.

Cholesky adds a relative error of about tr(G^-1) times float64's spacing to the singular values, at
this limit 1e-12; QR's own error grows with s_1 / s_i. On trained adapters both were within 5e-15 of
s_1 and within 3e-11 of each value. Orthogonal columns have tr(G^-1) = r; trained factors of rank 8
had up to 3e3.
"""


@dataclass(frozen=True)
class LowRankFactors:
    """The update `dW = B A` of one linear layer, with gates and scaling already folded into B.

    Attributes:
        A: (r, in) down-projection.
        B: (out, r) up-projection.
    """

    A: Tensor
    B: Tensor

    def __post_init__(self) -> None:
        if self.A.ndim != 2 or self.B.ndim != 2 or self.A.shape[0] != self.B.shape[1]:
            raise ValueError(
                f"factors do not fit: A {tuple(self.A.shape)} must be (r, in) "
                f"and B {tuple(self.B.shape)} (out, r)"
            )

    @property
    def rank(self) -> int:
        """Number of stored components, r."""
        return self.A.shape[0]

    @property
    def parameters(self) -> int:
        """Number of stored parameters: r (in + out)."""
        return self.A.numel() + self.B.numel()

    def drop_zeros(self) -> LowRankFactors:
        """Leave out components that are exactly zero (a zero row of A or column of B): lossless."""
        return self.select(self.live_components())

    def live_components(self) -> Tensor:
        """Return a mask of the components that are not exactly zero, (r,) bool."""
        # (r,) each; several times faster than ne(0).any() on tall B, and NaN counts as live, too
        return self.A.abs().amax(dim=1).ne(0) & self.B.abs().amax(dim=0).ne(0)

    def select(self, keep: Tensor) -> LowRankFactors:
        """Select components by a mask (r,), in their order; returns itself if all are selected."""
        if bool(keep.all()):
            return self  # copying a tall B takes as long as a product with it
        return LowRankFactors(self.A[keep].contiguous(), self.B[:, keep].contiguous())

    def component_norms(self) -> Tensor:
        """Return the Frobenius norm of each component, |b_i| |a_i|: (r,), float64."""
        a, b = self.A.double(), self.B.double()
        norms: Tensor = torch.linalg.vector_norm(a, dim=1) * torch.linalg.vector_norm(b, dim=0)
        return norms

    def singular_values(self) -> Tensor:
        """Return the min(r, in, out) leading singular values of `dW`, descending, float64."""
        r_b, _ = _triangle(self.B.detach().double())  # (k1, r)
        r_a, _ = _triangle(self.A.detach().double().T)  # (k2, r)
        values: Tensor = torch.linalg.svdvals(r_b @ r_a.T)  # of (k1, k2)
        return values

    def decompose(self) -> Decomposition:
        """Return the singular values, with the matrices that `truncate` needs, computed once."""
        r_b, inverse_b = _triangle(self.B.detach().double())
        r_a, inverse_a = _triangle(self.A.detach().double().T)
        core = r_b @ r_a.T
        if inverse_a is None or inverse_b is None:
            return Decomposition(torch.linalg.svdvals(core))
        u, s, vt = torch.linalg.svd(core, full_matrices=False)
        root = s.sqrt()
        turns = inverse_b @ (u * root), (root[:, None] * vt) @ inverse_a.T
        return Decomposition(s, turns)

    def svd(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return `dW` as U (out, k), S (k,), Vt (k, in), float64; k = min(r, in, out)."""
        return _thin_svd(self.A, self.B)

    def norm(self) -> float:
        """Return the Frobenius norm of `dW`."""
        return float(torch.linalg.vector_norm(self.singular_values()))

    def inner(self, other: LowRankFactors) -> float:
        """Return the Frobenius inner product of the two updates, tr(dW^T dW'), float64."""
        b = self.B.detach().double().T @ other.B.detach().double()  # (r, r')
        a = self.A.detach().double() @ other.A.detach().double().T  # (r, r')
        return float((a * b).sum())

    def minus(self, other: LowRankFactors) -> LowRankFactors:
        """Return the difference of the updates as stacked factors: rank r + r', float64."""
        a = torch.cat([self.A.detach().double(), other.A.detach().double()])
        b = torch.cat([self.B.detach().double(), -other.B.detach().double()], dim=1)
        return LowRankFactors(a, b)

    def truncate(self, rank: int) -> LowRankFactors:
        """Return the best rank-`rank` approximation of `dW` in the Frobenius norm (Eckart-Young).

        A and B each get the square roots of the singular values. Computed in float64, returned in
        the dtype of the factors.
        """
        return self.decompose().truncate(self, rank)

    def dense(self) -> Tensor:
        """Return `dW` itself (out, in), float64: for small layers and tests."""
        return self.B.double() @ self.A.double()


@dataclass(frozen=True)
class Decomposition:
    """The singular value decomposition `dW = U diag(S) Vt` of one pair of factors, without U and V.

    Attributes:
        values: S (k,), descending, float64; k = min(r, in, out).
        turns: T_B (r, k) and T_A (k, r), so that B T_B = U sqrt(S) and T_A A = sqrt(S) Vt; None if
            the columns of B or the rows of A are too nearly dependent to compute them.
    """

    values: Tensor
    turns: tuple[Tensor, Tensor] | None = None

    def truncate(self, factors: LowRankFactors, rank: int) -> LowRankFactors:
        """Return the best rank-`rank` approximation of the decomposed factors.

        Args:
            factors: the factors that this decomposition was made of.
        """
        if rank < 0:
            raise ValueError(f"rank must be at least 0, not {rank}")
        if self.turns is None:
            u, s, vt = _thin_svd(factors.A, factors.B)
            root = s[:rank].sqrt()
            a, b = root[:, None] * vt[:rank], u[:, :rank] * root  # (rank, in), (out, rank)
        else:
            turn_b, turn_a = self.turns
            a = turn_a[:rank] @ factors.A.detach().double()
            # T_B^T B^T instead of B T_B: MKL is twice as fast with the small side first
            b = (turn_b[:, :rank].T @ factors.B.detach().double().T).T
        a, b = a.to(factors.A.dtype), b.to(factors.B.dtype)
        return LowRankFactors(a.contiguous(), b.contiguous())


def rank_for_energy(
    singular_values: Tensor, energy: float, squared_norm: float | None = None
) -> int:
    """Return the smallest rank that keeps a share `energy` of the squared Frobenius norm.

    Args:
        energy: above 0 and up to 1.
        squared_norm: of the whole update, if only its leading singular values are known; if these
            hold less than the share, their number is returned.
    """
    if not 0 < energy <= 1:
        raise ValueError(f"energy is a share above 0 and up to 1, not {energy}")
    squared = singular_values.double() ** 2
    total = float(squared.sum()) if squared_norm is None else squared_norm
    if total == 0:
        return 0
    if energy == 1:  # a cumulated sum may reach 1 too early, or never, by rounding
        return int(squared.count_nonzero())
    kept = torch.cumsum(squared, 0) / total
    return min(int((kept < energy).sum()) + 1, squared.numel())


def entropy_rank(singular_values: Tensor) -> float:
    """Return the effective rank by entropy: exp(H(p)), p = s / sum(s); 0 if the update is zero.

    It lies between 1 (one nonzero singular value) and the rank (all singular values equal).
    Source: Roy and Vetterli (2007), "The effective rank: a measure of effective dimensionality",
    section 2. p are shares of the singular values, not of their squares, as in the paper.
    """
    s = singular_values.double()
    total = float(s.sum())
    if total == 0:
        return 0.0
    return float(torch.special.entr(s / total).sum().exp())


def _thin_svd(A: Tensor, B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return U (out, k), S (k,), Vt (k, in) of B A, without forming B A; k = min(r, in, out)."""
    q_b, r_b = torch.linalg.qr(B.detach().double())  # (out, k1), (k1, r)
    q_a, r_a = torch.linalg.qr(A.detach().double().T)  # (in, k2), (k2, r)
    u, s, vt = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)  # of (k1, k2)
    return q_b @ u, s, vt @ q_a.T


def _triangle(matrix: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return R (k, r) with R^T R = M^T M, for M (n, r) in float64, and the inverse of R.

    M's columns are scaled to length one, so lengths far apart do no harm. If they are independent
    enough, R comes from a Cholesky decomposition of their Gram matrix, in half the time of a QR;
    otherwise from a QR, without the inverse (None).
    """
    n, r = matrix.shape
    if n >= r > 0:
        gram = matrix.T @ matrix  # (r, r)
        lengths = gram.diagonal().sqrt()  # (r,)
        gram = gram / lengths / lengths[:, None]  # NaN where a column is zero
        upper, failed = torch.linalg.cholesky_ex(gram, upper=True)
        eye = torch.eye(r, dtype=matrix.dtype, device=matrix.device)
        inverse = torch.linalg.solve_triangular(upper, eye, upper=True)
        if not int(failed) and float(inverse.square().sum()) <= _DEPENDENT:  # tr(G^-1)
            return upper * lengths, inverse / lengths[:, None]
    triangle: Tensor = torch.linalg.qr(matrix, mode="r")[1]
    return triangle, None
