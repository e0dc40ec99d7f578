"""The change of one layer's weight as merging needs it: in blocks of rows, whatever it is made of.

A weight is looked at as a matrix (out, in); a convolution's has its input channels and kernel in
one dimension. The rows of the stored weight are those of that matrix, but for layers that store its
transpose (GPT-2's Conv1D, embeddings): there `transposed` says so.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from methods.factors import LowRankFactors

Rows = tuple[int, int]
"""The first row, and the one after the last."""


class Update(ABC):
    """One layer's change, all of it in float32."""

    @abstractmethod
    def delta(self, rows: Rows, out: Tensor, *, transposed: bool) -> Tensor:
        """Return these rows of dW, or of its transpose, computed in the memory of `out` (flat)."""

    @abstractmethod
    def tensors(self) -> tuple[Tensor, ...]:
        """Return what it is made of."""

    def squared(self) -> float | None:
        """Return ||dW||_F^2, where that is quick to tell; None: measure it row by row."""
        return None

    def unknown(self, *, transposed: bool) -> bool:
        """Tell whether it must see all of the weight before it can change a row of it."""
        return False

    def add(
        self, base: Tensor, rows: Rows, delta: Tensor, total: Tensor, *, transposed: bool
    ) -> Tensor:
        """Write W + dW of these rows into `total`, and return dW.

        Args:
            base: these rows of the stored weight W.
            delta: memory for as many numbers, flat, float32.
        """
        change = self.delta(rows, delta, transposed=transposed)
        torch.add(base, change, out=total)
        return change


@dataclass(frozen=True)
class Product(Update):
    """`(B A) * scaling`, computed in this order, as PEFT does.

    Attributes:
        A: (r, in).
        B: (out, r).
    """

    A: Tensor
    B: Tensor
    scaling: float = 1.0

    def delta(self, rows: Rows, out: Tensor, *, transposed: bool) -> Tensor:
        """Return rows of the product, or of its transpose."""
        a, b = self.A, self.B
        if transposed:
            a = a[:, slice(*rows)]
        else:
            b = b[slice(*rows)]
        product = torch.mm(b, a, out=_shaped(out, b.shape[0], a.shape[1]))
        if self.scaling != 1:
            product.mul_(self.scaling)
        return product.T if transposed else product

    def tensors(self) -> tuple[Tensor, ...]:
        """Return A and B."""
        return self.A, self.B

    def squared(self) -> float:
        """Return the squared norm from the factors alone."""
        a, b = self.A.double(), self.B.double()
        return self.scaling**2 * float(((b.T @ b) * (a @ a.T)).sum())


@dataclass(frozen=True)
class Hadamard(Update):
    """LoHa's `(B1 A1) o (B2 A2) * scaling`, o element by element (Hyeon-Woo et al., 2021, FedPara).

    Attributes:
        A1, A2: (r, in).
        B1, B2: (out, r).
    """

    A1: Tensor
    B1: Tensor
    A2: Tensor
    B2: Tensor
    scaling: float

    def delta(self, rows: Rows, out: Tensor, *, transposed: bool) -> Tensor:
        """Return rows of it, or of its transpose."""
        first = Product(self.A1, self.B1).delta(rows, out, transposed=transposed)
        other = torch.empty(first.numel())
        second = Product(self.A2, self.B2).delta(rows, other, transposed=transposed)
        return first.mul_(second).mul_(self.scaling)

    def tensors(self) -> tuple[Tensor, ...]:
        """Return both pairs."""
        return self.A1, self.B1, self.A2, self.B2

    def factors(self) -> LowRankFactors:
        """Return it as the sum of r^2 rank-one terms that it is: a_i o a_j against b_i o b_j."""
        r, n_in = self.A1.shape
        a = (self.A1[:, None, :] * self.A2[None, :, :]).reshape(r * len(self.A2), n_in)
        b = (self.B1[:, :, None] * self.B2[:, None, :]).reshape(len(self.B1), len(a))
        return LowRankFactors(a, b * self.scaling)


@dataclass(frozen=True)
class Kronecker(Update):
    """LoKr's Kronecker product `W1 x W2 * scaling`, each of them a product `L R`.

    Attributes:
        L1, R1: W1 = L1 R1; R1 is None where W1 is L1.
        L2, R2: likewise.
    """

    L1: Tensor
    R1: Tensor | None
    L2: Tensor
    R2: Tensor | None
    scaling: float

    def delta(self, rows: Rows, out: Tensor, *, transposed: bool) -> Tensor:
        """Return rows of it, or of its transpose."""
        first = self.L1 if self.R1 is None else self.L1 @ self.R1
        left, right = self.L2, self.R2
        if transposed:
            left, right = _transposed(left, right)
            first = first.T
        numbers = torch.arange(*rows)
        a = first[numbers // len(left)]  # (rows, columns of W1)
        b = left[numbers % len(left)]
        b = b if right is None else b @ right  # (rows, columns of W2)
        product = _shaped(out, len(numbers), a.shape[1] * b.shape[1])
        torch.mul(a[:, :, None], b[:, None, :], out=product.view(len(a), a.shape[1], b.shape[1]))
        return product.mul_(self.scaling)

    def tensors(self) -> tuple[Tensor, ...]:
        """Return what is there of L1, R1, L2, R2."""
        return tuple(t for t in (self.L1, self.R1, self.L2, self.R2) if t is not None)

    def factors(self) -> LowRankFactors:
        """Return it as a sum of rank-one terms: (L1 x L2) (R1 x R2)."""
        (l1, r1), (l2, r2) = _pair(self.L1, self.R1), _pair(self.L2, self.R2)
        return LowRankFactors(torch.kron(r1, r2), torch.kron(l1, l2) * self.scaling)


@dataclass(frozen=True)
class Rescaled(Update):
    """DoRA's `m / ||W + dV|| * (W + dV)`, the norm over the inputs of each output.

    Source: Liu et al. (2024), "DoRA", equation 5; PEFT's tuners/lora/dora.py (`get_weight_norm`).

    Attributes:
        direction: dV.
        magnitude: m, (out,).
        norms: (out,), where the weight is stored transposed; see `norms_of`.
    """

    direction: Product
    magnitude: Tensor
    norms: Tensor | None = None

    def delta(self, rows: Rows, out: Tensor, *, transposed: bool) -> Tensor:
        """Return rows of dV alone."""
        return self.direction.delta(rows, out, transposed=transposed)

    def tensors(self) -> tuple[Tensor, ...]:
        """Return A, B and the magnitudes."""
        return (*self.direction.tensors(), self.magnitude)

    def unknown(self, *, transposed: bool) -> bool:
        """Tell whether the norms are missing: a row of the transpose has but one input."""
        return transposed and self.norms is None

    def add(
        self, base: Tensor, rows: Rows, delta: Tensor, total: Tensor, *, transposed: bool
    ) -> Tensor:
        """Write the rescaled rows, and return what they differ by from W."""
        change = super().add(base, rows, delta, total, transposed=transposed)
        if transposed:
            assert self.norms is not None
            factor = (self.magnitude / self.norms)[None, :]
        else:
            norms = torch.linalg.norm(total, dim=1)
            factor = (self.magnitude[slice(*rows)] / norms)[:, None]
        total.mul_(factor)
        return change.copy_(total - base)

    def with_norms(self, squares: Tensor) -> Rescaled:
        """Return it with the norms whose squares (out,) these are."""
        return replace(self, norms=squares.sqrt().float())


@dataclass(frozen=True)
class Replaced(Update):
    """Some rows of the stored weight, trained in full: tokens of an embedding.

    Attributes:
        indices: (n,) whole numbers, which rows; each once.
        values: (n, columns), what they are now.
    """

    indices: Tensor
    values: Tensor

    def delta(self, rows: Rows, out: Tensor, *, transposed: bool) -> Tensor:
        """Raise: what changes depends on the weight."""
        raise NotImplementedError

    def tensors(self) -> tuple[Tensor, ...]:
        """Return both."""
        return self.indices, self.values

    def add(
        self, base: Tensor, rows: Rows, delta: Tensor, total: Tensor, *, transposed: bool
    ) -> Tensor:
        """Write the rows into `total`, and return what they differ by from W."""
        here = (self.indices >= rows[0]) & (self.indices < rows[1])
        total.copy_(base)
        total[self.indices[here] - rows[0]] = self.values[here].to(total.dtype)
        return delta.view(-1)[: base.numel()].view(base.shape).copy_(total - base)


def _shaped(memory: Tensor, rows: int, columns: int) -> Tensor:
    return memory.view(-1)[: rows * columns].view(rows, columns)


def _transposed(left: Tensor, right: Tensor | None) -> tuple[Tensor, Tensor | None]:
    return (left.T, None) if right is None else (right.T, left.T)


def _pair(left: Tensor, right: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return two factors of a matrix; of one that is whole, the smaller side's identity is one."""
    if right is not None:
        return left, right
    rows, columns = left.shape
    if columns <= rows:
        return left, torch.eye(columns)
    return torch.eye(rows), left
