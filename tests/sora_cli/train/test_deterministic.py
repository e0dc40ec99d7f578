"""`training.deterministic`: the switch is set, set back, and changes nothing on a CPU."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sora_cli.train.machine import set_deterministic
from tests.helpers_models import tiny_bert
from tests.helpers_runs import train, write_recipe


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("CUBLAS_WORKSPACE_CONFIG", "FLASH_ATTENTION_DETERMINISTIC"):
        monkeypatch.setenv(name, "")  # restored after the test
        monkeypatch.delenv(name)
    yield
    torch.use_deterministic_algorithms(False)


def test_on_and_off() -> None:
    set_deterministic(True)
    assert torch.are_deterministic_algorithms_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert not torch.backends.cudnn.benchmark
    set_deterministic(False)
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_workspace_somebody_has_chosen_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    set_deterministic(True)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


def test_a_run_sets_it_and_sets_it_back(tmp_path: Path) -> None:
    """On a CPU it changes no bit."""
    training = {"epochs": 1, "model_dropout": 0.1}
    recipe = write_recipe(tmp_path, tiny_bert(num_labels=2), training=training)
    made = []
    for on in ("true", "false"):
        train(recipe, "--force", f"training.deterministic={on}")
        assert torch.are_deterministic_algorithms_enabled() is (on == "true")
        made.append((tmp_path / "out/adapter/adapter_model.safetensors").read_bytes())
    assert made[0] == made[1]
