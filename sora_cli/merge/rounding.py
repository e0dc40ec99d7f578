"""Rounding of merged weights to their stored dtype, and the part of the update that survives it.

The nearest neighbours of W in float16 or bfloat16 are up to 2^-10 or 2^-7 of W away. An update
smaller than half of this step vanishes when W + dW is rounded to the nearest number. Stochastic
rounding takes the upper or the lower neighbour with probabilities whose expected value is W + dW:
on average nothing is lost, at the price of noise.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sora_cli.adapter.survival import LEAST, Survival, shown
from sora_cli.core.errors import SoraError

_SAFE = (1e-20, 1e30)  # sums of products in float32 neither underflow nor overflow in this range
_FINEST = 2.0**-120  # a finer step has no finite reciprocal in float32


@dataclass(frozen=True)
class Storing:
    """Options for storing merged weights.

    Attributes:
        dtype: of all floating-point tensors, one of `core.checks.STORED`; "base": unchanged.
        rounding: "nearest" or "stochastic", for changed tensors.
        seed: of stochastic rounding.
        accept_loss: write the result, however little of the update survives.
    """

    dtype: str = "base"
    rounding: str = "nearest"
    seed: int = 0
    accept_loss: bool = False


AS_IN_BASE = Storing()


def inner(x: Tensor, y: Tensor) -> float:
    """Return <x, y> of two float32 tensors; very small or large results are summed in float64."""
    x, y = x.reshape(-1), y.reshape(-1)
    product = float(torch.dot(x, y))
    if _SAFE[0] < abs(product) < _SAFE[1]:
        return product
    return float(torch.dot(x.double(), y.double()))


def round_stochastically(
    numbers: Tensor, dtype: torch.dtype, *, seed: int, name: str, start: int
) -> None:
    """Round float32 numbers to a narrower dtype's numbers, in place, at random without bias.

    The random bits depend only on the seed, the tensor's name and the place in the tensor, so the
    result does not depend on the division into blocks.

    Args:
        start: place in the tensor of the first number.
    """
    limits = torch.finfo(dtype)
    # the exponent bits alone: the largest power of two up to the absolute value
    powers = numbers.view(torch.int32).bitwise_and(0x7F800000).view(torch.float32)
    step = powers.mul_(limits.eps).clamp_min_(max(limits.tiny * limits.eps, _FINEST))
    bits = round(-math.log2(torch.finfo(torch.float32).eps / limits.eps))  # bits to round away
    drawn = random_bits(seed, name, start, numbers.numel()) >> (16 - bits)
    chance = torch.from_numpy(drawn.astype(np.float32)).view(numbers.shape).mul_(2.0**-bits)
    # floor(x + u) with u uniform in [0, 1) is x rounded up with the probability of its fraction
    numbers.div_(step).add_(chance).floor_().mul_(step).clamp_(limits.min, limits.max)


def random_bits(seed: int, name: str, start: int, count: int) -> np.ndarray:
    """Return 16 random bits for each of `count` numbers of a tensor, from place `start`."""
    key = hashlib.sha256(f"{seed} {name}".encode()).digest()[:16]
    generator = np.random.Philox(key=int.from_bytes(key, "little"))
    # Philox is counter-based, so it can start anywhere; a step gives four 64-bit words, 16 numbers
    generator.advance(start // 16)
    skip = start % 16
    words = generator.random_raw(-(-(skip + count) // 4))
    return words.astype("<u8").view("<u2")[skip : skip + count]


def check_survival(survival: Survival, dtype: str, storing: Storing) -> None:
    """Raise if the surviving share is below `LEAST`, unless the loss is accepted."""
    if survival.share >= LEAST or storing.accept_loss:
        return
    raise SoraError(
        f"{shown_survival(survival, dtype)}: nothing was written",
        hint=ways_out(dtype, storing, "--accept-loss writes it anyway"),
    )


def shown_survival(survival: Survival, dtype: str) -> str:
    """Return one line on the share of the update in the stored weights."""
    return shown(survival, f"stored as {dtype}, the merged weights hold")


def ways_out(dtype: str, storing: Storing, *more: str) -> str:
    """Return a hint with the options that lose less."""
    ways = []
    if "float32" not in dtype.split(", "):
        ways.append("--dtype float32 keeps all of it")
    if storing.rounding != "stochastic":
        ways.append("--round stochastic keeps it on average, with noise")
    return "; ".join([*ways, *more])
