"""The promise that a recipe's `auto` block asks for. No torch here."""

from __future__ import annotations

from sora_cli.recipe.families import main_metric
from sora_cli.recipe.recipe import Recipe
from sora_cli.recipe.tolerance import parse_drop
from sora_cli.search.certificate import Promise


def promise_of(recipe: Recipe) -> Promise:
    """Return what a recipe with an `auto` block asks for.

    Raises:
        SoraError: a loss that cannot be tolerated, or points of a metric that does not end at 1.
    """
    block, options = recipe.auto, recipe.task.options
    assert block is not None
    metric = main_metric(options.metrics, options.best_metric)
    with recipe.placing("auto.max_drop"):
        max_drop = parse_drop(block.max_drop, metric, name="auto.max_drop")
    return Promise(
        max_drop=max_drop,
        given=str(block.max_drop),
        confidence=block.confidence,
        metric=metric,
        greater_is_better=options.greater_is_better,
        serve=block.serve,
    )
