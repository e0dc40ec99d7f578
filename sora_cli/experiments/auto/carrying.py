"""The loss that the test rows can certify, computed before anything is trained."""

from __future__ import annotations

import tempfile
from pathlib import Path

from sora_cli.recipe.recipe import Recipe
from sora_cli.run.encode import encode
from sora_cli.run.prepare import Prepared
from sora_cli.search.bound import Carrying, carried
from sora_cli.train.trainer import build_scorer

_FEW = 8  # rows that are scored to see what a row's score is


def carrying(recipe: Recipe, ready: Prepared, rows: int, confidence: float) -> Carrying:
    """Return what so many test rows can carry.

    A few rows are scored by the untrained model, since only its scores say whether a row is right
    or wrong. That leaves no trace in a run: its trainer seeds all generators when it is made.

    Args:
        recipe: of the full run.
    """
    few = ready.rows.select.select(range(min(_FEW, len(ready.rows.select))))
    encoded = encode(ready.task, ready.base, few, ready.rows.origin(ready.rows.select))
    with tempfile.TemporaryDirectory() as scratch:  # a trainer makes its directory
        scores = build_scorer(recipe, ready.task, ready.base, Path(scratch)).row_scores(encoded)
    return carried(rows, confidence, right_or_wrong=scores.is_right_or_wrong)
