"""Sizes made by cutting an adapter, or the full difference between a model and its base model.

The sizes are nested: each keeps the components with the largest squared singular value per stored
number, ranked over all layers together. The list of sizes depends only on the number of components,
and is fixed before a row is scored.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import nn

from methods.base import LowRankLinear
from methods.budgets import strongest
from methods.factors import LowRankFactors
from sora_cli.adapter.directory import Adapter, read_adapter
from sora_cli.adapter.pruning import Loss, survey, truncate_layers
from sora_cli.adapter.reading import open_adapter
from sora_cli.recipe.recipe import Recipe
from sora_cli.run.scoring import load_target
from sora_cli.run.stored import load_adapted
from sora_cli.search.certifiable import Certifiable
from sora_cli.search.promise import Promise
from sora_cli.search.rows import SelectionRows
from sora_cli.search.search import Candidate, Search, choose_smallest
from sora_cli.search.sizes import COARSE_RATIO, MAX_SIZES, smaller_sizes
from sora_cli.search.words import certifiable_line
from sora_cli.tasks.row_scores import RowScores

Layers = Mapping[str, LowRankFactors]
Ranks = Mapping[str, int]
Tell = Callable[[str], None]


def smallest_cut(
    adapter: Adapter, recipe: Recipe, promise: Promise, tell: Tell, *, against: str | None = None
) -> Search[Ranks]:
    """Choose the smallest cut of an adapter that is certified to keep a promise.

    Args:
        recipe: recipe that scores the cuts, on the rows that choose checkpoints.
        tell: prints the smallest drop that these rows can certify.
        against: model that drops are measured against; None: the uncut adapter.
    """
    with tempfile.TemporaryDirectory() as scratch:
        reference = None if against is None else _model_scores(against, recipe, Path(scratch))
        scores = Scores(adapter, recipe, Path(scratch))
        return choose_cut(
            adapter.layers, scores.of, promise, scores.split, tell, reference=reference
        )


def choose_cut(
    layers: Layers,
    scores: Callable[[Layers], RowScores],
    promise: Promise,
    split: str,
    tell: Tell,
    *,
    reference: RowScores | None = None,
) -> Search[Ranks]:
    """Choose a cut by a function that scores factors; the key of the result is the layers' ranks.

    Args:
        scores: scores a model with the given factors, always on the same rows in the same order.
        split: name of these rows.
        reference: scores of another model, to measure drops against; the uncut adapter is then the
            largest size to be tested. None: drops are measured against the uncut adapter.
    """
    known = survey(layers)
    values = {path: module.values for path, module in known.items()}
    cost = {path: module.cost for path, module in known.items()}
    everything: Ranks = {path: module.live for path, module in known.items()}
    total = sum(everything.values())

    def at(ranks: Ranks) -> Candidate[Ranks]:
        factors, losses = truncate_layers(layers, known, ranks)
        numbers = sum(loss.after * cost[path] for path, loss in losses.items())
        components = sum(loss.after for loss in losses.values())
        return Candidate(ranks, components, numbers, scores(factors))

    outside = reference is not None
    whole = at(everything) if reference is None else Candidate(everything, total, 0, reference)
    promise = tell_certifiable(whole.scores, split, promise, tell)
    # a difference of two models has full rank, hence many components: halve them to get small soon
    sizes = (
        [total, *smaller_sizes(total, COARSE_RATIO)][:MAX_SIZES]
        if outside
        else smaller_sizes(total)
    )
    return choose_smallest(
        whole,
        sizes,
        lambda count: at(strongest(values, count, cost)),
        promise,
        split,
        outside=outside,
    )


def cut_to(layers: Layers, ranks: Ranks) -> tuple[Layers, dict[str, Loss]]:
    """Cut the layers to the ranks that a search chose; return them and each layer's loss."""
    return truncate_layers(layers, survey(layers), ranks)


def tell_certifiable(scores: RowScores, split: str, promise: Promise, tell: Tell) -> Promise:
    """Print the smallest drop that these rows can certify, if it depends only on their number.

    Returns:
        The promise with `--max-drop smallest` replaced by a number.
    """
    line = certifiable_line(scores, split, promise.confidence)
    if line is not None:
        tell(line)
    rows, right_or_wrong = len(scores), scores.is_right_or_wrong
    able = Certifiable.on(rows, promise.confidence, right_or_wrong=right_or_wrong)
    return promise.settled(able, rows)


class Scores:
    """Scores an adapter row by row, on the rows that the recipe uses to choose checkpoints.

    Attributes:
        split: name of these rows.
        own: function that scores the adapter with its present factors.
    """

    def __init__(self, adapter: Adapter, recipe: Recipe, scratch: Path) -> None:
        rows = SelectionRows(recipe)
        self.split = rows.split
        base, self.layers = load_adapted(adapter, recipe, rows.task)
        self.own = rows.scored_by(base, scratch)

    def of(self, factors: Layers) -> RowScores:
        """Put these factors into the model, and return its scores."""
        for path, layer in self.layers.items():
            _set_factors(layer, factors[path])
        return self.own()


def score_adapter(place: Path, recipe: Recipe) -> tuple[Candidate[Path], str]:
    """Return an adapter as a candidate with its scores, and the name of the scored rows."""
    with open_adapter(place) as file:
        components, parameters = sum(file.ranks[path] for path in file.paths), file.parameters
    with tempfile.TemporaryDirectory() as scratch:
        scores = Scores(read_adapter(place), recipe, Path(scratch))
        return Candidate(place, components, parameters, scores.own()), scores.split


def _model_scores(target: str, recipe: Recipe, scratch: Path) -> RowScores:
    rows = SelectionRows(recipe)
    return rows.scored_by(load_target(target, recipe, rows.task), scratch)()


@torch.no_grad()
def _set_factors(layer: LowRankLinear, factors: LowRankFactors) -> None:
    """Replace an adapted layer's factors by others, of any rank."""
    layer.A = nn.Parameter(factors.A.to(layer.A), requires_grad=False)
    layer.B = nn.Parameter(factors.B.to(layer.B), requires_grad=False)
