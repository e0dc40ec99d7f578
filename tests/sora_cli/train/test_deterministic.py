"""`training.deterministic`: the switch is set, set back, and changes nothing on a CPU."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sora_cli.train.machine import set_deterministic
from tests.helpers_methods import EXAMPLES, method_words
from tests.helpers_models import tiny_bert
from tests.helpers_runs import train, write_recipe
from tests.matrix import rest_is_long


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


@pytest.mark.parametrize("method", rest_is_long(sorted(EXAMPLES, reverse=True)))
def test_one_seed_gives_one_adapter(tmp_path: Path, method: str) -> None:
    """With the switch or without, whatever was drawn before; another seed gives another."""
    recipe = write_recipe(
        tmp_path, tiny_bert(num_labels=2), training={"epochs": 1, "model_dropout": 0.2}
    )
    made = []
    for seed, on in ((3, "false"), (3, "true"), (4, "false")):
        words = [*method_words(method), f"training.deterministic={on}", f"training.seed={seed}"]
        train(recipe, *words, "--force")
        assert torch.are_deterministic_algorithms_enabled() is (on == "true")
        made.append((tmp_path / "out/adapter/adapter_model.safetensors").read_bytes())
        torch.rand(7)
    assert made[0] == made[1]
    assert made[0] != made[2]
