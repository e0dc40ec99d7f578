"""The rows of a run of `sora auto`, counted before the model is loaded, and their use."""

from __future__ import annotations

import math

from sora_cli.core.errors import SoraError
from sora_cli.experiments.auto.budget import MOST_WORK, HalvesPlan, RowPlan
from sora_cli.experiments.auto.plan import AutoPlan, against_halves
from sora_cli.run.prepare import load_task
from sora_cli.search.certifiable import certifiable_drop
from sora_cli.search.halves import half_confidence
from sora_cli.search.promise import is_right_or_wrong
from sora_cli.search.rows import count_rows, unlabelled_rows


def planned_rows(plan: AutoPlan, *, held_out: bool = False) -> tuple[RowPlan, tuple[str, ...]]:
    """Return the numbers of training, screening and test rows, and notes for the user.

    They are those of cross-fitting (`HalvesPlan`), if this is asked for or needed.

    Args:
        held_out: the search was begun with rows held out, by a version that knew nothing else.
    """
    recipe = plan.loaded.recipe
    total = count_rows(recipe.data)
    if plan.promise.kind == "drop":
        if plan.block.cross_fit is True:
            return plan.halves_plan(total), ()
        held = plan.row_plan(total)
        return (held, ()) if held_out else _needed(plan, held)
    data = recipe.data.model_copy(update={"selection": "validation"})
    task, rows = load_task(recipe.model_copy(update={"data": data}))
    pool = unlabelled_rows(recipe, task, rows.train)
    return plan.row_plan(total, len(pool)), pool.notes


def _needed(plan: AutoPlan, held: RowPlan) -> tuple[RowPlan, tuple[str, ...]]:
    """Return the rows of cross-fitting if it is left to the tool, and needed; else the given rows.

    It is needed if the rows held out cannot be expected to certify the promise, and halves can.
    """
    promise, block = plan.promise, plan.block
    if block.cross_fit != "auto" or against_halves(plan.loaded.recipe):
        return held, ()
    if math.isnan(promise.max_drop) or not is_right_or_wrong(promise.metric):
        return held, ()
    try:
        halves: HalvesPlan = plan.halves_plan(held.total)
    except SoraError:  # too few rows for halves
        return held, ()
    each = half_confidence(promise.confidence)
    now = certifiable_drop(held.test, confidence=promise.confidence)
    then = certifiable_drop(halves.test, confidence=each)
    if now <= promise.max_drop or then > promise.max_drop or round(halves.work, 1) > MOST_WORK:
        return held, ()
    return halves, (
        f"cross-fitting: {held.test:,} rows held out can be expected to certify {now:.4f}, and two "
        f"halves of {halves.test:,} rows {then:.4f}; auto.cross_fit=false holds rows out",
    )
