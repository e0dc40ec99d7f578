"""The rows of a run of `sora auto`, counted before the model is loaded, and their use.

A promise about a drop may be tested in four ways, chosen in this order: by labelled rows held out,
by answers to rows without labels, or by both, whichever is planned to certify more
(`search.basis`); and by cross-fitting, where labelled rows are chosen and are too few.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from sora_cli.core.errors import SoraError
from sora_cli.data.rows import load_rows
from sora_cli.experiments.auto.budget import MOST_WORK, HalvesPlan, RowPlan
from sora_cli.experiments.auto.plan import AutoPlan, against_halves
from sora_cli.experiments.auto.record import AutoRecord
from sora_cli.recipe.auto import Basis
from sora_cli.run.prepare import load_task
from sora_cli.search.answers import AnswerRows
from sora_cli.search.basis import BASES, TestRows, against_answers, basis_line, choose_basis
from sora_cli.search.certifiable import certifiable_drop
from sora_cli.search.halves import half_confidence, held_data
from sora_cli.search.promise import has_exact_bound
from sora_cli.search.rows import count_rows, unlabelled_rows, whole_data

Notes = tuple[str, ...]
_ORDER = (
    "the drop is tested by labels, by answers or by both, whichever is planned to certify more; "
    "cross-fitting is considered only where that is labels"
)


def planned_rows(
    plan: AutoPlan, record: AutoRecord | None = None
) -> tuple[AutoPlan, RowPlan, Notes]:
    """Return the plan with its basis, the numbers of rows, and notes for the user.

    They are those of cross-fitting (`HalvesPlan`), if this is asked for or needed.

    Args:
        record: record of a search that may have begun; its basis stays.
    """
    total, inputs = count_rows(plan.loaded.recipe)
    if plan.promise.kind == "differ":
        rows = _unseen_rows(plan)(None)
        return plan, plan.row_plan(total, len(rows)), rows.notes
    if plan.block.unlabelled is None:
        if record is not None and record.full is not None and not record.halves:
            # begun with rows held out, maybe by a version that knew nothing else
            return plan, plan.row_plan(total), ()
        return plan, *_by_labels(plan, total, inputs)
    if record is not None and record.basis is not None:
        plan = plan.on_basis(record.basis)
    unusable = against_answers(plan.loaded.recipe, plan.promise.metric, plan.block.basis)
    if unusable is None and plan.block.cross_fit is True:
        unusable = "halves test by labels"
    if unusable is not None:
        plan = plan.on_basis("labels")
        planned, notes = _by_labels(plan, total, inputs)
        return plan, planned, (f"auto.unlabelled is not used: {unusable}", *notes)
    return _on_best_basis(plan, total, inputs)


def held_out_rows(plan: AutoPlan, total: int, inputs: int, answers: int = 0) -> RowPlan:
    """Return the rows held out; of the test rows, about as many as have different inputs."""
    rows = plan.row_plan(total, answers=answers)
    return rows.counted(max(round(rows.test * inputs / total), 1), answers)


def _on_best_basis(plan: AutoPlan, total: int, inputs: int) -> tuple[AutoPlan, RowPlan, Notes]:
    """Return the plan on the basis that certifies most, or on the recipe's own."""
    wanted: tuple[Basis, ...] = BASES if plan.block.basis is None else (plan.block.basis,)
    plans: dict[Basis, RowPlan] = {}
    notes: Notes = ()
    unseen = _unseen_rows(plan)
    for basis in wanted:
        if basis == "answers":
            pool = unseen(None)
            plans[basis], notes = plan.row_plan(total, len(pool)), pool.notes
            continue
        try:
            plans[basis] = held_out_rows(plan, total, inputs)
        except SoraError:
            if len(wanted) == 1:
                raise
            continue  # too few training rows to hold any out
        if basis == "both":
            pool = unseen(plans[basis])
            plans[basis], notes = held_out_rows(plan, total, inputs, len(pool)), pool.notes
    numbers: dict[Basis, TestRows] = {
        basis: (rows.test, rows.answers) if basis == "both" else (rows.test,)
        for basis, rows in plans.items()
    }
    chosen = choose_basis(plan.promise, numbers)
    notes = (*notes, basis_line(chosen, plan.promise, numbers), _ORDER)
    if plan.block.refit and chosen == "answers":
        notes = (*notes, "auto.refit is not used: all rows are trained on already")
    if plan.block.rows is not None and chosen == "answers":
        notes = (*notes, "auto.rows is not used: no labelled row is held out")
    plan, rows = plan.on_basis(chosen), plans[chosen]
    if chosen == "labels":
        rows, more = _needed(plan, rows)
        return plan, rows, (*notes, *more)
    return plan, rows, notes


def _unseen_rows(plan: AutoPlan) -> Callable[[RowPlan | None], AnswerRows]:
    """Read the file of rows without labels, once for all plans.

    Returns:
        A function that returns the rows that no adapter is trained on and no size chosen by. Its
        argument is the plan of the rows held out of the training split; None: there are none.
    """
    recipe, data = plan.loaded.recipe, whole_data(plan.loaded.recipe.data)
    task, whole = load_task(recipe.model_copy(update={"data": data}))
    rows = unlabelled_rows(recipe, task)

    def unseen(held: RowPlan | None) -> AnswerRows:
        seen = [whole.train]
        if held is not None:
            update = {**held_data(held.held_out, plan.block.seed), "max_validation_rows": None}
            parts = load_rows(data.model_copy(update=update), task.raw_keys)
            seen = [parts.train, parts.select]
        with recipe.placing("auto.unlabelled"):
            return rows.unseen(seen)

    return unseen


def _by_labels(plan: AutoPlan, total: int, inputs: int) -> tuple[RowPlan, Notes]:
    """Return the rows held out, or of cross-fitting if it is asked for or needed."""
    if plan.block.cross_fit is True:
        return plan.halves_plan(total), ()
    return _needed(plan, held_out_rows(plan, total, inputs))


def _needed(plan: AutoPlan, held: RowPlan) -> tuple[RowPlan, Notes]:
    """Return the rows of cross-fitting if it is left to the tool, and needed; else the given rows.

    It is needed if the rows held out cannot be expected to certify the promise, and halves can.
    """
    promise, block = plan.promise, plan.block
    if block.cross_fit != "auto" or against_halves(plan.loaded.recipe):
        return held, ()
    if math.isnan(promise.max_drop) or not has_exact_bound(plan.loaded.recipe):
        return held, ()
    try:
        halves: HalvesPlan = plan.halves_plan(held.total)
    except SoraError:  # too few rows for halves
        return held, ()
    each = half_confidence(promise.confidence)
    now = certifiable_drop(held.test, confidence=promise.confidence)
    then = certifiable_drop(halves.test, confidence=each)
    if now <= promise.max_drop or then >= now or round(halves.work, 1) > MOST_WORK:
        return held, ()
    if then > promise.max_drop:
        return held, (
            f"neither {held.test:,} rows held out ({now:.4f}) nor two halves of {halves.test:,} "
            f"rows ({then:.4f}, --cross-fit) can be expected to certify {promise.max_drop:g}",
        )
    return halves, (
        f"cross-fitting: {held.test:,} rows held out can be expected to certify {now:.4f}, and two "
        f"halves of {halves.test:,} rows {then:.4f}; auto.cross_fit=false holds rows out",
    )
