"""What a report says of a training that has ended."""

from __future__ import annotations

import pytest

from sora_cli.report import RunReport
from sora_cli.run.results import _split_training


@pytest.mark.parametrize(("first_step", "evaluating"), [(0, 3.0), (4, 2.0), (8, None)])
def test_evaluations_before_a_resumed_step_are_not_counted_again(
    first_step: int, evaluating: float | None
) -> None:
    report = RunReport(name="", recipe={}, seconds={"train": 10.0})
    report.history = [
        {"step": 4, "loss": 1.0},
        {"step": 4, "eval_runtime": 1.0},
        {"step": 8, "eval_runtime": 2.0},
    ]
    _split_training(report, first_step)
    assert report.seconds.get("evaluate in training") == evaluating
    assert report.seconds["train"] == 10 - (evaluating or 0)
