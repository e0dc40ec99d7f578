"""`training.deterministic`: the switch is set, set back, and changes nothing on a CPU."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from methods.registry import low_rank_names
from sora_cli.train.machine import set_deterministic
from tests.helpers_models import tiny_bert
from tests.helpers_runs import train, write_recipe

OPTIONS = {
    "lora": {"r": 3},
    "adalora": {"init_r": 3, "target_r": 2},
    "sora": {"r_max": 3},
    "cut": {"r_max": 3, "target_r": 1.5},
}


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


def test_every_method_has_options_here() -> None:
    assert list(OPTIONS) == low_rank_names()


@pytest.mark.parametrize(
    "method",
    [m if m == "sora" else pytest.param(m, marks=pytest.mark.long) for m in OPTIONS],
)
def test_the_same_bits_on_a_cpu(tmp_path: Path, method: str) -> None:
    recipe = write_recipe(
        tmp_path, tiny_bert(num_labels=2), training={"epochs": 1, "model_dropout": 0.1}
    )
    text = recipe.read_text(encoding="utf-8")
    recipe.write_text(text.replace("  threshold: 0.01\n", "").replace("  r_max: 4\n", ""))
    words = [f"method.{key}={value}" for key, value in OPTIONS[method].items()]
    made = []
    for on in ("false", "true", "false"):
        train(recipe, f"method.name={method}", *words, "--force", f"training.deterministic={on}")
        assert torch.are_deterministic_algorithms_enabled() is (on == "true")
        made.append((tmp_path / "out/adapter/adapter_model.safetensors").read_bytes())
    assert made[0] == made[1] == made[2]
