"""Sizes made by cutting an adapter, or the full difference between a model and its base model.

The sizes are nested: each keeps the components with the largest squared singular value per stored
number, ranked over all layers together. The list of sizes depends only on the number of components,
and is fixed before a row is scored.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from methods.base import LowRankLinear
from methods.budgets import costs_of, strongest
from methods.factors import LowRankFactors
from sora_cli.adapter.adapter import Adapter
from sora_cli.adapter.apply import prepare
from sora_cli.adapter.pruning import Loss, survey, truncate_layers
from sora_cli.adapter.reading import read_adapter
from sora_cli.adapter.rounding import Rounding
from sora_cli.core.console import duration, say_notes
from sora_cli.model.base import Base
from sora_cli.recipe.recipe import Recipe
from sora_cli.run.scoring import load_target
from sora_cli.run.stored import load_adapted
from sora_cli.search.evidence import Candidate, Reference
from sora_cli.search.promise import Promise
from sora_cli.search.row_set import RowSet
from sora_cli.search.rows import method_on
from sora_cli.search.search import Outcome, Scored, sizes_tested
from sora_cli.search.size import Size, size_of
from sora_cli.search.sizes import COARSE_RATIO, MAX_SIZES, SIZE_RATIO, smaller_sizes
from sora_cli.search.statistic import BoundMethod
from sora_cli.search.statistics import statistic_of
from sora_cli.search.test_rows import EncodedRows, TestRows
from sora_cli.search.words import promise_lines
from sora_cli.tasks.base import Task
from sora_cli.tasks.row_scores import RowScores
from sora_cli.train.trainer import AdapterTrainer, build_scorer

Layers = Mapping[str, LowRankFactors]
Ranks = Mapping[str, int]
Tell = Callable[[str], None]
UNCUT, UNROUNDED, MODEL = "the uncut adapter", "the unrounded adapter", "the model"
"""Names of the reference."""


@dataclass(frozen=True)
class Cut(Outcome):
    """A search among cuts.

    Attributes:
        everything: the layers' ranks before any cut.
        ranks: of each candidate.
    """

    everything: Ranks
    ranks: tuple[Ranks, ...]

    def written(self, chosen: int | None) -> Ranks:
        """Return the ranks of a candidate; None: of the reference."""
        return self.everything if chosen is None else self.ranks[chosen]


def smallest_cut(
    adapter: Adapter,
    recipe: Recipe,
    rows: TestRows,
    promise: Promise,
    tell: Tell,
    *,
    against: str | None = None,
    rounding: Rounding | None = None,
) -> Cut:
    """Find the smallest cut of an adapter that is certified to keep a promise.

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
            model = load_target(against, recipe, rows.task)
            reference = scored_on(rows, recipe, model, place)[1]()
        scores = Scores(adapter, recipe, rows, place)
        say_notes(scores.rows.notes())
        return choose_cut(
            adapter.layers,
            scores.of,
            promise,
            scores.rows.row_set(),
            tell,
            reference=reference,
            as_stored=None if rounding is None else partial(scores.rounded, rounding),
        )


def choose_cut(
    layers: Layers,
    scores: Callable[[Layers], RowScores],
    promise: Promise,
    rows: RowSet,
    tell: Tell,
    *,
    reference: RowScores | None = None,
    as_stored: Callable[[Layers], RowScores] | None = None,
) -> Cut:
    """Test cuts by a function that scores factors.

    Args:
        scores: scores a model with the given factors, always on the same rows in the same order.
        reference: scores of another model, to measure drops against; the uncut adapter is then the
            largest size to be tested. None: drops are measured against the uncut adapter.
        as_stored: scores factors as they will be stored, if that changes them; then the uncut
            adapter is a size to be tested, too. None: `scores`.
    """
    known = survey(layers)
    values = {path: module.values for path, module in known.items()}
    cost = {path: module.cost for path, module in known.items()}
    everything: Ranks = {path: module.live for path, module in known.items()}
    ranks: list[Ranks] = []

    def at(wanted: Ranks, scores: Callable[[Layers], RowScores]) -> tuple[Size, RowScores]:
        factors, losses = truncate_layers(layers, known, wanted)
        left = {path: loss.after for path, loss in losses.items()}
        return size_of(left, cost, promise.serve), scores(factors)

    def made(components: int) -> Scored:
        ranks.append(strongest(values, components, cost))
        size, found = at(ranks[-1], as_stored or scores)
        return Candidate(**size.model_dump(), test=None), found

    began, took, total = time.perf_counter(), "", sum(everything.values())
    name = UNCUT if as_stored is None else UNROUNDED
    if reference is None:
        whole, full = at(everything, scores)
        took = f", as the uncut adapter in {duration(time.perf_counter() - began)}"
    else:
        name, full = MODEL, reference
        whole = Size(parameters=0, components=total, largest_rank=0, served=0)
    bound, promise = method_told(full, promise, tell)
    # a difference of two models has full rank, hence many components: halve them to get small soon
    ratio = SIZE_RATIO if reference is None else COARSE_RATIO
    within = name == UNCUT
    sizes = smaller_sizes(total) if within else [total, *smaller_sizes(total, ratio)][:MAX_SIZES]
    tell(f"up to {len(sizes)} sizes are scored, each on {len(full):,} rows{took}")
    candidates, bound = sizes_tested(full, sizes, made, promise, bound)
    score = statistic_of(full).score(full, full)
    about = Reference(
        **whole.model_dump(), name=name, within=within, directory="", digest="", test=score
    )
    return Cut(promise, bound, about, candidates, rows, full, everything, tuple(ranks))


def cut_to(layers: Layers, ranks: Ranks) -> tuple[Layers, dict[str, Loss]]:
    """Cut the layers to the ranks that a search chose; return them and each layer's loss."""
    return truncate_layers(layers, survey(layers), ranks)


def method_told(scores: RowScores, promise: Promise, tell: Tell) -> tuple[BoundMethod, Promise]:
    """Return the method of the test and the promise as a number; print the drop it can certify."""
    rows = len(scores)
    bound = method_on(scores, rows, promise)
    promise = promise.settled(bound, rows)
    for line in promise_lines(promise, statistic_of(scores), bound, rows):
        tell(line)
    return bound, promise


def scored_on(
    rows: TestRows, recipe: Recipe, base: Base, scratch: Path
) -> tuple[EncodedRows, Callable[[], RowScores]]:
    """Return the rows encoded for a model, and a function that scores the model as it is then."""
    with recipe.placing():
        encoded = rows.distinct_on(base)
    trainer = build_scorer(recipe, rows.task, base, scratch)
    return encoded, lambda: encoded.scores(trainer)


class Scores:
    """Scores an adapter row by row.

    Attributes:
        rows: the rows that test, encoded.
        own: function that scores the adapter with its present factors.
    """

    def __init__(self, adapter: Adapter, recipe: Recipe, rows: TestRows, scratch: Path) -> None:
        self._base, self.layers = load_adapted(adapter, recipe, rows.task)
        self._adapter = adapter
        self.rows, self.own = scored_on(rows, recipe, self._base, scratch)

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
            prepare(self._base.model, self._adapter.with_full(rounding.head.tensors))
        return self.of(rounding.layers(factors))


@contextmanager
def loaded_to_score(
    place: Path, recipe: Recipe, task: Task, *, serve: str | None = None, on: str | None = None
) -> Iterator[tuple[Size, Base, AdapterTrainer]]:
    """Load an adapter; yield its size, the model with it, and a trainer that scores the model.

    Args:
        serve: server of the adapter; None: parameters count.
        on: the base model named by the user, which must hold the same weights.
    """
    adapter = read_adapter(place)
    live = {path: int(f.live_components().sum()) for path, f in adapter.layers.items()}
    size = size_of(live, costs_of(adapter.layers), serve)
    base, _ = load_adapted(adapter, recipe, task, on=on, strict=True)
    with tempfile.TemporaryDirectory() as scratch:  # a trainer makes its directory
        yield size, base, build_scorer(recipe, task, base, Path(scratch))


def score_adapter(
    place: Path, recipe: Recipe, rows: TestRows
) -> tuple[Size, EncodedRows, RowScores]:
    """Return an adapter's size, the rows encoded for it, and its scores."""
    with loaded_to_score(place, recipe, rows.task) as (size, base, trainer):
        with recipe.placing():
            encoded = rows.distinct_on(base)
        return size, encoded, encoded.scores(trainer)


@torch.no_grad()
def _set_factors(layer: LowRankLinear, factors: LowRankFactors) -> None:
    """Replace an adapted layer's factors by others, of any rank."""
    layer.A = nn.Parameter(factors.A.to(layer.A), requires_grad=False)
    layer.B = nn.Parameter(factors.B.to(layer.B), requires_grad=False)
