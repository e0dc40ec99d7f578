"""The rows of a run of `sora auto`, counted before the model is loaded, and their use.

A promise about a drop may be tested in four ways, chosen in this order: by labelled rows held out,
by answers to rows without labels, or by both, whichever is planned to certify more
(`search.basis`); and by cross-fitting, where labelled rows are chosen and are too few.
"""

from __future__ import annotations

import math

from sora_cli.core.errors import SoraError
from sora_cli.experiments.auto.budget import MOST_WORK, HalvesPlan, RowPlan
from sora_cli.experiments.auto.plan import AutoPlan, against_halves
from sora_cli.recipe.auto import Basis
from sora_cli.recipe.recipe import DataBlock
from sora_cli.run.prepare import load_task
from sora_cli.search.answers import AnswerRows
from sora_cli.search.basis import BASES, TestRows, against_answers, basis_line, choose_basis
from sora_cli.search.certifiable import certifiable_drop
from sora_cli.search.halves import half_confidence, held_data
from sora_cli.search.promise import rows_are_right_or_wrong
from sora_cli.search.rows import count_rows, unlabelled_rows, whole_data

Notes = tuple[str, ...]
_ORDER = (
    "the drop is tested by labels, by answers or by both, whichever is planned to certify more; "
    "cross-fitting is considered only where that is labels"
)


def planned_rows(plan: AutoPlan, *, held_out: bool = False) -> tuple[AutoPlan, RowPlan, Notes]:
    """Return the plan with its basis, the numbers of rows, and notes for the user.

    They are those of cross-fitting (`HalvesPlan`), if this is asked for or needed.

    Args:
        held_out: the search was begun with rows held out, by a version that knew nothing else.
    """
    block, total = plan.block, count_rows(plan.loaded.recipe.data)
    if plan.promise.kind == "differ":
        pool = _pool(plan)
        return plan, plan.row_plan(total, len(pool)), pool.notes
    if block.unlabelled is None:
        if held_out:
            return plan, plan.row_plan(total), ()
        return plan, *_by_labels(plan, total)
    unusable = against_answers(plan.loaded.recipe, plan.promise.metric, block.basis)
    if unusable is None and block.cross_fit is True:
        unusable = "halves test by labels"
    if unusable is not None:
        plan = plan.on_basis("labels")
        rows, notes = _by_labels(plan, total)
        return plan, rows, (f"auto.unlabelled is not used: {unusable}", *notes)
    return _on_best_basis(plan, total)


def _on_best_basis(plan: AutoPlan, total: int) -> tuple[AutoPlan, RowPlan, Notes]:
    """Return the plan on the basis that certifies most, or on the recipe's own."""
    wanted: tuple[Basis, ...] = BASES if plan.block.basis is None else (plan.block.basis,)
    plans: dict[Basis, RowPlan] = {}
    notes: Notes = ()
    for basis in wanted:
        on = plan.on_basis(basis)
        if basis == "answers":
            pool = _pool(on)
            plans[basis], notes = on.row_plan(total, len(pool)), pool.notes
            continue
        try:
            plans[basis] = on.row_plan(total)
        except SoraError:
            if len(wanted) == 1:
                raise
            continue  # too few training rows to hold any out
        if basis == "both":
            pool = _pool(on, plans[basis])
            plans[basis], notes = on.row_plan(total, answers=len(pool)), pool.notes
    numbers: dict[Basis, TestRows] = {
        basis: (rows.test, rows.answers) if basis == "both" else (rows.test,)
        for basis, rows in plans.items()
    }
    chosen = choose_basis(plan.promise, numbers)
    told = [basis_line(chosen, plan.promise, numbers), _ORDER]
    if plan.block.refit and chosen == "answers":
        told.append("auto.refit is not used: all rows are trained on already")
    if plan.block.rows is not None and chosen == "answers":
        told.append("auto.rows is not used: no labelled row is held out")
    plan, rows = plan.on_basis(chosen), plans[chosen]
    if chosen == "labels":
        rows, more = _needed(plan, rows)
        return plan, rows, (*notes, *told, *more)
    return plan, rows, (*notes, *told)


def _pool(plan: AutoPlan, held: RowPlan | None = None) -> AnswerRows:
    """Return the rows without labels that no adapter is trained on and no size chosen by.

    Args:
        held: rows that are held out of the training split; None: there are none.
    """
    recipe = plan.loaded.recipe
    data: DataBlock = whole_data(recipe.data)
    if held is not None:
        more = {"max_validation_rows": None}
        data = data.model_copy(update={**held_data(held.held_out, plan.block.seed), **more})
    task, rows = load_task(recipe.model_copy(update={"data": data}))
    return unlabelled_rows(recipe, task, [rows.train, *([] if held is None else [rows.select])])


def _by_labels(plan: AutoPlan, total: int) -> tuple[RowPlan, Notes]:
    """Return the rows held out, or of cross-fitting if it is asked for or needed."""
    if plan.block.cross_fit is True:
        return plan.halves_plan(total), ()
    return _needed(plan, plan.row_plan(total))


def _needed(plan: AutoPlan, held: RowPlan) -> tuple[RowPlan, Notes]:
    """Return the rows of cross-fitting if it is left to the tool, and needed; else the given rows.

    It is needed if the rows held out cannot be expected to certify the promise, and halves can.
    """
    promise, block = plan.promise, plan.block
    if block.cross_fit != "auto" or against_halves(plan.loaded.recipe):
        return held, ()
    if math.isnan(promise.max_drop) or not rows_are_right_or_wrong(plan.loaded.recipe):
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
