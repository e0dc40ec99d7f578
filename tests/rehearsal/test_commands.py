"""Whole runs on the rehearsal device: no wait in a step, and the CPU's results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file
from torch.testing import assert_close

from sora_cli.core.device import device_module
from sora_cli.report import RunReport
from tests.helpers_families import FAMILIES
from tests.helpers_models import tiny_bert
from tests.helpers_runs import resumes_as_if_whole, timeless, train, write_recipe
from tests.rehearsal.watch import LOOSER, Watch, on_cpu

METHODS: dict[str, dict[str, Any]] = {
    "lora": {"r": 4},
    "adalora": {"init_r": 4, "target_r": 2},
    "sora": {"r_max": 4, "threshold": 0.01},
    "sora, budget": {"r_max": 4, "target_r": 2, "l1": 0.01},
    "cut": {"r_max": 4, "target_r": 2, "cut_at": 0.5},
}
TRAINING = {"epochs": 2, "batch_size": 8, "learning_rate": 0.01, "model_dropout": 0.0,
            "logging_steps": 1}  # fmt: skip


def recipe_of(method: str, folder: Path, **training: Any) -> Path:
    """A recipe of four steps, with an evaluation and a checkpoint after two."""
    training = {**TRAINING, **training}
    file = write_recipe(folder, tiny_bert(num_labels=2), rows=16, training=training)
    recipe = yaml.safe_load(file.read_text())
    recipe["method"] = {"name": method.partition(",")[0], **METHODS.get(method, {})}
    file.write_text(yaml.safe_dump(recipe))
    return file


def both(recipe: Path, *words: str) -> tuple[RunReport, RunReport]:
    """Train on the device and on the CPU; compare histories, and adapters if there are any."""
    folder = recipe.parent
    there = train(recipe, *words, f"output.dir={folder}/there")
    assert device_module().max_memory_allocated() > 0
    with on_cpu():
        here = train(recipe, *words, f"output.dir={folder}/here")
    one, other = timeless(there), timeless(here)
    assert len(one["history"]) >= 3
    for mine, plain in zip(one.pop("history"), other.pop("history"), strict=True):
        assert mine == pytest.approx(plain, rel=1e-4 * LOOSER, abs=1e-6 * LOOSER)
    assert one["ranks"] == other["ranks"]
    assert one["live_components"] == other["live_components"]
    assert one["metrics"].keys() == other["metrics"].keys()
    for split, scores in one["metrics"].items():
        plain = other["metrics"][split]
        assert scores == pytest.approx(plain, rel=1e-4 * LOOSER, abs=1e-6 * LOOSER)
    if not one["ranks"]:
        return there, here
    file = "adapter/adapter_model.safetensors"
    mine, plain = (load_file(folder / place / file) for place in ("there", "here"))
    assert mine.keys() == plain.keys()
    for name, tensor in mine.items():
        if name.endswith("qa_outputs.bias") or (name.endswith("bias") and tensor.numel() == 1):
            # of scores that are compared with each other alone: the gradient is zero but for
            # rounding, which AdamW scales to whole steps
            continue
        assert_close(tensor, plain[name], rtol=1e-3 * LOOSER, atol=1e-5 * LOOSER)
    return there, here


# methods that keep records beside the factors
@pytest.mark.parametrize("method", ["adalora", "sora, budget", "cut"])
def test_a_run_and_the_same_resumed(
    method: str, tmp_path: Path, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    # one evaluation, so that the best weights are those of the last step
    recipe = recipe_of(method, tmp_path, evaluate=4)
    both(recipe)
    assert watch.steps == 4
    if watch.strict:
        assert [step for step, place in watch.excused if "non_finite" in place] == [1, 2, 3, 4]
        cuts = {step for step, place in watch.excused if "methods/" in place}
        assert cuts == ({2} if method == "cut" else set())
    resumes_as_if_whole(recipe, tmp_path, monkeypatch, whole=tmp_path / "there")
    assert watch.steps == 8


def test_a_resumed_run_draws_the_devices_numbers(
    tmp_path: Path, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of("lora", tmp_path, model_dropout=0.1, evaluate=4)
    resumes_as_if_whole(recipe, tmp_path, monkeypatch)
    assert watch.steps == 8


def test_a_run_without_adapters(tmp_path: Path, watch: Watch) -> None:
    both(recipe_of("full", tmp_path))
    assert watch.steps == 4


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_task_family(family: str, tmp_path: Path, watch: Watch) -> None:
    recipe = FAMILIES[family](tmp_path)
    short = {"max_steps": 2, "model_dropout": 0, "evaluate": 2, "logging_steps": 1}
    both(recipe, *(f"training.{key}={value}" for key, value in short.items()))
    assert watch.steps == 2
