"""The number of test rows without which a promise has no bound, asked before any training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sora_cli.core.errors import SoraError

if TYPE_CHECKING:
    from sora_cli.recipe.recipe import Recipe
    from sora_cli.search.statistic import Statistic


def check_number(
    statistic: Statistic, rows: int, metric: str, recipe: Recipe, *, held_out: bool = True
) -> None:
    """Raise `SoraError` if test rows are too few for any bound of a metric.

    Args:
        rows: number of test rows with different inputs.
        recipe: of the rows; it tells how to promise something all the same.
        held_out: the rows are held out of training rows, of which there may be more.
    """
    if rows < statistic.fewest:
        more = ", or hold more out (auto.rows)" if held_out else ""
        raise SoraError(
            f"the promise cannot be computed: a bound of {metric} needs {statistic.fewest} test "
            f"rows with different inputs, and there are {rows:,}",
            hint=f"give more rows with other inputs{more}; or {unlabelled_way(recipe)}",
            key="auto.rows" if held_out else None,
        )


def unlabelled_way(recipe: Recipe) -> str:
    """Return the options of a promise about answers to rows without labels."""
    options = recipe.task.options
    tolerance = " --tolerance 0.1" if options.ANSWERS_NUMBERS else ""
    given = f"--max-differ 1% --unlabelled FILE{tolerance}"
    if options.searches and recipe.data.corpus is None:
        given = "--max-differ 1% --unlabelled QUERIES data.corpus=DOCUMENTS (with id, text)"
    return f"test on 400 rows or more without labels: {given}"
