"""Runs with 16-bit weights, products in 16 bits, or both: factors stay in 32."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sora_cli.app import run
from sora_cli.report import read_report
from tests.helpers_models import tiny_llama
from tests.helpers_runs import write_recipe
from tests.present import present


@pytest.mark.parametrize(
    "words",
    [
        ["model.dtype=bfloat16"],  # verified, too
        ["training.precision=bf16", "training.gradient_checkpointing=true", "--no-verify"],
        ["model.dtype=bfloat16", "training.precision=bf16", "--no-verify"],
    ],
)
def test_a_decoder(words: list[str], tmp_path: Path) -> None:
    """It learns, and its files give the outputs of the trained model."""
    options = {"epochs": 4, "logging_steps": 1, "evaluate": "no", "keep_best": False}
    recipe = write_recipe(tmp_path, tiny_llama(num_labels=2), training=options)
    assert run(["train", str(recipe), *words]) == 0
    report = present(read_report(tmp_path / "out"))
    losses = [entry["loss"] for entry in report.history if "loss" in entry]
    assert all(map(math.isfinite, losses))
    assert sum(losses[-6:]) < sum(losses[:6])
    stored = load_file(tmp_path / "out" / "adapter" / "adapter_model.safetensors")
    factors = {name: t.dtype for name, t in stored.items() if "lora_" in name}
    assert factors
    assert set(factors.values()) == {torch.float32}
