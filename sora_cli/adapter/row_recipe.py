"""The part of a run's recipe that reads and answers new rows, kept beside the run's result.

`sora.json` holds it, so that it stays with the adapter, and with a merged model, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sora_cli.adapter.metadata import AdapterMeta
from sora_cli.adapter.places import ADAPTER, DELTA, MODEL
from sora_cli.report import read_report

_OF_MODEL = ("dtype", "attention", "quantise", "new_tokens")
_OF_ROWS = ("text_columns", "label_column", "columns", "label_names", "max_length")
_OF_COMPUTING = ("precision",)
UNKNOWN = "unknown"
"""The base model's name in such a recipe: an adapter itself names its own."""
OF_TRAINING = (
    "beta", "centring", "desirable_weight", "gamma", "generation_batch_size", "label_all_pieces",
    "label_smoothing", "learn", "loss", "max_target_length", "packing", "reference", "scale",
    "sft_weight", "top_k", "undesirable_weight",
)  # fmt: skip
"""Options of a task that decide how it is learned or scored, not how a model reads rows."""
OF_SCORES = ("metrics", "best_metric", "greater_is_better")
"""Options of a task that change scores but not answers."""


def row_recipe(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a recipe that reads and answers rows, without paths of this machine."""
    return {
        "model": _chosen(recipe, "model", _OF_MODEL),
        "task": {k: v for k, v in recipe.get("task", {}).items() if k not in OF_SCORES},
        "data": _chosen(recipe, "data", _OF_ROWS),
        "training": _chosen(recipe, "training", _OF_COMPUTING),
    }


def recorded_row_recipe(place: Path, meta: AdapterMeta) -> dict[str, Any] | None:
    """Return this part as recorded with a result, or by older versions in its run's report.

    Args:
        place: directory of an adapter, a delta or a model.
        meta: the content of its `sora.json`.

    Returns:
        None: no run is known.
    """
    if meta.row_recipe:
        return row_recipe(meta.row_recipe)
    report = read_report(place.parent) if place.name in (ADAPTER, DELTA, MODEL) else None
    return row_recipe(report.recipe) if report is not None and report.recipe else None


def _chosen(recipe: Mapping[str, Any], block: str, keys: tuple[str, ...]) -> dict[str, Any]:
    values = recipe.get(block, {})
    return {key: values[key] for key in keys if key in values}
