"""The rows of a run of `sora auto`, counted before the model is loaded."""

from __future__ import annotations

from sora_cli.experiments.auto.budget import RowPlan
from sora_cli.experiments.auto.plan import AutoPlan
from sora_cli.run.prepare import load_task
from sora_cli.search.rows import count_rows, unlabelled_rows


def planned_rows(plan: AutoPlan) -> tuple[RowPlan, tuple[str, ...]]:
    """Return the numbers of training, screening and test rows, and remarks on rows left out."""
    recipe = plan.loaded.recipe
    total = count_rows(recipe.data)
    if plan.promise.kind == "drop":
        return plan.row_plan(total), ()
    data = recipe.data.model_copy(update={"selection": "validation"})
    task, rows = load_task(recipe.model_copy(update={"data": data}))
    pool = unlabelled_rows(recipe, task, rows.train)
    return plan.row_plan(total, len(pool)), pool.notes
