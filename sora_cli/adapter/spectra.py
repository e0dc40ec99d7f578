"""The singular values of an adapter's updates, module by module, and their totals.

One module for each core is in memory at a time and no dense `dW` is ever formed, so a 7B-class
adapter takes seconds and little memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from methods.factors import LowRankFactors, entropy_rank, rank_for_energy
from sora_cli.adapter.modules import Module
from sora_cli.model.threads import by_cores

if TYPE_CHECKING:
    from sora_cli.adapter.adapter import Adapter

T = TypeVar("T")

LOW, HIGH = 0.90, 0.99
"""Shares of ||dW||_F^2 for the effective ranks."""


@dataclass(frozen=True)
class Spectrum:
    """The update of one module by its singular values.

    Attributes:
        shape: (out, in) of the module, or of each expert.
        stored: components in the file.
        live: components that are not exactly zero.
        values: (min(live, out, in),) singular values, descending, float64.
    """

    shape: tuple[int, int]
    stored: int
    live: int
    values: Tensor

    @property
    def norm(self) -> float:
        """||dW||_F."""
        return float(torch.linalg.vector_norm(self.values))

    @property
    def largest(self) -> float:
        """||dW||_2; 0 for a dead module."""
        return float(self.values[0]) if self.values.numel() else 0.0

    @cached_property
    def rank_low(self) -> int:
        """Components that hold 90 % of ||dW||_F^2."""
        return rank_for_energy(self.values, LOW)

    @cached_property
    def rank_high(self) -> int:
        """Components that hold 99 % of ||dW||_F^2."""
        return rank_for_energy(self.values, HIGH)

    @cached_property
    def entropy(self) -> float:
        """Effective rank by entropy, see `entropy_rank`."""
        return entropy_rank(self.values)

    @property
    def module(self) -> Module:
        """The facts for choosing ranks."""
        return Module(self.stored, self.live, self.values, sum(self.shape))

    def as_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "shape": list(self.shape),
            "rank_90": self.rank_low,
            "rank_99": self.rank_high,
            "entropy_rank": self.entropy,
            "norm": self.norm,
            "largest": self.largest,
            "singular_values": self.values.tolist(),
        }

    def parameters(self, rank: int) -> int:
        """Return the numbers in this many components of the module."""
        return rank * sum(self.shape)


@dataclass(frozen=True)
class Totals:
    """All modules together: ranks are sums, the norm is that of all updates side by side."""

    live: int
    rank_low: int
    rank_high: int
    entropy: float
    norm: float
    lossless: int
    """Numbers that `sora prune` removes: components that are exactly zero."""
    pruned: int
    """Numbers that `sora prune --energy 0.99` removes."""


def spectrum(factors: LowRankFactors) -> Spectrum:
    """Compute the spectrum of one update; components that are exactly zero are only counted."""
    live = factors.drop_zeros()
    shape = factors.B.shape[0], factors.A.shape[1]
    return Spectrum(shape, factors.rank, live.rank, live.singular_values())


def read_spectra(adapter: Adapter) -> dict[str, Spectrum]:
    """Return the spectrum of each module in the file; all experts in a parameter are one module.

    Side by side on a diagonal, their singular values are those of one update.
    """
    each = map_layers(adapter.layers, spectrum)
    together = {}
    for name, paths in adapter.groups.items():
        parts = [each[path] for path in paths]
        values = torch.cat([part.values for part in parts]).sort(descending=True).values
        stored, live = (sum(getattr(p, n) for p in parts) for n in ("stored", "live"))
        together[name] = Spectrum(parts[0].shape, stored, live, values)
    return together


def map_layers(
    layers: Mapping[str, LowRankFactors], work: Callable[[LowRankFactors], T]
) -> dict[str, T]:
    """Apply a function to each layer; each core reads one layer at a time."""
    return by_cores(layers, lambda path: work(layers[path]))


def totals(spectra: Mapping[str, Spectrum]) -> Totals:
    """Sum up an adapter."""
    modules = list(spectra.values())
    return Totals(
        live=sum(m.live for m in modules),
        rank_low=sum(m.rank_low for m in modules),
        rank_high=sum(m.rank_high for m in modules),
        entropy=sum(m.entropy for m in modules),
        norm=math.hypot(*(m.norm for m in modules)),
        lossless=sum(m.parameters(m.stored - m.live) for m in modules),
        pruned=sum(m.parameters(m.stored - m.rank_high) for m in modules),
    )
