"""The singular values of an adapter's updates, module by module, and what they add up to.

One module for each core is in memory at a time and no dense `dW` is ever formed, so a 7B-class
adapter takes seconds and little memory.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from methods.factors import LowRankFactors, entropy_rank, rank_for_energy
from sora_cli.adapter.modules import Module

if TYPE_CHECKING:
    from sora_cli.adapter.reading import AdapterFile

T = TypeVar("T")

_CORES = 8  # so that layers in memory stay few; reading them keeps no more at work
LOW, HIGH = 0.90, 0.99
"""Shares of ||dW||_F^2 that effective ranks are given for."""


@dataclass(frozen=True)
class Spectrum:
    """The update of one module by its singular values.

    Attributes:
        shape: (out, in) of the module.
        stored: terms in the file.
        live: those that are not exactly zero.
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
        """The facts that choosing ranks needs."""
        return Module(self.stored, self.live, self.values, sum(self.shape))

    def parameters(self, rank: int) -> int:
        """Return the numbers that so many components of this module take."""
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
    """Numbers that `sora prune` leaves out: terms that are exactly zero."""
    pruned: int
    """Numbers that `sora prune --energy 0.99` leaves out."""


def spectrum(factors: LowRankFactors) -> Spectrum:
    """Compute the spectrum of one update; terms that are exactly zero are only counted."""
    live = factors.live_terms()
    kept = factors if bool(live.all()) else factors.select(live)  # no copy where nothing is dead
    shape = factors.B.shape[0], factors.A.shape[1]
    return Spectrum(shape, factors.rank, kept.rank, kept.singular_values())


def read_spectra(file: AdapterFile) -> dict[str, Spectrum]:
    """Return the spectrum of each module in the file.

    Raises:
        SoraError: a damaged tensor.
    """
    return of_each(file.layers, spectrum)


def of_each(
    layers: Mapping[str, LowRankFactors], work: Callable[[LowRankFactors], T]
) -> dict[str, T]:
    """Return what the work makes of each layer; they are read here, and worked on by several cores.

    Each core works on a layer of its own: two at one thin matrix are slower than one.
    """
    cores = min(os.cpu_count() or 1, _CORES)
    made: dict[str, Future[T]] = {}
    at_work: deque[Future[T]] = deque()
    with one_thread(), ThreadPoolExecutor(cores, initializer=_alone) as pool:
        for path, factors in layers.items():
            if len(at_work) > cores:
                at_work.popleft().result()
            made[path] = pool.submit(work, factors)
            at_work.append(made[path])
        return {path: future.result() for path, future in made.items()}


def _alone() -> None:
    torch.set_num_threads(1)


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


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread: more are slower for thin matrices, by far on busy cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
