"""The loss that is tolerated: as it was typed, and as it is tested. No torch here.

`smallest` is the loss that the test rows can be expected to certify, from their number alone. Until
that number is known, its `max_drop` is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from pydantic import BaseModel, Field

from sora_cli.core.errors import SoraError
from sora_cli.recipe.families import is_share, main_metric
from sora_cli.recipe.tolerance import CONFIDENCE, check_drop, parse_drop

if TYPE_CHECKING:
    from sora_cli.recipe.load import LoadedRecipe
    from sora_cli.recipe.recipe import Recipe
    from sora_cli.search.certifiable import Certifiable


SMALLEST = "smallest"
"""The word that asks for the smallest loss that the test rows can be expected to certify."""
_RIGHT_OR_WRONG = {"accuracy", "exact_match", "recall_at_1", "text_recall_at_1"}
"""Metrics by which a row is right or wrong, so that a bound is known from the number of rows."""
_STEP = 0.005
"""Half a point: that loss is rounded up to a multiple of it."""


class Promise(BaseModel):
    """The loss that was asked for."""

    max_drop: float = Field(
        description="how much worse than the full rank the metric may be, in its own unit"
    )
    given: str = Field(description="that loss as it was given, such as 0.5pt")
    confidence: float = Field(description="1 - the probability of a broken promise, at most")
    metric: str = Field(description="the recipe's main metric")
    greater_is_better: bool = Field(description="whether a larger metric is better")
    serve: str | None = Field(
        description="what the adapter is to be served by, which decides what a size costs; null: "
        "its parameters count"
    )

    def settled(self, certifiable: Certifiable, rows: int) -> Promise:
        """Return the promise with its loss as a number, now that the number of test rows is known.

        Raises:
            SoraError: the smallest loss was asked for, and this metric's bound is known only once
                sizes have been scored.
        """
        if not math.isnan(self.max_drop):
            return self
        smallest = certifiable.bound.smallest_drop
        if smallest is None:
            raise SoraError(
                f"the smallest loss of {self.metric} that {rows:,} rows can certify is known only "
                "after sizes have been scored",
                hint=f"give a loss: --max-drop {_usual(self.metric)}",
            )
        return self.model_copy(update={"max_drop": rounded_up(smallest)})

    def drop(self, full: float, score: float) -> float:
        """Return how much worse a score is than that at full rank; negative: better."""
        return full - score if self.greater_is_better else score - full


@dataclass(frozen=True)
class PromiseOptions:
    """The options of a promise, as they are typed.

    Attributes:
        max_drop: the loss of the recipe's main metric, as people write it (`recipe.tolerance`).
        recipe: what it is measured with, and its overrides; None: it is not given.
        confidence: with which it is to be kept.
    """

    max_drop: float | str
    recipe: str | None = None
    overrides: Sequence[str] = ()
    confidence: float = CONFIDENCE

    def check(self) -> None:
        """Raise `SoraError` where it could not be kept with any recipe."""
        if self.max_drop != SMALLEST:
            check_drop(self.max_drop)
        if not 0.5 <= self.confidence < 1:
            raise SoraError(
                f"--confidence is a share from 0.5 to below 1, not {self.confidence:g}",
                hint="--confidence 0.95",
            )

    def of(self, recipe: Recipe, *, name: str = "--max-drop", serve: str | None = None) -> Promise:
        """Return the promise, in the unit of a recipe's metric.

        Args:
            name: the option or key that gives the loss, for errors.
        """
        options = recipe.task.options
        metric = main_metric(options.metrics, options.best_metric)
        is_open = self.max_drop == SMALLEST
        return Promise(
            max_drop=math.nan if is_open else parse_drop(self.max_drop, metric, name=name),
            given=str(self.max_drop),
            confidence=self.confidence,
            metric=metric,
            greater_is_better=options.greater_is_better,
            serve=serve,
        )

    def load(self) -> tuple[LoadedRecipe, Promise]:
        """Return the recipe that the loss is measured with, and the promise.

        Raises:
            SoraError: no such loss, confidence or recipe.
        """
        self.check()
        if self.recipe is None:
            raise SoraError("--max-drop needs a recipe to measure with", hint="add --recipe R")
        from sora_cli.recipe.load import load_recipe
        from sora_cli.recipe.reading import MAX_DROP, load_read
        from sora_cli.run.precision import settle_precision
        from sora_cli.run.preflight import check_recipe

        loaded = load_read(partial(load_recipe, self.recipe), self.overrides, MAX_DROP)
        promise = self.of(loaded.recipe)
        check_recipe(loaded.recipe, model=False)  # the adapter's own base model is loaded
        return settle_precision(loaded), promise


def promise_of(recipe: Recipe) -> Promise:
    """Return the promise that a recipe's `auto` block asks for.

    Raises:
        SoraError: a loss that cannot be tolerated, or points of a metric that does not end at 1.
    """
    block = recipe.auto
    assert block is not None
    asked = PromiseOptions(block.max_drop, confidence=block.confidence)
    with recipe.placing("auto.max_drop"):
        return asked.of(recipe, name="auto.max_drop", serve=block.serve)


def rounded_up(drop: float) -> float:
    """Return a loss as the next multiple of half a point."""
    return round(math.ceil(round(drop / _STEP, 9)) * _STEP, 6)


def proposed_drop(metric: str) -> str:
    """Return the loss that is proposed where nobody has said one."""
    return SMALLEST if metric in _RIGHT_OR_WRONG else _usual(metric)


def _usual(metric: str) -> str:
    return "2pt" if is_share(metric) else "0.02"
