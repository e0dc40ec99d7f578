"""The number of test rows without which a promise has no bound, asked before any training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sora_cli.core.errors import SoraError

if TYPE_CHECKING:
    from sora_cli.recipe.recipe import Recipe
    from sora_cli.search.statistic import Statistic


def check_number(statistic: Statistic, rows: int, metric: str, way: str) -> None:
    """Raise `SoraError` if test rows are too few for any bound of a metric.

    Args:
        rows: number of test rows with different inputs.
        way: how to promise something all the same.
    """
    if rows < statistic.fewest:
        raise SoraError(
            f"the promise cannot be computed: a bound of {metric} needs {statistic.fewest} test "
            f"rows with different inputs, and there are {rows:,}",
            hint=f"give more rows with other inputs, or hold more out (auto.rows); or {way}",
            key="auto.rows",
        )


def unlabelled_way(recipe: Recipe) -> str:
    """Return the options of a promise about answers to rows without labels."""
    options = recipe.task.options
    tolerance = " --tolerance 0.1" if options.ANSWERS_NUMBERS else ""
    corpus = " data.corpus=FILE" if options.searches and recipe.data.corpus is None else ""
    return f"test on rows without labels: --max-differ 1% --unlabelled FILE{tolerance}{corpus}"
