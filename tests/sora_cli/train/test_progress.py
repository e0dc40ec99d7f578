"""The warning half-way of a run whose loss is no better than a constant answer's."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from sora_cli.recipe.recipe import DataBlock, TaskBlock
from sora_cli.tasks import create_task
from sora_cli.tasks.encoded import Encoded
from sora_cli.tasks.sequence import SequenceRegression
from sora_cli.train.progress import RunProgress
from tests.helpers_runs import tiny_bert, train, write_recipe

ROWS: Any = SimpleNamespace(dataset={})


def constant_loss(name: str, labels: list[Any], classes: int = 0) -> float | None:
    """The loss of the best constant answer to rows with these labels."""
    rows = Dataset.from_dict({"labels": labels})
    data = DataBlock(path="rows", label_names=[f"class {i}" for i in range(classes)] or None)
    task = create_task(TaskBlock(name=name), data)
    if classes:
        named = [f"class {i}" for i in labels]
        task.bind(Dataset.from_dict({"text": named, "label": named}))
    return task.constant_loss(Encoded(rows, np.ones(len(rows)), 0))


def test_the_loss_of_a_constant_answer() -> None:
    both, three = [0] * 50 + [1] * 50, [0] * 30 + [1] * 70
    assert constant_loss("sequence-classification", both, 2) == pytest.approx(math.log(2))
    found = constant_loss("sequence-classification", three, 3)
    assert found == pytest.approx(0.6109, abs=1e-4)
    assert constant_loss("sequence-regression", [1.0, 2.0, 3.0]) == pytest.approx(2 / 3)
    assert constant_loss("question-answering", [0, 1]) is None


def test_it_is_the_familys_own_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SequenceRegression, "loss", lambda _, p: float(np.ptp(p.outputs)) + 7)
    assert constant_loss("sequence-regression", [1.0, 2.0, 3.0]) == 7


@pytest.mark.parametrize(("loss", "constant"), [("sigmoid", math.log(2)), ("hinge", 1),
                                                 ("ipo", 25), ("simpo", None)])  # fmt: skip
def test_a_model_that_is_its_reference_prefers_nothing(loss: str, constant: float | None) -> None:
    task = create_task(TaskBlock(name="preference", loss=loss), DataBlock(path="rows"))
    assert task.constant_loss(ROWS) == (constant and pytest.approx(constant))


def warnings(losses: list[float], constant: float | None, capsys: Any) -> list[str]:
    """Follow a run that logs these losses, and return the lines that it prints."""
    hooks: Any = SimpleNamespace(
        method=SimpleNamespace(config=SimpleNamespace(adapts_rank=False)), live=[]
    )
    progress = RunProgress(hooks, "accuracy", lambda: constant)
    args = SimpleNamespace(learning_rate=3e-3)
    state = SimpleNamespace(max_steps=10 * len(losses), global_step=0, log_history=[], epoch=0.0)
    state.is_world_process_zero = True
    progress.on_train_begin(args, state, None)
    for loss in losses:
        state.global_step += 10
        state.log_history.append({"loss": loss})
        progress.on_log(args, state, None, {"loss": loss})
    progress.close()
    said = capsys.readouterr().err.replace("\r", "\n").splitlines()
    return [line for line in said if line.startswith("WARNING")]


def test_it_is_said_once_half_way(capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = warnings([9, 5, 2.2, 2.14, 2.13, 2.49, 2.08, 2.1], 2.2, capsys)
    assert line.startswith(
        "WARNING: after 40 of 80 steps the loss (3.11) is that of a constant answer (2.2): the "
        "model is not learning; another learning rate than 0.003 may help"
    )


@pytest.mark.parametrize(
    ("losses", "constant"),
    [
        ([0.69, 0.68, 0.5, 0.6, 0.69, 0.69, 0.69, 0.69], 0.69),  # it has learned by then
        ([0.9] * 8, None),  # a family without a constant answer
        ([0.9, 0.9], 0.69),  # too few losses to tell
    ],
)
def test_otherwise_nothing_is_said(
    losses: list[float], constant: float | None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert warnings(losses, constant, capsys) == []


def test_a_run_that_does_not_learn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"max_steps": 12, "logging_steps": 2, "learning_rate": 1e-7, "batch_size": 16}
    recipe = write_recipe(tmp_path, tiny_bert(num_labels=2), training=options)
    train(recipe)
    said = capsys.readouterr().err
    assert "the model is not learning; another learning rate than 1e-07 may help" in said
