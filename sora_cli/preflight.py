"""What is wrong with a recipe as far as that can be told before torch and transformers load.

Each check is the one that the run itself makes later, where it needs the result.
"""

from __future__ import annotations

from sora_cli.data_source import find_source
from sora_cli.recipe import Recipe
from sora_cli.references import resolve_model_path
from sora_cli.tasks import main_metric, task_target


def check_recipe(recipe: Recipe, *, model: bool = True) -> None:
    """Look at what a recipe refers to: its task, its data, its model.

    Args:
        model: also the base model; not where another takes its place.

    Raises:
        SoraError: an unknown task, data or a model that are not there.
    """
    task_target(recipe.task.name)
    if recipe.task.metrics:
        main_metric(recipe.task.metrics, recipe.task.best_metric)
    find_source(recipe.data)
    if model:
        resolve_model_path(recipe.model.path)
