"""A small pruned adapter that is shown to score nearly as well as the whole, on choosing rows.

All sizes lie on one line: the components with the largest squared singular value per number stored
are kept, over all layers together, so each size contains the smaller ones. Which sizes are tested
follows from the number of components alone, before a row is scored; they are tested the largest
first, each at the whole confidence, until one fails (`search`).
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
from sora_cli.adapter.directory import Adapter
from sora_cli.adapter.pruning import survey, truncate_layers
from sora_cli.core.console import say
from sora_cli.model.base import Base
from sora_cli.recipe.recipe import Recipe
from sora_cli.recipe.tolerance import CONFIDENCE
from sora_cli.run.encode import encode
from sora_cli.run.prepare import check_rows, load_task
from sora_cli.run.scoring import load_target
from sora_cli.run.stored import load_adapted
from sora_cli.search.certifiable import carry_words
from sora_cli.search.choice import Candidate, Search, choose
from sora_cli.search.ladder import LONG_STEP, MOST, smaller_sizes
from sora_cli.tasks.row_scores import RowScores
from sora_cli.train.trainer import build_trainer

Layers = Mapping[str, LowRankFactors]
Ranks = Mapping[str, int]


class _ChoosingRows:
    """The rows that a recipe chooses checkpoints on.

    Attributes:
        split: what these rows are called.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self.task, self._rows = load_task(recipe)
        with recipe.placing():
            check_rows(self.task, self._rows, [self._rows.select])
        rows = self._rows
        reported = [name for name, part in rows.report.items() if part is rows.select]
        self.split = reported[0] if reported else "selection"

    def scored_by(self, base: Base, scratch: Path) -> Callable[[], RowScores]:
        """Return what scores a model, as it then is, on these rows by the recipe's main metric."""
        chosen = self._rows.select
        with self._recipe.placing():
            rows = encode(self.task, base, chosen, self._rows.origin(chosen))
        trainer = build_trainer(self._recipe, self.task, base, scratch)
        return lambda: trainer.row_scores(rows)


class Scores:
    """The metric of an adapter, row by row, on the rows that a recipe chooses checkpoints on.

    Attributes:
        split: what these rows are called.
        own: scores the adapter as it is.
    """

    def __init__(self, adapter: Adapter, recipe: Recipe, scratch: Path) -> None:
        rows = _ChoosingRows(recipe)
        self.split = rows.split
        base, self.layers = load_adapted(adapter, recipe, rows.task)
        self.own = rows.scored_by(base, scratch)

    def of(self, factors: Layers) -> RowScores:
        """Return the scores with these factors in the model."""
        for path, layer in self.layers.items():
            _put(layer, factors[path])
        return self.own()


def scores_of(adapter: Adapter, recipe: Recipe) -> tuple[RowScores, str]:
    """Return an adapter's main metric on the rows that a recipe chooses on, and their name.

    Raises:
        SoraError: whatever is wrong with the recipe's references; a metric without rows' scores.
    """
    with tempfile.TemporaryDirectory() as scratch:
        scores = Scores(adapter, recipe, Path(scratch))
        return scores.own(), scores.split


def smallest_certified(
    adapter: Adapter,
    recipe: Recipe,
    promise: float,
    confidence: float = CONFIDENCE,
    *,
    against: str | None = None,
) -> Search[Ranks]:
    """Choose the smallest size whose metric is shown to fall by at most `promise`.

    Args:
        against: reference of the model that nothing is lost against; None: the adapter as it is.

    Raises:
        SoraError: whatever is wrong with the recipe's references; a metric without rows' scores.
    """
    with tempfile.TemporaryDirectory() as scratch:
        reference = None if against is None else _model_scores(against, recipe, Path(scratch))
        scores = Scores(adapter, recipe, Path(scratch))
        return choose_size(
            adapter.layers, scores.of, promise, confidence, scores.split, reference=reference
        )


def _model_scores(target: str, recipe: Recipe, scratch: Path) -> RowScores:
    rows = _ChoosingRows(recipe)
    return rows.scored_by(load_target(target, recipe, rows.task), scratch)()


def choose_size(
    layers: Layers,
    scores: Callable[[Layers], RowScores],
    promise: float,
    confidence: float,
    split: str,
    *,
    reference: RowScores | None = None,
) -> Search[Ranks]:
    """Choose a size with any scores of factors; its key is the ranks.

    Args:
        scores: of the same rows in the same order, for any factors.
        promise: the largest drop allowed, in the metric's own unit.
        confidence: with which it is to be kept.
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
    say_carried(whole.scores, split, confidence)
    return choose(
        whole,
        [total, *smaller_sizes(total, LONG_STEP)][:MOST] if outside else smaller_sizes(total),
        lambda count: at(strongest(values, count, cost)),
        promise,
        confidence,
        split,
        outside=outside,
    )


def say_carried(scores: RowScores, split: str, confidence: float) -> None:
    """Say what these rows can certify, where that is known before anything is compared."""
    if scores.is_right_or_wrong:
        say(f"{len(scores):,} rows of {split} {carry_words(len(scores), confidence)}")


@torch.no_grad()
def _put(layer: LowRankLinear, factors: LowRankFactors) -> None:
    """Give an adapted layer other factors, of any rank."""
    layer.A = nn.Parameter(factors.A.to(layer.A), requires_grad=False)
    layer.B = nn.Parameter(factors.B.to(layer.B), requires_grad=False)
