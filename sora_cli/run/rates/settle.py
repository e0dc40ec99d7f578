"""Replace `training.learning_rate: auto` by the number with which a run trains.

The recipe in the run's report keeps `auto`; the report's `learning_rate` has the number, and so
does each checkpoint. A run that continues a checkpoint, its own or another run's, takes its number.
"""

from __future__ import annotations

from sora_cli.core.console import say
from sora_cli.core.processes import from_first_process
from sora_cli.recipe.recipe import Recipe
from sora_cli.report import RateChoice
from sora_cli.run.prepare import Prepared
from sora_cli.run.rates.rule import by_rule


def settle_rate(
    recipe: Recipe, ready: Prepared, *, stored: RateChoice | None = None, dry: bool = False
) -> tuple[Recipe, RateChoice | None]:
    """Replace `learning_rate: auto` by a number; also return the choice.

    The choice is None if the recipe names a number. All processes take the first one's choice.

    Args:
        ready: right after `prepare`.
        stored: the choice of the run that is continued; None: choose now.
        dry: print nothing.
    """
    if recipe.training.learning_rate != "auto":
        return recipe, None
    chosen = stored
    if chosen is None:
        chosen = from_first_process(by_rule(recipe, ready))
        if not dry and recipe.training.max_steps != 0:  # else nothing is trained
            say(f"learning rate: {chosen.chosen:g} ({chosen.way}: {chosen.reason})")
    training = recipe.training.model_copy(update={"learning_rate": chosen.chosen})
    return recipe.model_copy(update={"training": training}), chosen
