"""Every family keeps the contract of families, and each check finds its fault."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from torch import Tensor

from sora_cli.recipe.families import FAMILIES as OURS
from sora_cli.recipe.load import load_recipe
from sora_cli.recipe.recipe import Recipe
from sora_cli.tasks.base import Task
from sora_cli.tasks.encoded import Predictions
from sora_cli.tasks.sequence import SequenceRegression
from sora_cli.verify.task_contract import CHECKS, check_scores
from sora_cli.verify.task_runs import RUN_CHECKS
from tests.helpers_families import FAMILIES

Check = Callable[[Recipe], None]


def test_no_family_is_forgotten() -> None:
    assert {kind.partition(",")[0] for kind in FAMILIES} == set(OURS)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("kind", FAMILIES)
def test_contract(tmp_path: Path, kind: str, check: Check) -> None:
    check(load_recipe(FAMILIES[kind](tmp_path)).recipe)


# e2e/test_families.py resumes each family, and scores its files, with every method
_IN_E2E = ("a_resumed_run_is_the_same", "files_score_as_the_model")
_RUNS = [
    (kind, check)
    for kind in FAMILIES
    for check in RUN_CHECKS
    if check.__name__ not in _IN_E2E or kind in ("sequence-regression", "preference")
]


@pytest.mark.long
@pytest.mark.parametrize(("kind", "check"), _RUNS)
def test_contract_of_runs(tmp_path: Path, kind: str, check: Check) -> None:
    check(load_recipe(FAMILIES[kind](tmp_path)).recipe)


def _summed(_: Task, outputs: Any, batch: Mapping[str, Any]) -> Tensor:
    errors: Tensor = (outputs["logits"].reshape(-1) - batch["labels"]) ** 2
    return errors.sum()


def _tripled(_: Task, outputs: Any, __: Mapping[str, Any]) -> Tensor:
    return 3 * outputs["loss"]


def _worse(_: Task, outputs: Any, __: Mapping[str, Any]) -> Tensor:
    return -outputs["loss"]


_calls = itertools.count()


def _by_calls(_: Task, outputs: Any, __: Mapping[str, Any]) -> Tensor:
    loss: Tensor = outputs["loss"] * (1 + next(_calls))
    return loss


def _by_data(_: Task, outputs: Any, __: Mapping[str, Any]) -> Tensor:
    loss: Tensor = outputs["loss"]
    return loss * 2 if loss.item() > 0 else loss


def _labels_as_answers(_: Task, predictions: Predictions) -> list[Any]:
    return [predictions.encoded.dataset["labels"][:]]


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
    "NaN is a number": (
        "row_parts",
        lambda _, p: ("pearson_spearman", np.nan_to_num(p.outputs.reshape(-1)), p.true_labels),
        "a_broken_model_scores_nan",
    ),
    "any row": ("check", lambda *_: None, "a_bad_row_has_its_place"),
    "uphill": ("loss_of", _worse, "the_loss_falls"),
    "a state of its own": ("loss_of", _by_calls, "a_resumed_run_is_the_same"),
    "it looks at labels": ("answer_columns", _labels_as_answers, "files_score_as_the_model"),
    "it looks at numbers": ("loss_of", _by_data, "memory_is_forecast"),
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
    check = next(check for check in (*CHECKS, *RUN_CHECKS) if check.__name__ == wanted)
    with pytest.raises(AssertionError):
        check(recipe)


def test_scores_of_a_reference(tmp_path: Path) -> None:
    recipe = load_recipe(FAMILIES["sequence-regression"](tmp_path)).recipe

    def pearson(answers: Sequence[Sequence[Any]], rows: Dataset) -> dict[str, float]:
        return {"pearson": float(np.corrcoef(answers[0], rows["label"][:])[0, 1])}

    check_scores(recipe, pearson)
    with pytest.raises(AssertionError, match="pearson is"):
        check_scores(recipe, lambda answers, rows: {"pearson": -pearson(answers, rows)["pearson"]})
    with pytest.raises(AssertionError, match="none of"):
        check_scores(recipe, lambda *_: {"accuracy": 1.0})
