"""A small pruned adapter that still scores well, found by bisection over its size.

All candidates lie on one line: the components with the largest squared singular value per number
stored are kept, over all layers together, so each candidate contains the smaller ones.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from methods.base import LowRankLinear
from methods.budgets import strongest
from methods.factors import LowRankFactors
from sora_cli.adapter.directory import Adapter
from sora_cli.adapter.pruning import survey, truncate_layers
from sora_cli.recipe.recipe import Recipe
from sora_cli.run.encode import encode
from sora_cli.run.prepare import check_rows, load_task
from sora_cli.run.stored import load_adapted
from sora_cli.train.trainer import build_trainer


@dataclass(frozen=True)
class Point:
    """A size that was tried."""

    components: int
    parameters: int
    score: float
    drop: float
    """The loss against the whole adapter, in the metric's own unit; negative: better."""
    good: bool


@dataclass(frozen=True)
class Search:
    """The sizes that a search tried, and what it found."""

    metric: str
    split: str
    points: tuple[Point, ...]
    """In the order they were tried; the first is the whole adapter."""
    ranks: Mapping[str, int]
    """The ranks of the smallest that was tried and is good enough."""


class Scores:
    """The metric of an adapter at any ranks, on the rows that a recipe chooses checkpoints on."""

    def __init__(self, adapter: Adapter, recipe: Recipe, scratch: Path) -> None:
        self.task, rows = load_task(recipe)
        with recipe.placing():
            check_rows(self.task, rows, [rows.select])
        base, self.layers = load_adapted(adapter, recipe, self.task)
        reported = [name for name, part in rows.report.items() if part is rows.select]
        self.split = reported[0] if reported else "selection"
        with recipe.placing():
            self.rows = encode(self.task, base, rows.select, rows.origin(rows.select))
        self.trainer = build_trainer(recipe, self.task, base, scratch)

    def of(self, factors: Mapping[str, LowRankFactors]) -> float:
        """Return the recipe's main metric with those factors in the model."""
        for path, layer in self.layers.items():
            _put(layer, factors[path])
        best = self.task.best
        return float(self.task.scores(self.trainer.predictions_of(self.rows, [best]))[best])


def smallest_within(adapter: Adapter, recipe: Recipe, max_drop: float) -> Search:
    """Find by bisection few components whose metric falls by at most `max_drop`.

    Bisection takes the metric to fall as components go; where it does not, what is found is good
    enough, but something smaller might be, too. It is not looked for: the more sizes are tried on
    the same rows, the more often one is good enough by chance.

    Raises:
        SoraError: whatever is wrong with the recipe's references.
    """
    with tempfile.TemporaryDirectory() as scratch:
        scores = Scores(adapter, recipe, Path(scratch))
        better = recipe.task.options.greater_is_better
        about = scores.task.best, scores.split
        return bisect(adapter.layers, scores.of, max_drop, better, about)


def bisect(
    layers: Mapping[str, LowRankFactors],
    score: Callable[[Mapping[str, LowRankFactors]], float],
    max_drop: float,
    greater_is_better: bool,
    about: tuple[str, str],
) -> Search:
    """Search with any score of factors; `about` is its metric and split."""
    known = survey(layers)
    values = {path: module.values for path, module in known.items()}
    cost = {path: module.cost for path, module in known.items()}
    points: list[Point] = []

    def attempt(ranks: Mapping[str, int]) -> bool:
        pruned, losses = truncate_layers(layers, known, ranks)
        value = score(pruned)
        whole = points[0].score if points else value
        drop = whole - value if greater_is_better else value - whole
        size = sum(loss.after * cost[path] for path, loss in losses.items())
        count = sum(loss.after for loss in losses.values())
        points.append(Point(count, size, value, drop, drop <= max_drop))
        return points[-1].good

    everything = {path: module.live for path, module in known.items()}
    attempt(everything)
    high, found = sum(everything.values()), everything
    low = -1  # the largest count known to be too small
    while high - low > 1:
        middle = max((low + high) // 2, 0)
        ranks = strongest(values, middle, cost)
        if attempt(ranks):
            high, found = middle, ranks
        else:
            low = middle
    return Search(*about, points=tuple(points), ranks=found)


@torch.no_grad()
def _put(layer: LowRankLinear, factors: LowRankFactors) -> None:
    """Give an adapted layer other factors, of any rank."""
    layer.A = nn.Parameter(factors.A.to(layer.A), requires_grad=False)
    layer.B = nn.Parameter(factors.B.to(layer.B), requires_grad=False)
