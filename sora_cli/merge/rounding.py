"""The rounding of merged weights to the dtype they are stored in, and what it leaves of the update.

A float16 or bfloat16 number next to W is up to 2^-11 or 2^-8 of W away. An update that is smaller
than half of that step vanishes when W + dW is rounded to the nearest number. Stochastic rounding
takes the upper or the lower neighbour with probabilities that make the expected value W + dW:
nothing vanishes on average, and what is added is noise.
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
"""A share of the update below this is warned of."""
LEAST = 0.75
"""A share below this is refused."""
_FAR = 0.1
"""A module whose share is so much below that of all is named."""
_NAMED = 3
_SAFE = (1e-20, 1e30)  # products summed in float32 are right between these
_FINEST = 2.0**-120  # the reciprocal of a finer step is no float32 number


@dataclass(frozen=True)
class Storing:
    """The way in which merged weights are stored.

    Attributes:
        dtype: of all floating-point tensors, one of `core.checks.STORED`; "base": as they are.
        rounding: "nearest" or "stochastic", of what the adapter changes.
        seed: of stochastic rounding.
        accept_loss: store them, however little of the update is left.
    """

    dtype: str = "base"
    rounding: str = "nearest"
    seed: int = 0
    accept_loss: bool = False


AS_IN_BASE = Storing()


@dataclass(frozen=True)
class Kept:
    """The part of an update dW that is left once W + dW is stored as W'; with dW' = W' - W.

    Attributes:
        update: <dW, dW>.
        along: <dW', dW>.
        change: <dW', dW'>; measured where the rounding is stochastic or the dtype another one.
    """

    update: float = 0.0
    along: float = 0.0
    change: float = 0.0

    def __add__(self, other: Kept) -> Kept:
        return Kept(
            self.update + other.update, self.along + other.along, self.change + other.change
        )

    @property
    def share(self) -> float:
        """<dW', dW> / <dW, dW>; 1 where there is no update."""
        return self.along / self.update if self.update else 1.0

    @property
    def noise(self) -> float:
        """||dW' - share dW|| / ||dW||; 0 where there is no update."""
        across = self.change - self.along * self.share
        return math.sqrt(max(across, 0.0) / self.update) if self.update else 0.0


def total(parts: Iterable[Kept]) -> Kept:
    """Return the sum of several updates' numbers: they are one long vector."""
    return sum(parts, Kept())


@dataclass(frozen=True)
class Survival:
    """The part of an adapter that is left in the weights as they are stored.

    Attributes:
        layers: by adapted module.
        heads: by parameter that is trained in full and takes the place of one of the base's; its
            update is the difference of both.
    """

    layers: Mapping[str, Kept]
    heads: Mapping[str, Kept]

    @property
    def all(self) -> Kept:
        """The updates of all layers."""
        return total(self.layers.values())

    @property
    def share(self) -> float:
        """The share of all layers together, or of all heads, whichever is smaller."""
        return min(self.all.share, total(self.heads.values()).share)

    def worst(self) -> list[tuple[str, float]]:
        """Return modules and parameters of which far less is left than of all, the least first."""
        shares = {name: kept.share for name, kept in {**self.layers, **self.heads}.items()}
        far = [(name, share) for name, share in shares.items() if share < self.all.share - _FAR]
        return sorted(far, key=lambda entry: entry[1])[:_NAMED]

    def record(self) -> dict[str, float]:
        """Return the numbers in all, for the model's configuration."""
        return _record(self.all)

    def table(self) -> dict[str, dict[str, float]]:
        """Return the numbers of each module, and of each parameter trained in full."""
        parts = {**self.layers, **self.heads}
        return {name: _record(kept) for name, kept in parts.items() if kept.update}


def _record(kept: Kept) -> dict[str, float]:
    noise = {"noise": round(kept.noise, 5)} if kept.change else {}
    return {"share": round(kept.share, 5), **noise}


def inner(x: Tensor, y: Tensor) -> float:
    """Return <x, y> of two float32 tensors; of small or large numbers computed in float64."""
    x, y = x.reshape(-1), y.reshape(-1)
    product = float(torch.dot(x, y))
    if _SAFE[0] < abs(product) < _SAFE[1]:
        return product
    return float(torch.dot(x.double(), y.double()))


def round_stochastically(
    numbers: Tensor, dtype: torch.dtype, *, seed: int, name: str, start: int
) -> None:
    """Round float32 numbers to ones that a narrower dtype has, in place, without a bias.

    The random bits belong to the seed, the tensor's name and the place in it: however a tensor is
    cut into blocks, it is rounded in the same way.

    Args:
        start: place in the tensor of the first of the numbers.
    """
    limits = torch.finfo(dtype)
    powers = numbers.view(torch.int32).bitwise_and(0x7F800000).view(torch.float32)
    step = powers.mul_(limits.eps).clamp_min_(max(limits.tiny * limits.eps, _FINEST))
    bits = round(-math.log2(torch.finfo(torch.float32).eps / limits.eps))  # that are lost
    drawn = random_bits(seed, name, start, numbers.numel()) >> (16 - bits)
    chance = torch.from_numpy(drawn.astype(np.float32)).view(numbers.shape).mul_(2.0**-bits)
    numbers.div_(step).add_(chance).floor_().mul_(step).clamp_(limits.min, limits.max)


def random_bits(seed: int, name: str, start: int, count: int) -> np.ndarray:
    """Return the 16 random bits of so many numbers of a tensor, from a place on."""
    key = hashlib.sha256(f"{seed} {name}".encode()).digest()[:16]
    generator = np.random.Philox(key=int.from_bytes(key, "little"))
    generator.advance(start // 16)  # a step of its counter gives four words of 64 bits
    skip = start % 16
    words = generator.random_raw(-(-(skip + count) // 4))
    return words.astype("<u8").view("<u2")[skip : skip + count]


def check_survival(survival: Survival, dtype: str, storing: Storing) -> None:
    """Raise `SoraError` where so little of the update is left that the merge would be no merge."""
    if survival.share >= LEAST or storing.accept_loss:
        return
    raise SoraError(
        f"{shown_survival(survival, dtype)}: nothing was written",
        hint=ways_out(dtype, storing, "--accept-loss writes it all the same"),
    )


def shown_survival(survival: Survival, dtype: str) -> str:
    """Return one line: the share of the update that the weights hold as they are stored."""
    kept = survival.all
    if not kept.update and not survival.heads:
        return "the adapter's layers change nothing"
    text = f"stored as {dtype}, the merged weights hold {kept.share:.1%} of the adapter's update"
    if survival.heads:
        text += f", {total(survival.heads.values()).share:.1%} of what is trained in full"
    worst = ", ".join(f"{name} {share:.1%}" for name, share in survival.worst())
    text += f" (least: {worst})" if worst else ""
    return text + (f"; noise: {kept.noise:.1%} of its size" if kept.change else "")


def ways_out(dtype: str, storing: Storing, *more: str) -> str:
    """Return what can be typed to lose less."""
    ways = []
    if "float32" not in dtype.split(", "):
        ways.append("--dtype float32 keeps all of it")
    if storing.rounding != "stochastic":
        ways.append("--round stochastic keeps it on average, with noise")
    return "; ".join([*ways, *more])
