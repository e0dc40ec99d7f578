"""A family whose loss compares all rows of a step: micro-batches and processes change nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sora_cli.app import run
from sora_cli.recipe import families
from sora_cli.recipe.load import load_recipe
from sora_cli.recipe.plugins import load_code
from sora_cli.verify.task_contract import CHECKS
from sora_cli.verify.task_runs import RUN_CHECKS
from tests.helpers_models import tiny_bert
from tests.helpers_runs import write_recipe
from tests.launched import launch_commands

FAMILY = '''\
from typing import ClassVar

import numpy as np
import torch

from sora_cli.recipe.task_options import SequenceRegressionOptions
from sora_cli.tasks.family.head import without
from sora_cli.tasks.sequence import SequenceRegression


SEEN = []  # answers before a step, and in it


class CorrelationOptions(SequenceRegressionOptions):
    NAME: ClassVar[str] = "correlation"
    LOSS_COMPARES = "step"


def gathered(own):
    """The tensors of all processes, and where this process's begin."""
    if not torch.distributed.is_initialized():
        return own, 0
    parts = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, own)
    return torch.cat(parts), sum(map(len, parts[: torch.distributed.get_rank()]))


class Correlation(SequenceRegression):
    """1 - Pearson's correlation of a step's answers and labels, and their means apart."""

    OPTIONS = CorrelationOptions

    def inputs_of(self, batch):
        return without(batch, "labels", "given", "slopes", "value")

    def before_step(self, model, micro_batches):
        given = [model(**self.inputs_of(b))["logits"].reshape(-1).float() for b in micro_batches]
        numbers = torch.cat([torch.zeros(0), *given])
        labels = torch.cat([torch.zeros(0), *(batch["labels"].float() for batch in micro_batches)])
        answers, first = gathered(numbers)
        wanted, _ = gathered(labels)
        with torch.enable_grad():
            both = torch.stack([answers.requires_grad_(), wanted])
            apart = torch.diff(both.mean(dim=1)).square().sum()
            centred = both - both.mean(dim=1, keepdim=True)
            value = 1 - torch.cosine_similarity(*centred, dim=0) + apart
        slopes = torch.autograd.grad(value, answers)[0] * len(answers)
        own = slopes[first : first + len(numbers)].split([len(part) for part in given])
        return [
            {**batch, "given": part, "slopes": slope, "value": value.detach()}
            for batch, part, slope in zip(micro_batches, given, own, strict=True)
        ]

    def loss_of(self, outputs, batch):
        answers = outputs["logits"].reshape(-1).float()
        if "slopes" not in batch:  # it only fills up the step, and has no weight
            return answers.sum()
        SEEN.append((batch["given"], answers.detach()))
        steep = (answers * batch["slopes"]).mean()
        return batch["value"] + steep - steep.detach()

    def loss(self, predictions):
        answers = self.answers(predictions).astype(float)
        apart = (answers - predictions.true_labels).mean() ** 2
        return float(1 - np.corrcoef(answers, predictions.true_labels)[0, 1] + apart)

    def constant_loss(self, rows):
        return None
'''
NAMED = "task.name=correlation"
TRAINING = {"epochs": 2, "batch_size": 8, "learning_rate": 0.01, "evaluate": "no",
            "length_grouping": False, "checkpoint": "no"}  # fmt: skip


@pytest.fixture
def module(tmp_path: Path) -> Iterator[Any]:
    path = tmp_path / "correlation.py"
    path.write_text(FAMILY)
    yield load_code(path)
    families._ADDED.clear()


@pytest.fixture
def code(module: Any) -> str:
    return str(module.__file__)


def _recipe(folder: Path, *, dropout: float) -> str:
    """45 rows: an epoch's last step has 5 of 8, which fill no two micro-batches on 2 processes."""
    drop = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    model = tiny_bert(num_labels=1, problem_type="regression", **drop)
    task = {"name": "sequence-regression"}
    return str(write_recipe(folder, model, rows=45, training=TRAINING, task=task))


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_file(folder / "adapter" / "adapter_model.safetensors"))


def test_micro_batches_change_nothing(tmp_path: Path, code: str) -> None:
    recipe, found = _recipe(tmp_path, dropout=0.0), []
    for parts in (1, 2, 4):
        words = [f"output.dir={tmp_path}/{parts}", f"training.gradient_accumulation={parts}"]
        assert run(["train", recipe, NAMED, "--code", code, *words]) == 0
        found.append(_tensors(tmp_path / str(parts)))
    for other in found[1:]:
        for name, tensor in found[0].items():
            torch.testing.assert_close(other[name], tensor, rtol=1e-3, atol=1e-5)


def test_dropout_drops_the_same_numbers_again(tmp_path: Path, code: str, module: Any) -> None:
    recipe = _recipe(tmp_path, dropout=0.3)
    words = [NAMED, "training.gradient_accumulation=2", "--code", code]
    assert run(["train", recipe, "--dry-run", *words]) == 0  # time and memory of a step
    module.SEEN.clear()
    assert run(["train", recipe, *words]) == 0
    assert len(module.SEEN) > 2 * 2 * 6  # two micro-batches a step
    for before, after in module.SEEN:
        torch.testing.assert_close(after, before)
    spread = torch.stack([after.std() for _, after in module.SEEN if len(after) > 1])
    assert float(spread.min()) > 0


@pytest.mark.parametrize("check", [*CHECKS, *RUN_CHECKS], ids=lambda check: check.__name__)
@pytest.mark.usefixtures("code")
def test_it_keeps_the_contract(tmp_path: Path, check: object) -> None:
    words = [NAMED, "training.gradient_accumulation=2"]
    assert callable(check)
    check(load_recipe(_recipe(tmp_path, dropout=0.1), words).recipe)


@pytest.mark.long
def test_two_processes_compare_all_their_rows(tmp_path: Path, code: str) -> None:
    """One of them has a micro-batch that only fills up the last step of an epoch."""
    recipe = _recipe(tmp_path, dropout=0.0)
    words = [
        "train",
        recipe,
        NAMED,
        "--code",
        code,
        "--no-verify",
        "training.gradient_accumulation=2",
    ]
    assert run([*words, f"output.dir={tmp_path}/one"]) == 0
    launch_commands(tmp_path, [{"words": [*words, f"output.dir={tmp_path}/two"], "stop": None}])
    one, two = (_tensors(tmp_path / name) for name in ("one", "two"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-4)
    assert math.isfinite(sum(float(tensor.sum()) for tensor in two.values()))
