"""Sizes made by cutting an adapter, or the full difference between a model and its base model.

The sizes are nested: each keeps the components with the largest squared singular value per stored
number, ranked over all layers together. The list of sizes depends only on the number of components,
and is fixed before a row is scored.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import nn

from methods.base import LowRankLinear
from methods.budgets import strongest
from methods.factors import LowRankFactors
from sora_cli.adapter.apply import load_head
from sora_cli.adapter.directory import Adapter, read_adapter
from sora_cli.adapter.pruning import Loss, survey, truncate_layers
from sora_cli.adapter.reading import open_adapter
from sora_cli.adapter.rounding import Rounding
from sora_cli.core.console import duration
from sora_cli.recipe.recipe import Recipe
from sora_cli.run.scoring import load_target
from sora_cli.run.stored import load_adapted
from sora_cli.search.certifiable import Certifiable
from sora_cli.search.promise import Promise
from sora_cli.search.rows import ChoosingRows
from sora_cli.search.search import Candidate, Search, choose_smallest
from sora_cli.search.sizes import COARSE_RATIO, MAX_SIZES, SIZE_RATIO, smaller_sizes
from sora_cli.search.statement import NOT_ALONE
from sora_cli.search.words import answers_lines, certifiable_line
from sora_cli.tasks.row_scores import RowScores

Layers = Mapping[str, LowRankFactors]
Ranks = Mapping[str, int]
Tell = Callable[[str], None]


def smallest_cut(
    adapter: Adapter,
    recipe: Recipe,
    rows: ChoosingRows,
    promise: Promise,
    tell: Tell,
    *,
    against: str | None = None,
    rounding: Rounding | None = None,
) -> Search[Ranks]:
    """Choose the smallest cut of an adapter that is certified to keep a promise.

    Args:
        recipe: recipe that scores the cuts.
        rows: rows that the cuts are scored on.
        tell: prints the smallest drop that these rows can certify, and the scoring ahead.
        against: model that drops are measured against; None: the uncut adapter.
        rounding: test each cut as it will be stored: rounded.
    """
    with tempfile.TemporaryDirectory() as scratch:
        place, reference = Path(scratch), None
        if against is not None:
            reference = rows.scored_by(load_target(against, recipe, rows.task), place)()
        scores = Scores(adapter, recipe, rows, place)
        return choose_cut(
            adapter.layers,
            scores.of,
            promise,
            rows.split,
            tell,
            reference=reference,
            as_stored=None if rounding is None else partial(scores.rounded, rounding),
        )


def choose_cut(
    layers: Layers,
    scores: Callable[[Layers], RowScores],
    promise: Promise,
    split: str,
    tell: Tell,
    *,
    reference: RowScores | None = None,
    as_stored: Callable[[Layers], RowScores] | None = None,
) -> Search[Ranks]:
    """Choose a cut by a function that scores factors; the key of the result is the layers' ranks.

    Args:
        scores: scores a model with the given factors, always on the same rows in the same order.
        split: name of these rows.
        reference: scores of another model, to measure drops against; the uncut adapter is then the
            largest size to be tested. None: drops are measured against the uncut adapter.
        as_stored: scores factors as they will be stored, if that changes them; then the uncut
            adapter is a size to be tested, too. None: `scores`.
    """
    known = survey(layers)
    values = {path: module.values for path, module in known.items()}
    cost = {path: module.cost for path, module in known.items()}
    everything: Ranks = {path: module.live for path, module in known.items()}
    total = sum(everything.values())

    def at(ranks: Ranks, scores: Callable[[Layers], RowScores]) -> Candidate[Ranks]:
        factors, losses = truncate_layers(layers, known, ranks)
        numbers = sum(loss.after * cost[path] for path, loss in losses.items())
        components = sum(loss.after for loss in losses.values())
        return Candidate(ranks, components, numbers, scores(factors))

    began, outside, took = time.perf_counter(), None, ""
    if reference is not None:
        whole, outside = Candidate(everything, total, 0, reference), "the model"
    else:
        whole = at(everything, scores)
        took = f", as the uncut adapter in {duration(time.perf_counter() - began)}"
        outside = None if as_stored is None else "the unrounded adapter"
    promise = tell_certifiable(whole.scores, split, promise, tell)
    # a difference of two models has full rank, hence many components: halve them to get small soon
    ratio = SIZE_RATIO if reference is None else COARSE_RATIO
    sizes = [total, *smaller_sizes(total, ratio)][:MAX_SIZES] if outside else smaller_sizes(total)
    tell(f"up to {len(sizes)} sizes are scored, each on {len(whole.scores):,} rows{took}")
    return choose_smallest(
        whole,
        sizes,
        lambda count: at(strongest(values, count, cost), as_stored or scores),
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
        The promise with `smallest` replaced by a number.
    """
    rows = len(scores)
    certifiable = Certifiable.on(rows, promise.confidence, scores)
    settled = promise.settled(certifiable, rows)
    lines: Iterable[str | None] = [certifiable_line(scores, split, promise.confidence)]
    if promise.by_answers:
        lines = answers_lines(settled, rows, certifiable.bound)
    for line in filter(None, [*lines, None if scores.rows_alone else NOT_ALONE]):
        tell(line)
    return settled


class Scores:
    """Scores an adapter row by row.

    Attributes:
        own: function that scores the adapter with its present factors.
    """

    def __init__(self, adapter: Adapter, recipe: Recipe, rows: ChoosingRows, scratch: Path) -> None:
        self._base, self.layers = load_adapted(adapter, recipe, rows.task)
        self._base_weights = adapter.base_weights
        self.own = rows.scored_by(self._base, scratch)

    def of(self, factors: Layers) -> RowScores:
        """Put these factors into the model, and return its scores."""
        for path, layer in self.layers.items():
            _set_factors(layer, factors[path])
        return self.own()

    def rounded(self, rounding: Rounding, factors: Layers) -> RowScores:
        """Put these factors and the head into the model as they will be stored; return its scores.

        From then on the model has the rounded head.
        """
        if rounding.head.error is not None:
            with torch.no_grad():
                load_head(self._base.model, rounding.head.tensors, base_weights=self._base_weights)
        return self.of(rounding.layers(factors))


def score_adapter(place: Path, recipe: Recipe, rows: ChoosingRows) -> Candidate[Path]:
    """Return an adapter as a candidate with its scores."""
    with open_adapter(place) as file:
        components, parameters = sum(file.ranks[path] for path in file.paths), file.parameters
    with tempfile.TemporaryDirectory() as scratch:
        scores = Scores(read_adapter(place), recipe, rows, Path(scratch))
        return Candidate(place, components, parameters, scores.own())


@torch.no_grad()
def _set_factors(layer: LowRankLinear, factors: LowRankFactors) -> None:
    """Replace an adapted layer's factors by others, of any rank."""
    layer.A = nn.Parameter(factors.A.to(layer.A), requires_grad=False)
    layer.B = nn.Parameter(factors.B.to(layer.B), requires_grad=False)
