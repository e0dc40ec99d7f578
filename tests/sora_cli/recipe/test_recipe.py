"""What a recipe's blocks say of a run."""

from __future__ import annotations

from typing import Any

import pytest

from sora_cli.recipe.recipe import TrainingBlock


@pytest.mark.parametrize(
    ("options", "rows", "steps"),
    [
        ({"epochs": 1, "batch_size": 8}, 24, 3),
        ({"epochs": 1, "batch_size": 8}, 25, 4),  # the last batch is smaller
        ({"epochs": 0.5, "batch_size": 8}, 24, 2),  # as transformers' Trainer rounds
        ({"epochs": 1.1, "batch_size": 8}, 24, 4),
        ({"epochs": 5, "batch_size": 8, "max_steps": 7}, 24, 7),
    ],
)
def test_steps_of_a_run(options: dict[str, Any], rows: int, steps: int) -> None:
    assert TrainingBlock(**options).total_steps(rows) == steps
