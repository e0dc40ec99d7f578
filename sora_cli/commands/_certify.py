"""Checks and words of `--max-drop`: the promise, the sizes tried, the verdict."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from sora_cli.core.console import count, emit, emit_table, say
from sora_cli.core.errors import SoraError
from sora_cli.recipe.families import main_metric
from sora_cli.recipe.tolerance import check_drop, parse_drop

if TYPE_CHECKING:
    from sora_cli.recipe.load import LoadedRecipe
    from sora_cli.recipe.recipe import Recipe
    from sora_cli.search.choice import Point, Search


def metric_of(recipe: Recipe) -> str:
    """Return the metric that chooses, of which a drop is allowed."""
    return main_metric(recipe.task.options.metrics, recipe.task.options.best_metric)


def measured(
    max_drop: float | str, recipe: str | None, overrides: Sequence[str], confidence: float
) -> tuple[LoadedRecipe, float]:
    """Return the recipe that a drop is measured with, and the drop in its metric's unit.

    Raises:
        SoraError: no such drop, confidence or recipe.
    """
    check_drop(max_drop)
    check_confidence(confidence)
    if recipe is None:
        raise SoraError("--max-drop needs a recipe to measure with", hint="add --recipe R")
    from sora_cli.recipe.load import load_recipe
    from sora_cli.recipe.reading import MAX_DROP, load_read
    from sora_cli.run.precision import settle_precision
    from sora_cli.run.preflight import check_recipe

    loaded = load_read(partial(load_recipe, recipe), overrides, MAX_DROP)
    drop = parse_drop(max_drop, metric_of(loaded.recipe))
    check_recipe(loaded.recipe, model=False)  # the adapter's own base model is loaded
    return settle_precision(loaded), drop


def check_confidence(confidence: float) -> None:
    """Raise `SoraError` where a confidence is none, or so low that it promises nothing."""
    if not 0.5 <= confidence < 1:
        raise SoraError(
            f"--confidence is a share from 0.5 to below 1, not {confidence:g}",
            hint="--confidence 0.95",
        )


def certified_facts(search: Search[Any]) -> dict[str, Any]:
    """Return what an adapter's lineage says of how its size was chosen."""
    chosen, bound = search.chosen, search.chosen.bound
    return {
        "metric": search.metric,
        "split": search.split,
        "certified": search.certified,
        "confidence": search.confidence,
        "drop": chosen.drop,
        "bound": None if bound is None else bound.upper,
        "bound_kind": None if bound is None else bound.kind,
        "rows": search.rows,
    }


def show_search(search: Search[Any]) -> None:
    """Print the sizes tried, the largest first, and whether the promise is shown to be kept."""
    emit_table(
        f"tried on {search.split}",
        ["components", "parameters", search.metric, "drop", "at most", ""],
        [
            _model_row(point) if search.outside and not place else _row(point, whole=not place)
            for place, point in enumerate(search.points)
        ],
    )
    for line in verdict_lines(search):
        emit(line)


def verdict_lines(search: Search[Any]) -> Sequence[str]:
    """Return in words what was found; a size that is not certified is called that."""
    promise, confidence = f"{search.promise:g}", f"{search.confidence:g}"
    chosen = f"{count(search.chosen.components)} components"
    bound = search.chosen.bound
    if search.chosen is search.points[0]:
        return [
            f"no smaller size is shown to lose at most {promise} of {search.metric}, nor does one "
            "on these rows: everything is kept",
            *_carried(search),
        ]
    if search.certified and bound is not None and bound.upper is not None:
        about = "" if bound.kind == "exact" else "; the bound is approximate"
        return [
            f"certified: {chosen} lose at most {bound.upper:.4f} of {search.metric}, within "
            f"{promise}, with confidence {confidence}, on rows like these{about}"
        ]
    but = "but" if search.chosen.drop <= search.promise else "and"
    return [
        f"NOT certified: {chosen} lose {search.chosen.drop:.4f} of {search.metric} on these rows, "
        f"{but} the rows do not show that it is at most {promise}, with confidence {confidence}",
        *_carried(search),
    ]


def say_unseen_rows(search: Search[Any]) -> None:
    """Say that the score of what was chosen is a choice's own."""
    say(f"note: {search.split} chose the size: report a score on other rows")


def _carried(search: Search[Any]) -> list[str]:
    bounds = [p.bound for p in search.points if p.bound is not None]
    if not bounds:
        return []
    first = next((bound for bound in bounds if bound.is_of_many), bounds[0])
    if first.least is not None:
        few = f"only {first.differing:,} differ between the whole and the largest size"
        return [f"the {first.rows:,} rows can certify a drop of {first.least:.4f} at best: {few}"]
    if search.carried is None:
        return [f"the {first.rows:,} rows certify nothing here: {first.reason}"]
    differ = (
        f"{first.differing:,} of them differ between the whole and the largest size with a bound"
    )
    return [
        f"the {first.rows:,} rows can certify a drop of {search.carried:.4f} (80% of the time, if "
        f"nothing is lost; {differ})"
    ]


def _row(point: Point, *, whole: bool) -> list[str]:
    bound = point.bound
    upper = "" if bound is None else "-" if bound.upper is None else f"{bound.upper:+.4f}"
    return [
        count(point.components),
        count(point.parameters),
        f"{point.score:.4f}",
        f"{point.drop:+.4f}",
        upper,
        "whole" if whole else _mark(point),
    ]


def _model_row(point: Point) -> list[str]:
    return ["", "", f"{point.score:.4f}", "", "", "the model"]


def _mark(point: Point) -> str:
    if point.bound is None:
        return "not tested"
    if point.passed_over:
        return "passed over"
    return "certified" if point.passed else "not certified"
