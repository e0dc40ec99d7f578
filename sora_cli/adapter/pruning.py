"""Cut the layers of an adapter by a truncation rule (`methods.keep`); no head is touched."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add

from methods.budgets import cost_of
from methods.factors import LowRankFactors
from methods.keep import Keep
from sora_cli.adapter.adapter import Adapter
from sora_cli.adapter.modules import Module, kept_ranks
from sora_cli.adapter.on_demand import OnDemand
from sora_cli.adapter.parts.form import Form, grouped
from sora_cli.adapter.spectra import map_layers
from sora_cli.core.checks import option
from sora_cli.core.errors import SoraError

Layers = Mapping[str, LowRankFactors]

_KEPT = 2**26
"""Numbers kept in memory: 256 MiB in float32, rank 26 in the linear layers of a 7B model."""


@dataclass(frozen=True)
class Loss:
    """The effect of pruning on one layer, or on all."""

    before: int
    """Stored components before the cut."""
    after: int
    dropped: float
    """Squared Frobenius norm of the lost part of dW."""
    squared: float
    """Squared Frobenius norm of dW before the cut."""

    @property
    def relative_error(self) -> float:
        """||dW - pruned dW||_F / ||dW||_F; 0 for a layer that did nothing."""
        return math.sqrt(self.dropped / self.squared) if self.squared else 0.0

    def __add__(self, other: Loss) -> Loss:
        return Loss(
            self.before + other.before,
            self.after + other.after,
            self.dropped + other.dropped,
            self.squared + other.squared,
        )


def at_ranks(layers: Layers, ranks: Mapping[str, int], known: Mapping[str, Module]) -> Layers:
    """Return the layers at chosen ranks, each computed at every access.

    Args:
        known: the result of `survey`, so that no layer is decomposed again.
    """

    def cut(path: str) -> LowRankFactors:
        live = layers[path].drop_zeros()
        if ranks[path] >= live.rank:
            return live
        small: LowRankFactors = known[path].decomposition.truncate(live, ranks[path])
        return small

    return OnDemand(list(layers), cut)


def cached(layers: Layers) -> Layers:
    """Return layers that keep the first results in memory, as many as fit."""
    cache: dict[str, LowRankFactors] = {}
    room = _KEPT

    def get(path: str) -> LowRankFactors:
        nonlocal room
        factors = cache.get(path) or layers[path]
        if path not in cache and factors.parameters <= room:
            cache[path] = factors
            room -= factors.parameters
        return factors

    return OnDemand(list(layers), get)


def prune_layers(
    layers: Layers,
    keep: Keep,
    *,
    modules: int | None = None,
) -> tuple[Layers, dict[str, Loss]]:
    """Cut the layers by a rule; without a rule, leave out only components that are exactly zero.

    One layer for each core is in memory at a time. Of the results, 256 MiB are kept in memory,
    since a writer requests each layer twice.

    Args:
        modules: see `Keep.ranks`.

    Returns:
        The layers, dead ones with rank 0 among them, and the loss of each.
    """
    known = survey(layers)
    small, losses = truncate_layers(layers, known, kept_ranks(known, keep, modules=modules))
    return cached(small), losses


def check_left(
    keep: Keep,
    left: Iterable[tuple[int, float]],
    cost: Iterable[int],
    *,
    block: str | None = None,
) -> None:
    """Refuse a rule that leaves no component of updates that are not zero.

    Args:
        left: of each update, its rank after the cut and its squared norm before.
        cost: numbers in a component of each layer.
        block: the recipe's block with the rule; None: the rule is an option of the command.
    """
    updates = list(left)
    if any(rank for rank, _ in updates) or not any(squared for _, squared in updates):
        return
    name, value = next(iter(keep.given().items()))
    key = None if block is None else f"{block}.{name}"
    raise SoraError(
        f"not one component fits into {key or option(name)} {value:g}",
        hint=f"the smallest takes {min(cost)} parameters",
        key=key,
    )


def check_one_rank(adapter: Adapter, keep: Keep, *, promise: bool = False) -> None:
    """Refuse a rule that gives each of several layers in one tensor a rank of its own.

    Args:
        promise: a test chooses the ranks.
    """
    slices = adapter.objection(lambda part: part.of_one_rank)
    if slices is not None and (promise or keep.given().keys() - {"rank"}):
        raise SoraError(
            f"this adapter changes {slices}: PEFT stores all parts of a tensor at one rank",
            where="a rank for each part would make nothing smaller",
            hint="--rank N alone cuts all of them alike",
        )


def grouped_losses(losses: Mapping[str, Loss], forms: Mapping[str, Form]) -> dict[str, Loss]:
    """Return the loss of each module, with all experts in a parameter as one."""
    groups = grouped(losses, forms)
    return {name: reduce(add, (losses[p] for p in paths)) for name, paths in groups.items()}


def survey(layers: Layers) -> dict[str, Module]:
    """Return ranks and decomposition of each layer; one layer for each core is in memory."""
    return map_layers(layers, _module)


def _module(stored: LowRankFactors) -> Module:
    live = stored.drop_zeros()
    cost = cost_of(stored)
    decomposition = live.decompose()
    return Module(stored.rank, live.rank, decomposition.values, cost, decomposition=decomposition)


def truncate_layers(
    layers: Layers, known: Mapping[str, Module], ranks: Mapping[str, int]
) -> tuple[Layers, dict[str, Loss]]:
    """Return each layer's best approximation of its rank, and the loss.

    Layers without more live components than that keep their factors.
    """
    losses = {}
    for path, module in known.items():
        squared, kept = module.values**2, min(ranks[path], module.live)
        # Eckart-Young: the squared error of a cut is the sum of the squares it drops
        dropped = float(squared[kept:].sum()) if kept < module.live else 0.0
        losses[path] = Loss(module.stored, kept, dropped, float(squared.sum()))
    return at_ranks(layers, ranks, known), losses
