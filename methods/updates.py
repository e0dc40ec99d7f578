"""Updates of one layer's weight, computed in blocks of rows for merging.

A weight is treated as a matrix (out, in); for a convolution the input channels and the kernel form
one dimension. Some layers store the transpose (GPT-2's Conv1D, embeddings): there `transposed` is
True, and rows are rows of the stored weight.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from methods.factors import LowRankFactors

Rows = tuple[int, int]
"""The first row, and the last row plus one."""


class Update(ABC):
    """The change dW of one layer's weight, with tensors in float32."""

    @abstractmethod
    def tensors(self) -> tuple[Tensor, ...]:
        """Return the tensors that define the update."""

    def squared(self) -> float | None:
        """Return ||dW||_F^2 if it is quick to compute; None: the caller sums it over the rows."""
        return None

    def needs_norms(self, *, transposed: bool) -> bool:
        """Return True if `add` needs statistics of the whole weight first (see `Rescaled`)."""
        return False

    @abstractmethod
    def add(
        self, base: Tensor, rows: Rows, delta: Tensor, total: Tensor, *, transposed: bool
    ) -> Tensor:
        """Write rows of W + dW into `total`, and return the same rows of dW.

        Args:
            base: the rows of the stored weight W.
            delta: memory for dW, flat, float32, with as many numbers as `base`.
        """


class Sum(Update):
    """A change that does not depend on the weight: it is only added."""

    @abstractmethod
    def delta(self, rows: Rows, out: Tensor, *, transposed: bool) -> Tensor:
        """Compute rows of dW, or of its transpose, in the memory of `out` (flat)."""

    def add(
        self, base: Tensor, rows: Rows, delta: Tensor, total: Tensor, *, transposed: bool
    ) -> Tensor:
        """Write rows of W + dW into `total`, and return the same rows of dW."""
        change = self.delta(rows, delta, transposed=transposed)
        torch.add(base, change, out=total)
        return change


@dataclass(frozen=True)
class Product(Sum):
    """The product `(B A) * scaling`.

    Attributes:
        A: (r, in).
        B: (out, r).
    """

    A: Tensor
    B: Tensor
    scaling: float = 1.0

    def delta(self, rows: Rows, out: Tensor, *, transposed: bool) -> Tensor:
        """Compute rows of the product, or of its transpose."""
        a, b = self.A, self.B
        if transposed:
            a = a[:, slice(*rows)]
        else:
            b = b[slice(*rows)]
        product = torch.mm(b, a, out=_shaped(out, b.shape[0], a.shape[1]))
        # scaled after the product, as in PEFT: scaling a factor first would round differently
        if self.scaling != 1:
            product.mul_(self.scaling)
        return product.T if transposed else product

    def part(self, rows: Rows, *, transposed: bool) -> Product:
        """Return the update of some rows of the stored weight."""
        if transposed:
            return replace(self, A=self.A[:, slice(*rows)])
        return replace(self, B=self.B[slice(*rows)])

    def tensors(self) -> tuple[Tensor, ...]:
        """Return A and B."""
        return self.A, self.B

    def squared(self) -> float:
        """Compute ||dW||_F^2 from r x r Gram matrices: tr(B^T B A A^T), times scaling^2."""
        a, b = self.A.double(), self.B.double()
        return self.scaling**2 * float(((b.T @ b) * (a @ a.T)).sum())


@dataclass(frozen=True)
class Stacked(Sum):
    """The updates of several experts whose weights are stored one below the other."""

    experts: tuple[Product, ...]

    def delta(self, rows: Rows, out: Tensor, *, transposed: bool) -> Tensor:
        """Compute rows of the stack; with `transposed`, of the experts' transposes."""
        first = self.experts[0]
        sides = first.B.shape[0], first.A.shape[1]
        height, width = sides[::-1] if transposed else sides  # of each expert as it is stored
        total = _shaped(out, rows[1] - rows[0], width)
        for number in range(rows[0] // height, -(-rows[1] // height)):
            top = number * height
            start, stop = max(rows[0], top), min(rows[1], top + height)
            memory = torch.empty((stop - start) * width)
            part = (start - top, stop - top)
            change = self.experts[number].delta(part, memory, transposed=transposed)
            total[start - rows[0] : stop - rows[0]] = change
        return total

    def tensors(self) -> tuple[Tensor, ...]:
        """Return A and B of each expert."""
        return tuple(tensor for expert in self.experts for tensor in expert.tensors())

    def squared(self) -> float:
        """Compute ||dW||_F^2."""
        return sum(expert.squared() for expert in self.experts)


@dataclass(frozen=True)
class Hadamard(Sum):
    """LoHa's elementwise product `(B1 A1) o (B2 A2) * scaling` (Hyeon-Woo et al., 2021, FedPara).

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
        """Compute rows of dW, or of its transpose."""
        first = Product(self.A1, self.B1).delta(rows, out, transposed=transposed)
        other = torch.empty(first.numel())
        second = Product(self.A2, self.B2).delta(rows, other, transposed=transposed)
        return first.mul_(second).mul_(self.scaling)

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the factors of both products."""
        return self.A1, self.B1, self.A2, self.B2

    def factors(self) -> LowRankFactors:
        """Return the update as r^2 components: (b_i o b_j) (a_i o a_j)^T for all i, j."""
        r, n_in = self.A1.shape
        a = (self.A1[:, None, :] * self.A2[None, :, :]).reshape(r * len(self.A2), n_in)
        b = (self.B1[:, :, None] * self.B2[:, None, :]).reshape(len(self.B1), len(a))
        return LowRankFactors(a, b * self.scaling)


@dataclass(frozen=True)
class Kronecker(Sum):
    """LoKr's Kronecker product `W1 x W2 * scaling`, with W1 = L1 R1 and W2 = L2 R2.

    Attributes:
        L1, R1: R1 is None if W1 is stored whole; then L1 = W1.
        L2, R2: R2 is None if W2 is stored whole; then L2 = W2.
    """

    L1: Tensor
    R1: Tensor | None
    L2: Tensor
    R2: Tensor | None
    scaling: float

    def delta(self, rows: Rows, out: Tensor, *, transposed: bool) -> Tensor:
        """Compute rows of dW, or of its transpose."""
        first = self.L1 if self.R1 is None else self.L1 @ self.R1
        left, right = self.L2, self.R2
        if transposed:
            left, right = _transposed(left, right)
            first = first.T
        # row i of the Kronecker product: row i // n of W1 with row i % n of W2 (n rows)
        numbers = torch.arange(*rows)
        a = first[numbers // len(left)]  # (rows, columns of W1)
        b = left[numbers % len(left)]
        b = b if right is None else b @ right  # (rows, columns of W2)
        product = _shaped(out, len(numbers), a.shape[1] * b.shape[1])
        torch.mul(a[:, :, None], b[:, None, :], out=product.view(len(a), a.shape[1], b.shape[1]))
        return product.mul_(self.scaling)

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the stored tensors among L1, R1, L2 and R2."""
        return tuple(t for t in (self.L1, self.R1, self.L2, self.R2) if t is not None)

    def factors(self) -> LowRankFactors:
        """Return the update as one product of factors, (L1 x L2) (R1 x R2)."""
        (l1, r1), (l2, r2) = _pair(self.L1, self.R1), _pair(self.L2, self.R2)
        return LowRankFactors(torch.kron(r1, r2), torch.kron(l1, l2) * self.scaling)


@dataclass(frozen=True)
class Rescaled(Update):
    """DoRA's weight `m / ||W + dV|| * (W + dV)`, with one norm per output, over its inputs.

    Source: Liu et al. (2024), "DoRA", equation 5; PEFT's tuners/lora/dora.py (`get_weight_norm`).

    Attributes:
        direction: dV.
        magnitude: m, (out,).
        norms: ||W + dV||, (out,); needed only for a transposed weight, see `needs_norms`.
    """

    direction: Product
    magnitude: Tensor
    norms: Tensor | None = None

    def tensors(self) -> tuple[Tensor, ...]:
        """Return A, B and the magnitudes."""
        return (*self.direction.tensors(), self.magnitude)

    def needs_norms(self, *, transposed: bool) -> bool:
        """Return True if norms are missing: a row of the transpose has one input of each output."""
        return transposed and self.norms is None

    def add(
        self, base: Tensor, rows: Rows, delta: Tensor, total: Tensor, *, transposed: bool
    ) -> Tensor:
        """Write the rescaled rows into `total`, and return their difference from W."""
        change = self.direction.add(base, rows, delta, total, transposed=transposed)
        if transposed:
            assert self.norms is not None
            factor = (self.magnitude / self.norms)[None, :]
        else:
            norms = torch.linalg.norm(total, dim=1)
            factor = (self.magnitude[slice(*rows)] / norms)[:, None]
        total.mul_(factor)
        return change.copy_(total - base)

    def with_norms(self, squares: Tensor) -> Rescaled:
        """Return a copy with norms, given their squares (out,)."""
        return replace(self, norms=squares.sqrt().float())


@dataclass(frozen=True)
class Replaced(Update):
    """Rows of the stored weight that were trained in full, such as tokens of an embedding.

    Attributes:
        indices: (n,) integers, the numbers of the rows, each once.
        values: (n, columns), the new rows.
    """

    indices: Tensor
    values: Tensor

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the indices and the values."""
        return self.indices, self.values

    def add(
        self, base: Tensor, rows: Rows, delta: Tensor, total: Tensor, *, transposed: bool
    ) -> Tensor:
        """Write W with the new rows into `total`, and return the difference from W."""
        here = (self.indices >= rows[0]) & (self.indices < rows[1])
        total.copy_(base)
        total[self.indices[here] - rows[0]] = self.values[here].to(total.dtype)
        return delta.view(-1)[: base.numel()].view(base.shape).copy_(total - base)


def _shaped(memory: Tensor, rows: int, columns: int) -> Tensor:
    return memory.view(-1)[: rows * columns].view(rows, columns)


def _transposed(left: Tensor, right: Tensor | None) -> tuple[Tensor, Tensor | None]:
    return (left.T, None) if right is None else (right.T, left.T)


def _pair(left: Tensor, right: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return two factors of a matrix; a whole matrix is paired with the smaller identity."""
    if right is not None:
        return left, right
    rows, columns = left.shape
    if columns <= rows:
        return left, torch.eye(columns)
    return torch.eye(rows), left
