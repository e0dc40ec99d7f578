"""Every family keeps the contract of families, and each check finds its fault."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from sora_cli.recipe.families import FAMILIES as OURS
from sora_cli.recipe.load import load_recipe
from sora_cli.recipe.recipe import Recipe
from sora_cli.tasks.base import Task
from sora_cli.tasks.sequence import SequenceRegression
from sora_cli.verify.task_contract import CHECKS
from tests.helpers_families import FAMILIES

Check = Callable[[Recipe], None]


def test_no_family_is_forgotten() -> None:
    assert {kind.partition(",")[0] for kind in FAMILIES} == set(OURS)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("kind", FAMILIES)
def test_contract(tmp_path: Path, kind: str, check: Check) -> None:
    check(load_recipe(FAMILIES[kind](tmp_path)).recipe)


def _summed(_: Task, outputs: Any, batch: Mapping[str, Any]) -> Tensor:
    errors: Tensor = (outputs["logits"].reshape(-1) - batch["labels"]) ** 2
    return errors.sum()


def _tripled(_: Task, outputs: Any, __: Mapping[str, Any]) -> Tensor:
    return 3 * outputs["loss"]


FAULTS: dict[str, tuple[str, Any, str]] = {
    "no check": ("check", lambda *_: None, "a_missing_column_is_named"),
    "a sum": ("loss_of", _summed, "micro_batches_add_up"),
    "items": ("loss_items", lambda *_: 7, "micro_batches_add_up"),
    "another loss": ("loss_of", _tripled, "the_loss_is_that_of_training"),
    "other rows": (
        "row_parts",
        lambda _, p: ("pearson_spearman", p.outputs.reshape(-1)[::-1], p.true_labels),
        "rows_score_as_the_split",
    ),
    "few answers": (
        "answer_columns", lambda _, p: [p.outputs.reshape(-1).tolist()[1:]],
        "answers_follow_their_rows",
    ),
    "by place": (
        "answer_columns", lambda _, p: [[float(i) for i in range(len(p.outputs))]],
        "answers_follow_their_rows",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    name, broken, wanted = FAULTS[fault]
    recipe = load_recipe(FAMILIES["sequence-regression"](tmp_path)).recipe
    monkeypatch.setattr(SequenceRegression, name, broken)
    check = next(check for check in CHECKS if check.__name__ == wanted)
    with pytest.raises(AssertionError):
        check(recipe)
