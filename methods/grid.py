"""Numbers on a grid: odd integers of few bits times a 16-bit scale for each group of numbers.

A grid of b bits holds the values s * q with q in {-(2^b - 1), ..., -3, -1, 1, 3, ..., 2^b - 1} and
s in bfloat16. A grid with zero and as many levels on either side would waste one of its 2^b levels,
which of two bits is one of four. s has 8 significant bits and q at most 8: s * q is exact in
float32.

Groups run along the long side of a factor: along a row of A, and along a column of B.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from methods.factors import LowRankFactors
from methods.keep import BITS

GROUP = 64
"""Numbers that share a scale."""

_WIDTHS = tuple(0.4 + 0.05 * i for i in range(14))
"""Ends of the grid that are tried, as shares of a group's largest number. Of 64 normal numbers the
best end is near 0.6 with 2 bits, 0.85 with 3, and 1 with more."""


@dataclass(frozen=True)
class OnGrid:
    """A matrix of numbers on a grid: `scales * odd integers`.

    Attributes:
        odd: (n, length) odd integers, int16.
        scales: (n, groups) bfloat16; 0 for a group of zeros.
    """

    odd: Tensor
    scales: Tensor

    @property
    def bits(self) -> int:
        """The fewest bits of `BITS` that hold all integers."""
        largest = int(self.odd.abs().max()) if self.odd.numel() else 1
        return next(bits for bits in BITS if largest < 2**bits)

    def values(self) -> Tensor:
        """Return the numbers (n, length), float32."""
        each = self.scales.float().repeat_interleave(GROUP, dim=1)[:, : self.odd.shape[1]]
        return self.odd * each


def nearest(matrix: Tensor, bits: int) -> OnGrid:
    """Round each number to the grid; each group has the scale with the smallest squared error.

    Args:
        matrix: (n, length); each row is split into groups of `GROUP`, the last one may be shorter.
        bits: one of `BITS`.
    """
    numbers, inside = _groups(matrix.float())
    largest, top = numbers.abs().amax(-1, keepdim=True), 2**bits - 1
    best: tuple[Tensor, Tensor, Tensor] | None = None
    for width in _WIDTHS:
        scale = (largest * (width / top)).bfloat16()
        s = scale.float()
        # (n, groups, GROUP); where a scale is 0 the integer is 1, and the number 0
        odd = (numbers / torch.where(s == 0, 1, s)).sub_(1).div_(2).round_().mul_(2).add_(1)
        odd = torch.where(s == 0, 1, odd.clamp_(-top, top))
        error = ((odd * s - numbers).square_() * inside).sum(-1, keepdim=True)
        if best is None:
            best = error, odd, scale
        else:
            better = error < best[0]
            pairs = zip((error, odd, scale), best, strict=True)
            best = tuple(torch.where(better, new, old) for new, old in pairs)  # type: ignore[assignment]
    assert best is not None
    return _flat(best[1], best[2], matrix.shape[1])


def recognised(matrix: Tensor) -> OnGrid | None:
    """Return the integers and scales of numbers that lie on a grid of at most 8 bits; else None.

    Of several answers the one with the largest scales is returned; the values are the same.

    Args:
        matrix: (n, length), float32.
    """
    if not _on_a_grid(matrix[:1, :GROUP].flatten()):
        return None  # any other numbers: one group tells
    numbers, inside = _groups(matrix.double())
    size = torch.where(inside, numbers.abs(), torch.inf).amin(-1, keepdim=True)  # (n, groups, 1)
    zero = numbers.abs().amax(-1, keepdim=True) == 0
    scale, open_ = torch.zeros_like(size), ~zero
    odd = torch.ones_like(numbers)
    for k in range(1, 2 ** BITS[-1], 2):  # the group's smallest number is k times its scale
        if not bool(open_.any()):
            break
        s = (size / k).bfloat16().double()
        ratio = numbers / s  # inf or NaN for s = 0: no integer
        fits = (ratio.remainder(2) == 1) & (ratio.abs() < 2 ** BITS[-1]) | ~inside
        hit = open_ & fits.all(-1, keepdim=True)
        scale, odd = torch.where(hit, s, scale), torch.where(hit, ratio, odd)
        open_ &= ~hit
    return None if bool(open_.any()) else _flat(odd, scale.bfloat16(), matrix.shape[1])


def _on_a_grid(numbers: Tensor) -> bool:
    """Tell whether the numbers of a group lie on a grid, with all scales at once.

    Every adapter that is written is asked, layer by layer, and almost none is on a grid.

    Args:
        numbers: (length,), at most `GROUP`.
    """
    numbers = numbers.double()
    sizes = numbers.abs()
    if not bool(sizes.any()):
        return True
    odd = torch.arange(1, 2 ** BITS[-1], 2, device=numbers.device)
    scales = (sizes.amin() / odd).bfloat16().double()  # (128,)
    ratios = numbers / scales[:, None]  # inf or NaN for a scale of 0: no integer
    fits = (ratios.remainder(2) == 1) & (ratios.abs() < 2 ** BITS[-1])
    return bool(fits.all(-1).any())


def round_factors(factors: LowRankFactors, bits: int) -> LowRankFactors:
    """Return the factors in the singular basis with each number on a grid, float32."""
    turned = factors.truncate(factors.rank)
    a, b = nearest(turned.A, bits).values(), nearest(turned.B.T, bits).values().T
    return LowRankFactors(a, b.contiguous())


def bits_of(factors: LowRankFactors) -> int | None:
    """Return the bits of each number if both factors lie on a grid; None if they do not."""
    a = recognised(factors.A)
    b = None if a is None else recognised(factors.B.T)
    return None if a is None or b is None else max(a.bits, b.bits)


def packed_bytes(shapes: Sequence[tuple[int, int]], bits: int) -> int:
    """Return the bytes of integers and scales.

    Args:
        shapes: (n, length) of each matrix, with the groups along `length`.
    """
    sizes = (stored_sizes(n, length, bits) for n, length in shapes)
    return sum(integers + 2 * scales for integers, scales in sizes)


def stored_sizes(n: int, length: int, bits: int) -> tuple[int, int]:
    """Return the bytes of a matrix's integers, and how many scales it has."""
    return -(-n * length * bits // 8), n * -(-length // GROUP)


def _groups(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return the numbers in groups (n, groups, GROUP), and a mask that leaves out the padding."""
    n, length = matrix.shape
    missing = -length % GROUP
    padded = pad(matrix, (0, missing)).reshape(n, -(-length // GROUP), GROUP)
    inside = (torch.arange(length + missing, device=matrix.device) < length).reshape(1, -1, GROUP)
    return padded, inside


def _flat(odd: Tensor, scales: Tensor, length: int) -> OnGrid:
    return OnGrid(odd.flatten(1)[:, :length].to(torch.int16), scales.flatten(1))
