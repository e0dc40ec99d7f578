"""The verdict on a server, from distances between its model and ours."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from torch import Tensor

from sora_cli.core.exit_codes import FAILED, NO_VERDICT, OK

TEXTS = 24
"""Texts that are put to a server, at most."""
_NOISES, _OWN = 1.5, 0.03
"""A distance is explained up to so many times the noise and this part of the adapter's effect, for
the rounding of its own numbers. With 4-bit weights in llama.cpp (SmolLM2) adapters of effects from
0.16 to 1.3 were 1.1 to 1.3 times as far away as the base, others of the same recipe 1.9 to 13."""
_FAR = 1.5
"""A distance is not explained from so many times that on; what lies between is unclear."""


class Served(Enum):
    """The outcome of a comparison; its value is shown to the user."""

    ADAPTER = "this adapter"
    BASE = "the bare base"
    ANOTHER = "another adapter"
    NEITHER = "neither"
    UNKNOWN = "cannot tell"


@dataclass(frozen=True)
class Finding:
    """A verdict on a server, with its measurements.

    Attributes:
        texts: number of texts that were put to the server.
        tokens: number of compared log-probabilities; None: the server gives none.
        to_adapter, to_base: distance from the server to each: the root mean square difference of
            log-probabilities, or with `tokens` None the number of texts with another next token.
        effect: the same distance from the adapter to its base.
        noise: the same distance from the server's bare base to ours; None: it cannot be asked.
        share, residual: of the adapter's effect (`effect.Effect`); None without log-probabilities.
        cosine, least_cosine: of vectors: of the change of each text's vector with that by the
            adapter, in the mean and at least. All distances are then those of whole vectors.
        reason: in words; empty if the numbers say it.
    """

    verdict: Served
    reason: str = ""
    texts: int = 0
    tokens: int | None = None
    to_adapter: float | None = None
    to_base: float | None = None
    effect: float | None = None
    noise: float | None = None
    share: float | None = None
    residual: float | None = None
    cosine: float | None = None
    least_cosine: float | None = None

    @property
    def exit_code(self) -> int:
        """The exit code of a command that ends with this verdict."""
        return {Served.ADAPTER: OK, Served.UNKNOWN: NO_VERDICT}.get(self.verdict, FAILED)


def judge(
    to_adapter: float, to_base: float, size: float, noise: float | None, *, most: float
) -> tuple[Served, str]:
    """Judge by distances, with the reason of a verdict that the distances alone do not give.

    Args:
        to_adapter, to_base: from the server's model to ours.
        size: from our adapter to our base.
        noise: from the server's base to ours; None: not known.
        most: the largest that it can be.
    """
    limits = [_NOISES * rounding + _OWN * size for rounding in (0.0, noise or 0.0, most)]
    if any(to_adapter <= limit < to_base / _FAR for limit in limits[:2]):
        return Served.ADAPTER, ""
    if any(to_base <= limit < to_adapter / _FAR for limit in limits):
        return Served.BASE, ""
    if to_adapter > _FAR * limits[2]:
        if noise is None:
            return Served.NEITHER, "another adapter or strength, or another base model"
        return Served.ANOTHER, f"its base differs from ours by {noise:.2g} only"
    which = "not the bare base; " if to_base > limits[2] else ""
    told = "unknown: it has no base to ask" if noise is None else f"{noise:.2g} on its base"
    return Served.UNKNOWN, f"{which}rounding ({told}) or another adapter explains the distance"


def rms(values: Tensor) -> float:
    """Return the root mean square of numbers."""
    return math.sqrt(float(values.square().mean()))
