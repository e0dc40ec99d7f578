"""Makes sizes by cutting an adapter, or the whole difference of a model to its base.

All sizes lie on one line: the components with the largest squared singular value per number stored
are kept, over all layers together, so each size contains the smaller ones. Which sizes are tested
follows from the number of components alone, before a row is scored.
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
    """Choose the smallest cut of an adapter that is shown to keep a promise.

    Args:
        recipe: what it is scored with, on the rows that choose checkpoints.
        tell: is told what these rows can certify.
        against: reference of the model that nothing is lost against; None: the adapter as it is.

    Raises:
        SoraError: whatever is wrong with the recipe's references; a metric without rows' scores.
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
    """Choose a cut with any scores of factors; its key is the ranks.

    Args:
        scores: of the same rows in the same order, for any factors.
        split: what the rows are called.
        reference: scores that nothing is lost against; then all factors are a size to be tested.
            None: those of all factors.
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
    """Return the layers at the ranks of a search, and the loss of each."""
    return truncate_layers(layers, survey(layers), ranks)


def tell_certifiable(scores: RowScores, split: str, promise: Promise, tell: Tell) -> Promise:
    """Tell what these rows can certify, where that is known before anything is compared.

    Returns:
        The promise with its loss as a number.

    Raises:
        SoraError: see `Promise.settled`.
    """
    line = certifiable_line(scores, split, promise.confidence)
    if line is not None:
        tell(line)
    rows, right_or_wrong = len(scores), scores.is_right_or_wrong
    able = Certifiable.on(rows, promise.confidence, right_or_wrong=right_or_wrong)
    return promise.settled(able, rows)


class Scores:
    """The metric of an adapter, row by row, on the rows that a recipe chooses checkpoints on.

    Attributes:
        split: what these rows are called.
        own: scores the adapter as it is.
    """

    def __init__(self, adapter: Adapter, recipe: Recipe, scratch: Path) -> None:
        rows = SelectionRows(recipe)
        self.split = rows.split
        base, self.layers = load_adapted(adapter, recipe, rows.task)
        self.own = rows.scored_by(base, scratch)

    def of(self, factors: Layers) -> RowScores:
        """Return the scores with these factors in the model."""
        for path, layer in self.layers.items():
            _put(layer, factors[path])
        return self.own()


def score_adapter(place: Path, recipe: Recipe) -> tuple[Candidate[Path], str]:
    """Return an adapter as a size, with its scores, and what the rows are called.

    Raises:
        SoraError: as `smallest_cut`.
    """
    with open_adapter(place) as file:
        components, parameters = sum(file.ranks[path] for path in file.paths), file.parameters
    with tempfile.TemporaryDirectory() as scratch:
        scores = Scores(read_adapter(place), recipe, Path(scratch))
        return Candidate(place, components, parameters, scores.own()), scores.split


def _model_scores(target: str, recipe: Recipe, scratch: Path) -> RowScores:
    rows = SelectionRows(recipe)
    return rows.scored_by(load_target(target, recipe, rows.task), scratch)()


@torch.no_grad()
def _put(layer: LowRankLinear, factors: LowRankFactors) -> None:
    """Give an adapted layer other factors, of any rank."""
    layer.A = nn.Parameter(factors.A.to(layer.A), requires_grad=False)
    layer.B = nn.Parameter(factors.B.to(layer.B), requires_grad=False)
