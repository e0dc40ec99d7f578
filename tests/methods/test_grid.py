"""Numbers on a grid: exact in float32, near the original, and recognised again."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from methods.factors import LowRankFactors
from methods.grid import GROUP, OnGrid, bits_of, nearest, packed_bytes, recognised, round_factors
from methods.keep import BITS
from tests.present import present


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_every_integer_times_every_scale_is_exact_in_float32() -> None:
    """All 256 integers of 8 bits with all finite bfloat16 numbers, where the result is finite."""
    scales = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.bfloat16)
    scales = scales[scales.isfinite()]
    odd = torch.arange(-255, 256, 2, dtype=torch.int16)
    assert len(odd) == 2**8
    exact = odd.double()[:, None] * scales.double()
    values = odd[:, None] * scales.float()
    fits = exact.abs() <= torch.finfo(torch.float32).max
    assert torch.equal(values.double()[fits], exact[fits])
    assert fits.float().mean() > 0.97


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("length", [1, 63, GROUP, 130])
@pytest.mark.parametrize("size", [1e-12, 1.0, 1e8])
def test_rounded_numbers_are_recognised(bits: int, length: int, size: float) -> None:
    grid = nearest(normal(5, length) * size, bits)
    again = present(recognised(grid.values()))
    assert again.bits <= bits
    assert torch.equal(again.values(), grid.values())
    assert again.scales.shape == (5, -(-length // GROUP))


def test_the_bits_are_the_fewest_that_hold_all_integers() -> None:
    for bits in BITS:
        assert recognised(nearest(normal(8, 256), bits).values()).bits == bits  # type: ignore[union-attr]


def test_a_group_of_zeros_has_the_scale_zero() -> None:
    matrix = normal(2, 2 * GROUP)
    matrix[0, :GROUP] = 0
    grid = nearest(matrix, 4)
    assert grid.scales[0, 0] == 0
    assert not grid.values()[0, :GROUP].any()
    assert recognised(grid.values()) is not None


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("length", [1, 16, 32])
def test_a_short_group_has_the_scale_of_its_own_numbers(bits: int, length: int) -> None:
    """The scale of a whole group that repeats them: what a row's end is padded with has no say."""
    short = normal(200, length)
    whole = nearest(short.repeat(1, GROUP // length), bits)
    other = nearest(short, bits).scales != whole.scales
    assert other.float().mean() < 0.01  # sums in another order may decide a tie


@pytest.mark.parametrize("spoil", ["float", "one number", "a zero among others", "nine bits"])
def test_other_numbers_are_not_recognised(spoil: str) -> None:
    values = nearest(normal(3, 200), 4).values()
    if spoil == "float":
        values = normal(3, 200)
    elif spoil == "one number":
        values[2, 199] *= 1 + 2**-20
    elif spoil == "a zero among others":
        values[1, 70] = 0
    else:
        values[0, 0] = values[0, :GROUP].abs().min() * 257
    assert recognised(values) is None


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_no_scale_tried_is_better(bits: int) -> None:
    """And the error is that of the best grid for normal numbers (Max 1960, table II), at most 8 %
    above: 64 numbers, and 14 scales."""
    matrix, top = normal(300, GROUP), 2**bits - 1
    error = (nearest(matrix, bits).values() - matrix).square().sum(1)
    for width in (0.45, 0.6, 0.8, 0.95, 1.0):
        scale = (matrix.abs().amax(1, keepdim=True) * width / top).bfloat16().float()
        odd = (((matrix / scale - 1) / 2).round() * 2 + 1).clamp(-top, top)
        assert bool((error <= (odd * scale - matrix).square().sum(1) * (1 + 1e-6)).all())
    of_max = {2: 0.1188, 3: 0.03744, 4: 0.01154}[bits]
    assert float(error.sum() / matrix.square().sum()) < 1.08 * of_max


def test_factors_are_rounded_in_the_singular_basis() -> None:
    """Rounding commutes with a turn of the components, which changes no update."""
    factors = LowRankFactors(normal(4, 96), normal(80, 4, seed=1))
    turn = torch.linalg.qr(normal(4, 4, seed=2).double())[0].float()
    turned = LowRankFactors(turn @ factors.A, factors.B @ turn.T)
    one, other = round_factors(factors, 4), round_factors(turned, 4)
    assert one.minus(other).norm() < 0.02 * factors.norm()
    assert bits_of(one) == 4
    assert bits_of(factors) is None
    assert 0.05 < one.minus(factors).norm() / factors.norm() < 0.2


def test_packed_bytes_are_those_of_integers_and_scales() -> None:
    grid: OnGrid = nearest(normal(3, 130), 3)
    assert packed_bytes([(3, 130)], 3) == math.ceil(3 * 130 * 3 / 8) + 2 * grid.scales.numel()
