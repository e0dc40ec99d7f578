"""The scores of rows, held against the metrics of the whole."""

from __future__ import annotations

import pytest

from sora_cli.tasks.base import Task
from sora_cli.tasks.encoded import Predictions


def assert_rows_add_up(task: Task, predictions: Predictions, rows: int) -> None:
    """Check for each metric that its rows' parts give it, one for each raw row."""
    metrics = task.scores(predictions)
    chosen = task.best
    for name in task.metric_names:
        task.best = name
        scores = task.row_scores(predictions)
        assert (scores.metric, len(scores)) == (name, rows)
        assert scores.value == pytest.approx(metrics[name], rel=1e-6, nan_ok=True)
        assert scores.greater_is_better == task.options.greater_is_better
    task.best = chosen
