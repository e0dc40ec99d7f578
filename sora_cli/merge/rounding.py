"""Rounding of merged weights to their stored dtype, and the part of the update that survives it.

The nearest neighbours of W in float16 or bfloat16 are up to 2^-10 or 2^-7 of W away. An update
smaller than half of this step vanishes when W + dW is rounded to the nearest number. Stochastic
rounding takes the upper or the lower neighbour with probabilities whose expected value is W + dW:
on average nothing is lost, at the price of noise.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sora_cli.core.errors import SoraError

ENOUGH = 0.95
"""Share of the update below which a merge warns."""
LEAST = 0.75
"""Share of the update below which a merge is refused."""
_FAR = 0.1
"""Modules whose share is lower than the total share by this much are named."""
_NAMED = 3
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


@dataclass(frozen=True)
class Overlap:
    """Inner products that compare an update dW with the stored change dW' = W' - W.

    Attributes:
        update: <dW, dW>.
        along: <dW', dW>.
        change: <dW', dW'>; measured only for stochastic rounding or a changed dtype, else 0.
    """

    update: float = 0.0
    along: float = 0.0
    change: float = 0.0

    def __add__(self, other: Overlap) -> Overlap:
        return Overlap(
            self.update + other.update, self.along + other.along, self.change + other.change
        )

    @property
    def share(self) -> float:
        """<dW', dW> / <dW, dW>; 1 if dW is zero."""
        # the projection of dW' on dW: rounding errors across dW do not count as a part of it
        return self.along / self.update if self.update else 1.0

    @property
    def noise(self) -> float:
        """||dW' - share dW|| / ||dW||; 0 if dW is zero."""
        # Pythagoras: ||dW'||^2 = share^2 ||dW||^2 + ||dW' - share dW||^2
        across = self.change - self.along * self.share
        return math.sqrt(max(across, 0.0) / self.update) if self.update else 0.0


def total(parts: Iterable[Overlap]) -> Overlap:
    """Add the inner products of several updates, as if the updates were one long vector."""
    return sum(parts, Overlap())


@dataclass(frozen=True)
class Survival:
    """The part of an adapter that survives in the stored weights.

    Attributes:
        layers: by adapted module.
        heads: by parameter trained in full; its update is the difference from the base's parameter
            that it replaces.
    """

    layers: Mapping[str, Overlap]
    heads: Mapping[str, Overlap]

    @property
    def all(self) -> Overlap:
        """The sum over all layers."""
        return total(self.layers.values())

    @property
    def share(self) -> float:
        """The share of all layers together or of all heads together, whichever is smaller."""
        return min(self.all.share, total(self.heads.values()).share)

    def worst(self) -> list[tuple[str, float]]:
        """Return modules and parameters with shares far below the total, smallest first."""
        shares = {name: overlap.share for name, overlap in {**self.layers, **self.heads}.items()}
        far = [(name, share) for name, share in shares.items() if share < self.all.share - _FAR]
        return sorted(far, key=lambda entry: entry[1])[:_NAMED]

    def record(self) -> dict[str, float]:
        """Return the total share and noise, for the model's configuration."""
        return _record(self.all)

    def table(self) -> dict[str, dict[str, float]]:
        """Return share and noise of each module and of each parameter trained in full."""
        parts = {**self.layers, **self.heads}
        return {name: _record(overlap) for name, overlap in parts.items() if overlap.update}


def _record(overlap: Overlap) -> dict[str, float]:
    noise = {"noise": round(overlap.noise, 5)} if overlap.change else {}
    return {"share": round(overlap.share, 5), **noise}


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
    overlap = survival.all
    if not overlap.update and not survival.heads:
        return "the adapter's layers change nothing"
    text = f"stored as {dtype}, the merged weights hold {overlap.share:.1%} of the adapter's update"
    if survival.heads:
        text += f", {total(survival.heads.values()).share:.1%} of the parts trained in full"
    worst = ", ".join(f"{name} {share:.1%}" for name, share in survival.worst())
    text += f" (least: {worst})" if worst else ""
    return text + (f"; rounding noise: {overlap.noise:.1%} of its size" if overlap.change else "")


def ways_out(dtype: str, storing: Storing, *more: str) -> str:
    """Return a hint with the options that lose less."""
    ways = []
    if "float32" not in dtype.split(", "):
        ways.append("--dtype float32 keeps all of it")
    if storing.rounding != "stochastic":
        ways.append("--round stochastic keeps it on average, with noise")
    return "; ".join([*ways, *more])
