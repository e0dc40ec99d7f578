"""The promises that `sora auto` can make on the rows of a new recipe, before any training."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from datasets import Dataset

from sora_cli.core.errors import SoraError
from sora_cli.data.columns import some_rows
from sora_cli.data.repeats import count_inputs
from sora_cli.experiments.auto.plan import AutoPlan, plan_auto
from sora_cli.experiments.auto.rows import held_out_rows
from sora_cli.recipe.auto import AutoBlock
from sora_cli.recipe.load import LoadedRecipe
from sora_cli.run.class_counts import raw_class_counts
from sora_cli.search.any_metric import AnyMetric
from sora_cli.search.constant import BALANCED, balanced_drop, nothing_promised
from sora_cli.search.fewest import check_number, unlabelled_way
from sora_cli.search.promise import proposed_drop, rounded_up, rows_are_right_or_wrong
from sora_cli.tasks.base import Task

_NOT = "sora auto is not proposed"
_ENOUGH = 1000  # rows without labels, of a file that is not there yet


@dataclass(frozen=True)
class Forecast:
    """The words for a command that makes a promise, and notes on the drop that it can certify.

    Attributes:
        words: after `sora auto RECIPE`; None: so few rows promise nothing, and it would not run.
    """

    words: tuple[str, ...] | None
    notes: tuple[str, ...] = ()


def forecast(loaded: LoadedRecipe, task: Task, train: Dataset) -> Forecast:
    """Plan the rows of `sora auto` for a recipe, and tell the drop that they can certify.

    Args:
        task: bound to the training rows.
        train: the training rows, of which some are held out.
    """
    drop = proposed_drop(task.best)
    block = loaded.recipe.auto or AutoBlock(max_drop=drop)
    recipe = loaded.recipe.model_copy(update={"auto": block})
    try:
        plan = plan_auto(dataclasses.replace(loaded, recipe=recipe))
    except SoraError as error:
        return Forecast(None, (f"{_NOT}: {error.what}",))
    try:
        rows = held_out_rows(plan, len(train), count_inputs(task.raw_keys(train)))
        if block.unlabelled is None and not rows_are_right_or_wrong(recipe):
            check_number(AnyMetric(), rows.test, task.best, recipe)
    except SoraError as error:
        way = f"; {unlabelled_way(recipe)}" if _others_can_test(plan, len(train)) else ""
        return Forecast(None, (f"{_NOT}: {error.what}{way}",))
    if loaded.recipe.auto is not None or not rows_are_right_or_wrong(recipe):
        return Forecast(("--max-drop", drop) if loaded.recipe.auto is None else ())
    from sora_cli.search.certifiable import certifiable_drop  # scipy

    smallest = rounded_up(certifiable_drop(rows.test))
    promise = (
        f"a promise holds {rows.held_out:,} of {rows.total:,} training rows out, and "
        f"{rows.test:,} of these test: they can be expected to certify that {task.best} is at most "
        f"{smallest:g} worse than at full rank"
    )
    classes = raw_class_counts(task, train.select(some_rows(len(train))))
    little = nothing_promised(task.best, smallest, classes)
    if little is None:
        return Forecast(("--max-drop", drop), (promise,))
    least = balanced_drop(classes, rows.test)
    if least is None or BALANCED not in recipe.task.options.METRICS:
        return Forecast(
            None, (promise, f"{little}; rarer classes have too few rows to promise more")
        )
    metrics = f"task.metrics=[{BALANCED},{task.best}]"
    words = ("--max-drop", f"{100 * rounded_up(least):g}pt", metrics)
    return Forecast(words, (promise, f"{little}; {BALANCED} is 0 for every constant answer"))


def _others_can_test(plan: AutoPlan, total: int) -> bool:
    """Return True if `sora auto` would run with rows without labels: none is held out then."""
    try:
        plan.row_plan(total, _ENOUGH)
    except SoraError:
        return False
    return True
