"""Rules for which components of an adapter to keep, by the singular values of each update.

Whatever the rule, its result for each layer is the best approximation of that rank in the
Frobenius norm (Eckart-Young); the head is never touched.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from methods.budgets import strongest
from methods.factors import LowRankFactors, rank_for_energy
from sora_cli.adapter.modules import Module, ranks_for_parameters
from sora_cli.adapter.reading import OnDemand
from sora_cli.adapter.spectra import of_each
from sora_cli.core.checks import check_rules

Layers = Mapping[str, LowRankFactors]

RULES: Mapping[str, str] = {
    "mean_rank": "pooled singular values: the largest of all layers together, as PARA "
    "(arXiv 2604.27796)",
    "max_params": "pooled squared singular values per number stored, over all layers together, "
    "the largest that fit",
    "energy": "each layer by itself: the largest singular values that hold that share of its "
    "squared norm",
    "rank": "each layer by itself: its largest singular values",
    "max_drop": "pooled squared singular values per number stored, over all layers together; how "
    "many by tests in a fixed order",
}
"""The way in which each rule chooses, for people."""
_KEPT = 2**26
"""Numbers that `prune_layers` keeps: 256 MiB in float32, rank 26 of the linear layers of a 7B."""


@dataclass(frozen=True)
class Loss:
    """The effect of pruning on one layer, or on all."""

    before: int
    """Components stored before."""
    after: int
    dropped: float
    """Squared Frobenius norm of what was lost."""
    squared: float
    """Squared Frobenius norm of dW before."""

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
    """Return the layers at chosen ranks, each computed when it is asked for.

    Args:
        known: of `survey`, so that no layer is decomposed again.
    """

    def cut(path: str) -> LowRankFactors:
        live = layers[path].drop_zeros()
        if ranks[path] >= live.rank:
            return live
        small: LowRankFactors = known[path].decomposition.truncate(live, ranks[path])
        return small

    return OnDemand(list(layers), cut)


def _kept(layers: Layers) -> Layers:
    """Return layers that are on demand, and of which the first that fit are kept in memory."""
    kept: dict[str, LowRankFactors] = {}
    left = _KEPT

    def get(path: str) -> LowRankFactors:
        nonlocal left
        factors = kept.get(path) or layers[path]
        if path not in kept and factors.parameters <= left:
            kept[path] = factors
            left -= factors.parameters
        return factors

    return OnDemand(list(layers), get)


def prune_layers(
    layers: Layers,
    *,
    energy: float | None = None,
    rank: int | None = None,
    max_params: int | None = None,
    mean_rank: float | None = None,
    modules: int | None = None,
) -> tuple[Layers, dict[str, Loss]]:
    """Shrink the layers by one rule; without any, leave out only terms that are exactly zero.

    One layer for each core is in memory at a time; of what is returned, what fits into 256 MiB is
    kept once it is made, for a writer asks for it twice.

    Args:
        energy: each layer keeps the smallest rank with that share of its squared Frobenius norm.
        rank: each layer keeps at most that many components.
        max_params: numbers the factors of all layers may hold together (the head not counted).
        mean_rank: components kept per module, those with the largest singular values of all.
        modules: what `mean_rank` is the mean over: also dead modules that are not stored; None:
            the layers.

    Returns:
        The layers, dead ones with rank 0 among them, and the loss of each.

    Raises:
        SoraError: more than one rule, or a value out of range.
    """
    check_rules({"energy": energy, "rank": rank, "max_params": max_params, "mean_rank": mean_rank})
    known = survey(layers)
    keep = {path: module.live for path, module in known.items()}
    if energy is not None:
        keep = {path: rank_for_energy(m.values, energy) for path, m in known.items()}
    elif rank is not None:
        keep = dict.fromkeys(known, rank)
    elif max_params is not None:
        keep = ranks_for_parameters(known, max_params)
    elif mean_rank is not None:
        count = int(mean_rank * (len(known) if modules is None else modules))
        keep = strongest({path: m.values for path, m in known.items()}, count)
    small, losses = truncate_layers(layers, known, keep)
    return _kept(small), losses


def survey(layers: Layers) -> dict[str, Module]:
    """Return ranks and decomposition of each layer, with one for each core in memory at a time."""
    return of_each(layers, _module)


def _module(stored: LowRankFactors) -> Module:
    live = stored.drop_zeros()
    cost = stored.A.shape[1] + stored.B.shape[0]
    found = live.decompose()
    return Module(stored.rank, live.rank, found.values, cost, found)


def truncate_layers(
    layers: Layers, known: Mapping[str, Module], ranks: Mapping[str, int]
) -> tuple[Layers, dict[str, Loss]]:
    """Return each layer's best approximation of its rank, and what that loses.

    Layers that have no more live terms than that keep them as they are.
    """
    losses = {}
    for path, module in known.items():
        squared, kept = module.values**2, min(ranks[path], module.live)
        dropped = float(squared[kept:].sum()) if kept < module.live else 0.0
        losses[path] = Loss(module.stored, kept, dropped, float(squared.sum()))
    return at_ranks(layers, ranks, known), losses
