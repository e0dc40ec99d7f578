"""The share of an adapter's effect on the outputs that another set of files reproduces.

Let o0 be the outputs of the base model, oA those with the adapter and oB those of the compared
files. The effect is e = oA - o0, and the measured change is d = oB - o0. The share is <d, e> / <e,
e>: 1 if the whole effect is there, 0 if none. The residual is |d - share e| / |e|: all other
change. Both are measured on the outputs, and on the hidden states of all layers, each position
divided by its norm. The hidden states tell more if weights were rounded: a classifier's outputs are
a dozen numbers, and rounding moves all logits of a causal model together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sora_cli.verify.outputs import HIDDEN, Values, positions
from sora_cli.verify.probes import Probe

_OF_OUTPUTS, _OF_HIDDEN = 2.0, 0.2
"""Uncertainty of the share, in residuals. With random rounding the share is 1 on average; it was
off by up to 1.2 residuals in a classifier's logits and by up to 0.15 in the hidden states."""
_BLIND = 0.15
"""If the uncertainty of the share is larger, there is no verdict."""


@dataclass(frozen=True)
class Effect:
    """The adapter's effect on one tensor of outputs, and the share of it in the other files.

    Attributes:
        name: of the output, or `HIDDEN`.
        size: |e| / |oA|.
        share, residual: see the module; 1 and 0 if the effect is exactly zero.
    """

    name: str
    size: float
    share: float
    residual: float

    @property
    def words(self) -> str:
        """The name, for a person."""
        return self.name.replace("_", " ")

    @property
    def uncertainty(self) -> float:
        """The share that rounding noise as large as the residual may add or hide."""
        return self.residual * (_OF_HIDDEN if self.name == HIDDEN else _OF_OUTPUTS)

    @property
    def blind(self) -> bool:
        """True if noise is too large to measure the share."""
        return self.uncertainty > _BLIND

    def summary(self) -> str:
        """Return the share and the residual in words."""
        return (
            f"{self.share:.2%} of the adapter's effect on the {self.words} is there "
            f"(residual {percent(self.residual)})"
        )


def measure(base: Values, reference: Values, other: Values, probe: Probe) -> tuple[Effect, ...]:
    """Measure the effect on every tensor that all three models give, outputs first."""
    effects = []
    for name in reference:
        if name in other and other[name].shape == reference[name].shape:
            tensors = [positions(name, values[name], probe) for values in (base, reference, other)]
            if name == HIDDEN:
                # each position counts alike, however large its hidden state is; the floor keeps a
                # position of nearly no length from being blown up
                norms = tensors[1].norm(dim=-1, keepdim=True)
                tensors = [tensor / norms.clamp_min(1e-3 * norms.mean()) for tensor in tensors]
            effects.append(measure_one(name, *tensors))
    return tuple(effects)


def measure_one(name: str, base: Tensor, reference: Tensor, other: Tensor) -> Effect:
    """Measure the effect on one tensor."""
    effect, change = reference - base, other - base
    squared = _dot(effect, effect)
    if squared == 0:
        return Effect(name, 0.0, 1.0, 0.0)
    share = _dot(change, effect) / squared  # least squares: the multiple of e nearest to d
    beside = change - share * effect
    size = math.sqrt(squared / max(_dot(reference, reference), _dot(base, base)))
    return Effect(name, size, share, math.sqrt(_dot(beside, beside) / squared))


def _dot(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum(dtype=torch.float64))


def percent(part: float) -> str:
    """Return a part as a percentage; a small part is not shown as 0."""
    return "under 0.01%" if 0 < part < 1e-4 else f"{part:.2%}"
