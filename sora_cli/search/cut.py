"""Sizes made by cutting an adapter, or the full difference between a model and its base model.

The sizes are nested: each keeps the components with the largest squared singular value per stored
number, ranked over all layers together. The list of sizes depends only on the number of components,
and is fixed before a row is scored.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import nn

from methods.base import LowRankLinear
from methods.budgets import costs_of, strongest
from methods.factors import LowRankFactors
from methods.keep import Keep
from sora_cli.adapter.adapter import Adapter
from sora_cli.adapter.apply import prepare
from sora_cli.adapter.digest import result_digest
from sora_cli.adapter.modules import Module
from sora_cli.adapter.pruning import Loss, prune_layers, survey, truncate_layers
from sora_cli.adapter.reading import read_adapter
from sora_cli.adapter.rounding import Rounding
from sora_cli.core.console import duration, say_notes
from sora_cli.recipe.recipe import Recipe
from sora_cli.run.scoring import load_target
from sora_cli.run.stored import load_adapted
from sora_cli.search.asking import Labels
from sora_cli.search.evidence import Candidate, Reference
from sora_cli.search.finished import Model, Planned, asked_outcome
from sora_cli.search.promise import Promise
from sora_cli.search.row_set import TEST, RowSet
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
_LEAST_SHARE = 1e-6  # of a cut that keeps nothing


@dataclass(frozen=True)
class Cut(Outcome):
    """A search among cuts.

    Attributes:
        everything: the layers' ranks before any cut.
        ranks: of each candidate.
    """

    everything: Ranks = field(default_factory=dict)
    ranks: tuple[Ranks, ...] = ()

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
    labels: Labels | None = None,
) -> Cut:
    """Find the smallest cut of an adapter that is certified to keep a promise.

    Args:
        recipe: recipe that scores the cuts.
        rows: rows that the cuts are scored on.
        tell: prints the smallest drop that these rows can certify, and the scoring ahead.
        against: model that drops are measured against; None: the uncut adapter.
        rounding: test each cut as it will be stored: rounded.
        labels: of a promise that asks for labels.

    Raises:
        WaitingError: labels are wanted.
    """
    if labels is not None:
        model = Adapted(adapter, recipe, rows.task)
        return _asked_cut(
            model, recipe, rows, promise, labels, tell, against=against, rounding=rounding
        )
    reference = None
    if against is not None:
        other = build_scorer(recipe, rows.task, load_target(against, recipe, rows.task))
        reference = scored_on(rows, recipe, other)[1]()
    model = Adapted(adapter, recipe, rows.task)
    encoded, own = scored_on(rows, recipe, model.trainer)
    say_notes(encoded.notes())

    def scores(factors: Layers, *, as_stored: bool = False) -> RowScores:
        model.put(factors, rounding if as_stored else None)
        return own()

    return choose_cut(
        adapter.layers,
        scores,
        promise,
        encoded.row_set(),
        tell,
        reference=reference,
        as_stored=None if rounding is None else partial(scores, as_stored=True),
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
    cuts, ranks = Cuts.of(layers, promise.serve), list[Ranks]()

    def made(components: int) -> Scored:
        ranks.append(cuts.to(components))
        size, factors = cuts.at(ranks[-1])
        return Candidate(**size.model_dump(), test=None), (as_stored or scores)(factors)

    began, took = time.perf_counter(), ""
    name = UNCUT if as_stored is None else UNROUNDED
    if reference is None:
        whole, factors = cuts.at(cuts.everything)
        full = scores(factors)
        took = f", as the uncut adapter in {duration(time.perf_counter() - began)}"
    else:
        name, full, whole = MODEL, reference, cuts.of_model
    bound, promise = method_told(full, promise, tell)
    sizes = cuts.sizes(name)
    tell(f"up to {len(sizes)} sizes are scored, each on {len(full):,} rows{took}")
    candidates, bound = sizes_tested(full, sizes, made, promise, bound)
    score = statistic_of(full).score(full, full)
    about = reference_of(whole, name, score)
    parts = {TEST: rows}
    return Cut(promise, bound, about, candidates, parts, full,
               everything=cuts.everything, ranks=tuple(ranks))  # fmt: skip


def reference_of(size: Size, name: str, score: float, digest: str = "") -> Reference:
    """Return the reference of a search.

    Args:
        score: on the test rows.
    """
    within = name == UNCUT
    return Reference(
        **size.model_dump(), name=name, within=within, directory="", digest=digest, test=score
    )


@dataclass(frozen=True)
class Cuts:
    """The nested cuts of an adapter's layers.

    Attributes:
        known: ranks and decomposition of each layer.
        everything: the layers' ranks before any cut.
        serve: server of the adapter; None: parameters count.
    """

    layers: Layers
    known: Mapping[str, Module]
    everything: Ranks
    serve: str | None

    @classmethod
    def of(cls, layers: Layers, serve: str | None) -> Cuts:
        """Return the cuts of these layers."""
        known = survey(layers)
        return cls(layers, known, {path: module.live for path, module in known.items()}, serve)

    @property
    def of_model(self) -> Size:
        """The size of a whole model, which has no factors."""
        total = sum(self.everything.values())
        return Size(parameters=0, components=total, largest_rank=0, served=0)

    def sizes(self, name: str) -> list[int]:
        """Return the numbers of components to test, from the largest to the smallest.

        Args:
            name: of the reference; if it is not the uncut adapter, that is a size, too.
        """
        total = sum(self.everything.values())
        if name == UNCUT:
            return smaller_sizes(total)
        # a difference of two models has full rank, hence many components: halve them to get small
        # soon
        ratio = COARSE_RATIO if name == MODEL else SIZE_RATIO
        return [total, *smaller_sizes(total, ratio)][:MAX_SIZES]

    def to(self, components: int) -> Ranks:
        """Return the ranks of the strongest components."""
        values = {path: module.values for path, module in self.known.items()}
        return strongest(values, components, self._cost)

    def at(self, ranks: Ranks) -> tuple[Size, Layers]:
        """Return the size and the factors of a cut."""
        factors, losses = truncate_layers(self.layers, self.known, ranks)
        left = {path: loss.after for path, loss in losses.items()}
        return size_of(left, self._cost, self.serve), factors

    @property
    def _cost(self) -> Mapping[str, int]:
        return {path: module.cost for path, module in self.known.items()}


def _asked_cut(
    model: Adapted,
    recipe: Recipe,
    rows: TestRows,
    promise: Promise,
    labels: Labels,
    tell: Tell,
    *,
    against: str | None,
    rounding: Rounding | None,
) -> Cut:
    """Find the smallest cut, with labels of the rows that differ; see `smallest_cut`."""
    adapter = model.adapter
    cuts = Cuts.of(adapter.layers, promise.serve)
    name = MODEL if against is not None else UNCUT if rounding is None else UNROUNDED

    def with_cut(ranks: Ranks, rounding: Rounding | None = rounding) -> Model:
        def loaded() -> AdapterTrainer:
            model.put(cuts.at(ranks)[1], rounding)
            return model.trainer

        return loaded

    def other() -> AdapterTrainer:
        assert against is not None
        return build_scorer(recipe, rows.task, load_target(against, recipe, rows.task))

    whole, _ = cuts.at(cuts.everything)
    ranks = [cuts.to(components) for components in cuts.sizes(name)]

    def plan(each: Ranks) -> Planned:
        size, _ = cuts.at(each)
        made = Candidate(**size.model_dump(), test=None), with_cut(each)
        share = max(size.parameters / max(whole.parameters, 1), _LEAST_SHARE)
        return Planned(size, share, made[1], lambda: made)

    source = adapter.source.directory if against is None else Path(against)
    digest = result_digest(source) or ""
    about = {"reference": digest, "bits": None if rounding is None else rounding.bits}
    found = asked_outcome(
        reference_of(whole if against is None else cuts.of_model, name, 1.0, digest),
        with_cut(cuts.everything, None) if against is None else other,
        [plan(each) for each in ranks],
        rows,
        promise,
        labels,
        tell,
        recipe=recipe,
        about=about,
    )
    return Cut(**vars(found), everything=cuts.everything, ranks=tuple(ranks))


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
    rows: TestRows, recipe: Recipe, trainer: AdapterTrainer
) -> tuple[EncodedRows, Callable[[], RowScores]]:
    """Return the rows encoded for a model, and a function that scores the model as it is then."""
    with recipe.placing():
        encoded = rows.distinct_on(trainer.base)
    return encoded, lambda: encoded.scores(trainer)


class Adapted:
    """An adapter on its base model, whose factors can be exchanged, and a trainer that scores it.

    Attributes:
        adapter: the whole adapter.
    """

    def __init__(self, adapter: Adapter, recipe: Recipe, task: Task) -> None:
        self.adapter = adapter
        self.base, self._layers = load_adapted(adapter, recipe, task)
        self.trainer = build_scorer(recipe, task, self.base)
        self._has_rounded_head = False

    def put(self, factors: Layers, rounding: Rounding | None = None) -> None:
        """Put factors into the model.

        Args:
            rounding: of the factors and of the head, as they will be stored.
        """
        rounds_head = rounding is not None and rounding.head.error is not None
        if rounding is not None:
            factors = rounding.layers(factors)
        if rounds_head != self._has_rounded_head:
            whole = self.adapter
            if rounding is not None and rounds_head:
                whole = whole.with_full(rounding.head.tensors)
            prepare(self.base.model, whole)
            self._has_rounded_head = rounds_head
        for path, layer in self._layers.items():
            _set_factors(layer, factors[path])


def load_to_score(
    place: Path, recipe: Recipe, task: Task, *, serve: str | None = None, on: str | None = None
) -> tuple[Size, AdapterTrainer]:
    """Load an adapter; return its size, and a trainer that scores the model with it.

    Args:
        serve: server of the adapter; None: parameters count.
        on: the base model named by the user, which must hold the same weights.
    """
    adapter = read_adapter(place)
    base, _ = load_adapted(adapter, recipe, task, on=on, strict=True)
    return _size(adapter, serve), build_scorer(recipe, task, base)


def stored_size(place: Path, max_params: int | None = None) -> Size:
    """Return the size of an adapter.

    Args:
        max_params: number of parameters that it is cut to; None: it is whole.
    """
    return _size(_at_most(read_adapter(place), max_params), None)


def stored_model(
    place: Path, recipe: Recipe, task: Task, *, max_params: int | None = None
) -> Model:
    """Return a stored adapter as a model that is loaded when it is scored.

    Args:
        max_params: number of parameters that the adapter is cut to; None: it is whole.
    """

    def loaded() -> AdapterTrainer:
        adapter = _at_most(read_adapter(place), max_params)
        base, _ = load_adapted(adapter, recipe, task, strict=True)
        return build_scorer(recipe, task, base)

    return loaded


def _size(adapter: Adapter, serve: str | None) -> Size:
    ranks = adapter.ranks()
    return size_of({path: ranks[path] for path in adapter.layers}, costs_of(adapter.layers), serve)


def _at_most(adapter: Adapter, max_params: int | None) -> Adapter:
    if max_params is None:
        return adapter
    return adapter.with_layers(prune_layers(adapter.layers, Keep(max_params=max_params))[0])


def score_adapter(
    place: Path, recipe: Recipe, rows: TestRows
) -> tuple[Size, EncodedRows, RowScores]:
    """Return an adapter's size, the rows encoded for it, and its scores."""
    size, trainer = load_to_score(place, recipe, rows.task)
    encoded, scores = scored_on(rows, recipe, trainer)
    return size, encoded, scores()


@torch.no_grad()
def _set_factors(layer: LowRankLinear, factors: LowRankFactors) -> None:
    """Replace an adapted layer's factors by others, of any rank."""
    layer.A = nn.Parameter(factors.A.to(layer.A), requires_grad=False)
    layer.B = nn.Parameter(factors.B.to(layer.B), requires_grad=False)
