"""What a recipe's blocks say of a run."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from sora_cli.recipe.auto import AutoBlock
from sora_cli.recipe.recipe import MethodBlock, TaskBlock, TrainingBlock


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


@pytest.mark.parametrize("deep", [False, True])
def test_the_options_of_a_name_are_built_once_and_anew_for_a_copy(deep: bool) -> None:
    method = MethodBlock(name="lora", r=4)
    assert method.config is method.config
    same = MethodBlock(name="lora", r=4)
    assert (method, hash(method)) == (same, hash(same))
    assert json.loads(method.model_dump_json()) == method.model_dump() == {"name": "lora", "r": 4}
    changed = method.model_copy(update={"r": 8}, deep=deep)
    assert (changed.config.r, method.config.r) == (8, 4)  # type: ignore[attr-defined]
    task = TaskBlock(name="seq2seq", prefix="a")
    assert task.options is task.options
    other = task.model_copy(update={"name": "causal-lm", "prefix": "b"}, deep=deep)
    with pytest.raises(ValidationError):
        _ = other.options
    assert task.model_copy(update={"prefix": "b"}).options.prefix == "b"  # type: ignore[attr-defined]


def test_a_probe_that_was_not_wanted_is_dropped() -> None:
    """Reports of earlier versions hold `auto.probe`."""
    assert AutoBlock.model_validate({"probe": False}) == AutoBlock.model_validate({})
    with pytest.raises(ValidationError, match="probe"):
        AutoBlock.model_validate({"probe": True})
