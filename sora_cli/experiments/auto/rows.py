"""The rows of a run of `sora auto`, counted before the model is loaded, and their use.

A promise about a drop is tested by labelled rows held out, or by answers to rows without labels,
whichever is planned to certify more (`search.basis`).
"""

from __future__ import annotations

import numpy as np

from sora_cli.core.errors import SoraError
from sora_cli.data.places import locating
from sora_cli.experiments.auto.budget import RowPlan
from sora_cli.experiments.auto.plan import AutoPlan
from sora_cli.recipe.auto import Basis
from sora_cli.run.prepare import load_task
from sora_cli.search.basis import (
    BASES,
    against_answers,
    basis_line,
    check_asking,
    choose_basis,
)
from sora_cli.search.record import AutoRecord
from sora_cli.search.rows import count_rows, training_rows, unlabelled_rows
from sora_cli.search.test_rows import TestRows
from sora_cli.tasks import create_task

Notes = tuple[str, ...]
_NONE_HELD = "auto.rows is not used: no labelled row is held out"


def planned_rows(
    plan: AutoPlan, record: AutoRecord | None = None
) -> tuple[AutoPlan, RowPlan, Notes]:
    """Return the plan with its basis, the numbers of rows, and notes for the user.

    Args:
        record: record of a search that may have begun; its basis stays.
    """
    total, inputs = count_rows(plan.loaded.recipe)
    if plan.promise.kind == "differ":
        rows = _unseen_rows(plan)
        return plan, plan.row_plan(total, len(rows)), rows.notes
    if plan.promise.basis == "asked":
        rows = _askable_rows(plan)
        notes = rows.notes if plan.block.rows is None else (*rows.notes, _NONE_HELD)
        return plan.on_basis("asked"), plan.row_plan(total, len(rows)), notes
    if plan.block.unlabelled is None:
        return plan, held_out_rows(plan, total, inputs), ()
    if record is not None and record.basis is not None:
        plan = plan.on_basis(record.basis)
    unusable = against_answers(plan.loaded.recipe, plan.promise.metric, plan.block.basis)
    if unusable is not None:
        plan = plan.on_basis("labels")
        note = f"auto.unlabelled is not used: {unusable}"
        return plan, held_out_rows(plan, total, inputs), (note,)
    return _on_best_basis(plan, total, inputs)


def held_out_rows(plan: AutoPlan, total: int, inputs: int) -> RowPlan:
    """Return the rows held out; of the test rows, about as many as have different inputs."""
    rows = plan.row_plan(total)
    return rows.counted(max(round(rows.test * inputs / total), 1))


def _on_best_basis(plan: AutoPlan, total: int, inputs: int) -> tuple[AutoPlan, RowPlan, Notes]:
    """Return the plan on the basis that certifies most, or on the recipe's own."""
    wanted: tuple[Basis, ...] = BASES if plan.block.basis is None else (plan.block.basis,)
    plans: dict[Basis, RowPlan] = {}
    notes: Notes = ()
    if "labels" in wanted:
        try:
            plans["labels"] = held_out_rows(plan, total, inputs)
        except SoraError:  # too few training rows to hold any out
            if len(wanted) == 1:
                raise
    if "answers" in wanted:
        pool = _unseen_rows(plan)
        plans["answers"], notes = plan.row_plan(total, len(pool)), pool.notes
    numbers = {basis: rows.test for basis, rows in plans.items()}
    chosen = choose_basis(plan.promise, numbers)
    notes = (*notes, basis_line(chosen, plan.promise, numbers))
    if plan.block.rows is not None and chosen == "answers":
        notes = (*notes, _NONE_HELD)
    return plan.on_basis(chosen), plans[chosen], notes


def _askable_rows(plan: AutoPlan) -> TestRows:
    """Read the rows without labels, which a person must be able to label."""
    recipe = plan.loaded.recipe
    with recipe.placing("auto.ask"):
        check_asking(recipe, create_task(recipe.task, recipe.data), plan.promise.metric)
    rows = _unseen_rows(plan)
    with recipe.placing("auto.unlabelled"), locating(rows.origin):
        rows.task.questions(rows.rows, np.random.default_rng(0))
    return rows


def _unseen_rows(plan: AutoPlan) -> TestRows:
    """Read the rows without labels that are not trained on, too."""
    recipe = plan.loaded.recipe
    task, whole = load_task(recipe.model_copy(update={"data": recipe.data.whole()}))
    rows = unlabelled_rows(recipe, task)
    with recipe.placing("auto.unlabelled"):
        return rows.unseen([training_rows(task, whole)])
