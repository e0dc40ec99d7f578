"""Whole commands on the rehearsal device: no wait in a step, and the CPU's results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file
from torch.testing import assert_close

from sora_cli.report import RunReport
from tests.helpers_families import FAMILIES
from tests.helpers_models import tiny_bert
from tests.helpers_runs import resumes_as_if_whole, timeless, train, write_recipe
from tests.rehearsal import fake
from tests.rehearsal.watch import Watch

METHODS: dict[str, dict[str, Any]] = {
    "lora": {"r": 4},
    "adalora": {"init_r": 4, "target_r": 2},
    "sora": {"r_max": 4, "threshold": 0.01},
    "cut": {"r_max": 4, "target_r": 2, "cut_at": 0.5},
}
TRAINING = {"epochs": 2, "batch_size": 8, "learning_rate": 0.01, "model_dropout": 0.0,
            "logging_steps": 1}  # fmt: skip


def recipe_of(method: str, folder: Path, **training: Any) -> Path:
    """A recipe of four steps, with an evaluation and a checkpoint after two."""
    training = {**TRAINING, **training}
    file = write_recipe(folder, tiny_bert(num_labels=2), rows=16, training=training)
    recipe = yaml.safe_load(file.read_text())
    recipe["method"] = {"name": method, **METHODS[method]}
    file.write_text(yaml.safe_dump(recipe))
    return file


def both(recipe: Path, *words: str) -> tuple[RunReport, RunReport]:
    """Train on the rehearsal device and on the CPU; compare histories and adapters."""
    folder = recipe.parent
    there = train(recipe, *words, f"output.dir={folder}/there")
    assert fake.STATE.peak > 0
    fake.STATE.on = False
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("ACCELERATE_TORCH_DEVICE")
        here = train(recipe, *words, f"output.dir={folder}/here")
    fake.STATE.on = True
    one, other = timeless(there), timeless(here)
    for mine, plain in zip(one.pop("history"), other.pop("history"), strict=True):
        assert mine == pytest.approx(plain, rel=1e-4, abs=1e-6)
    assert one["ranks"] == other["ranks"]
    assert one["live_components"] == other["live_components"]
    assert one["metrics"].keys() == other["metrics"].keys()
    for split, scores in one["metrics"].items():
        assert scores == pytest.approx(other["metrics"][split], rel=1e-4, abs=1e-6)
    file = "adapter/adapter_model.safetensors"
    mine, plain = (load_file(folder / place / file) for place in ("there", "here"))
    assert mine.keys() == plain.keys()
    for name, tensor in mine.items():
        if name.endswith("qa_outputs.bias"):
            continue  # its gradient is zero but for rounding, which AdamW scales to whole steps
        assert_close(tensor, plain[name], rtol=1e-3, atol=1e-5)
    return there, here


@pytest.mark.parametrize("method", METHODS)
def test_a_run(method: str, tmp_path: Path, watch: Watch) -> None:
    recipe = recipe_of(method, tmp_path)
    both(recipe)
    assert watch.steps == 4
    guard = [place for place in watch.excused if "non_finite" in place]
    assert len(guard) == 4


@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_is_stopped_and_resumed(
    method: str, tmp_path: Path, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(method, tmp_path, model_dropout=0.1)
    resumes_as_if_whole(recipe, tmp_path, monkeypatch)
    assert watch.steps == 8


@pytest.mark.parametrize("family", FAMILIES)
def test_a_task_family(family: str, tmp_path: Path, watch: Watch) -> None:
    recipe = FAMILIES[family](tmp_path)
    both(recipe, "training.max_steps=2", "training.model_dropout=0", "training.evaluate=1")
    assert watch.steps == 2
