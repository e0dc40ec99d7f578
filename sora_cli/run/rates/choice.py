"""Find the learning rate of a run; so far the rule of thumb decides."""

from __future__ import annotations

from sora_cli.recipe.recipe import Recipe
from sora_cli.report import RateChoice
from sora_cli.run.prepare import Prepared
from sora_cli.run.rates.rule import by_rule


def choose(recipe: Recipe, ready: Prepared) -> RateChoice:
    """Find the peak learning rate of a run.

    Args:
        ready: right after `prepare`, and still so afterwards.
    """
    return by_rule(recipe, ready)
