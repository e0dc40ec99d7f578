"""A training step reads one number from the device: whether its losses and gradient are finite."""

from __future__ import annotations

import traceback
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from methods.torch_internals import TorchDispatchMode
from sora_cli.train.trainer import AdapterTrainer
from tests.helpers_methods import VARIANTS, method_words
from tests.helpers_models import tiny_bert
from tests.helpers_runs import train, write_recipe

STEPS = 10
CUTS = {"cut": 5}  # after that step it counts what it keeps
NOT_OURS = ("transformers/masking_utils", "torch/utils/data")
"""The model's own look at its attention mask; the seed of an epoch's batches, on the CPU anyway."""


class Reads(TorchDispatchMode):  # type: ignore[misc]
    """Notes who takes a number out of a tensor: on a GPU such a line waits for all before it."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ == "_local_scalar_dense":
            lines = [f for f in traceback.extract_stack() if "/torch/_" not in f.filename]
            self.places.append(f"{lines[-2].filename}:{lines[-2].lineno}")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", VARIANTS)
def test_reads_of_a_step(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads, begun = Reads(), []
    real = AdapterTrainer.training_step

    def training_step(self: AdapterTrainer, *args: Any, **kwargs: Any) -> Any:
        begun.append(len(reads.places))
        return real(self, *args, **kwargs)

    monkeypatch.setattr(AdapterTrainer, "training_step", training_step)
    training = {"max_steps": STEPS, "logging_steps": 100, "evaluate": "no", "checkpoint": "no",
                "model_dropout": 0.0}  # fmt: skip
    recipe = write_recipe(tmp_path, tiny_bert(num_labels=2), training=training)
    with reads:
        train(recipe, *method_words(name))
    steps = [
        [place for place in reads.places[a:b] if not any(part in place for part in NOT_OURS)]
        for a, b in pairwise(begun)
    ]
    assert len(steps) == STEPS - 1
    for step, places in enumerate(steps, 1):
        assert len(places) == 1 or step == CUTS.get(name), places
        assert "non_finite.py" in places[0]
