"""Whole commands on the rehearsal device: no wait in a step, and the CPU's results."""

from __future__ import annotations

import multiprocessing
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file
from torch import Tensor
from torch.testing import assert_close

from sora_cli.app import run
from sora_cli.core.device import device_module, device_type
from sora_cli.model import activation_offload
from sora_cli.report import RunReport
from tests.helpers_families import FAMILIES
from tests.helpers_models import tiny_bert
from tests.helpers_runs import (
    files_of,
    resumes_as_if_whole,
    signal_at,
    timeless,
    train,
    write_recipe,
)
from tests.matrix import rest_is_long
from tests.rehearsal import fake
from tests.rehearsal.watch import LOOSER, Watch, on_cpu, watching

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
    recipe["method"] = {"name": method.partition(",")[0], **METHODS[method]}
    file.write_text(yaml.safe_dump(recipe))
    return file


def both(recipe: Path, *words: str, there_only: str | None = None) -> tuple[RunReport, RunReport]:
    """Train on the device and on the CPU; compare histories and adapters.

    Args:
        there_only: a switch that a CPU does not have.
    """
    folder = recipe.parent
    more = [] if there_only is None else [there_only]
    there = train(recipe, *words, *more, f"output.dir={folder}/there")
    assert device_module().max_memory_allocated() > 0
    with on_cpu():
        here = train(recipe, *words, f"output.dir={folder}/here")
    one, other = timeless(there), timeless(here)
    assert len(one["history"]) > 3
    for mine, plain in zip(one.pop("history"), other.pop("history"), strict=True):
        assert mine == pytest.approx(plain, rel=1e-4 * LOOSER, abs=1e-6 * LOOSER)
    assert one["ranks"] == other["ranks"]
    assert one["live_components"] == other["live_components"]
    assert one["metrics"].keys() == other["metrics"].keys()
    for split, scores in one["metrics"].items():
        plain = other["metrics"][split]
        assert scores == pytest.approx(plain, rel=1e-4 * LOOSER, abs=1e-6 * LOOSER)
    file = "adapter/adapter_model.safetensors"
    mine, plain = (load_file(folder / place / file) for place in ("there", "here"))
    assert mine.keys() == plain.keys()
    for name, tensor in mine.items():
        if name.endswith("qa_outputs.bias"):
            continue  # its gradient is zero but for rounding, which AdamW scales to whole steps
        assert_close(tensor, plain[name], rtol=1e-3 * LOOSER, atol=1e-5 * LOOSER)
    return there, here


# the cases below train with SoRA, and those of memory with LoRA
@pytest.mark.parametrize(
    "method", rest_is_long(["adalora", "sora, budget", "cut", "sora", "lora"], 3)
)
def test_a_run(method: str, tmp_path: Path, watch: Watch) -> None:
    recipe = recipe_of(method, tmp_path)
    both(recipe)
    assert watch.steps == 4
    if not watch.strict:
        return
    assert [step for step, place in watch.excused if "non_finite" in place] == [1, 2, 3, 4]
    cuts = {step for step, place in watch.excused if "methods/" in place}
    assert cuts == ({2} if method == "cut" else set())


@pytest.mark.parametrize("method", rest_is_long(sorted(METHODS, key="sora".__ne__)))
def test_a_run_that_is_stopped_and_resumed(
    method: str, tmp_path: Path, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    # one evaluation, so that the best weights are those of the last step
    recipe = recipe_of(method, tmp_path, model_dropout=0.1, evaluate=4)
    resumes_as_if_whole(recipe, tmp_path, monkeypatch)
    assert watch.steps == 8


def die_in_step(step: int, words: list[str]) -> None:
    """Run a command on the device of this process, which kills itself in a step."""
    if not fake.REAL:
        fake.register()
    with pytest.MonkeyPatch.context() as patch, watching(patch):
        signal_at(patch, step, signal.SIGKILL)
        run(words)


@pytest.mark.long
@pytest.mark.usefixtures("watch")
def test_a_run_that_is_killed_and_resumed(tmp_path: Path) -> None:
    """The checkpoint after step 2 goes on; step 3 is lost."""
    recipe = recipe_of("sora", tmp_path, model_dropout=0.1, evaluate=4)
    whole, words = train(recipe, f"output.dir={tmp_path}/whole"), [f"output.dir={tmp_path}/cut"]
    command = ["train", str(recipe), "--no-verify", *words]
    process = multiprocessing.get_context("spawn").Process(target=die_in_step, args=(4, command))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert [path.name for path in (tmp_path / "cut" / "checkpoints").iterdir()] == ["step-000002"]
    resumed = train(recipe, *words, "--resume")
    assert files_of(tmp_path / "cut" / "adapter") == files_of(tmp_path / "whole" / "adapter")
    assert timeless(resumed) == timeless(whole)


@pytest.mark.parametrize("family", rest_is_long(sorted(FAMILIES, key="seq2seq".__ne__)))
def test_a_task_family(family: str, tmp_path: Path, watch: Watch) -> None:
    recipe = FAMILIES[family](tmp_path)
    short = {"max_steps": 2, "model_dropout": 0, "evaluate": 1, "logging_steps": 1}
    both(recipe, *(f"training.{key}={value}" for key, value in short.items()))
    assert watch.steps == 2


SWITCHES = [
    ["gradient_accumulation=2", "compact_every=1", "non_finite=skip", "workers=1"],
    ["gradient_checkpointing=true", "deterministic=true", "optimizer=adamw_unfused"],
    ["micro_batch=auto"],
]


@pytest.mark.parametrize("switches", rest_is_long(SWITCHES), ids="-".join)
def test_switches(switches: list[str], tmp_path: Path, watch: Watch) -> None:
    words = [f"training.{switch}" for switch in switches]
    both(recipe_of("sora", tmp_path), *words, "method.threshold=0.3")
    assert watch.steps == 4


def test_offloaded_activations(
    tmp_path: Path, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[bool] = []
    monkeypatch.setattr(activation_offload, "SMALLEST", 64)
    inner = activation_offload.to_host

    def to_host(tensor: Tensor) -> Tensor:
        copy = inner(tensor)
        moved.append(tensor.device.type == device_type() and copy.device.type == "cpu")
        return copy

    monkeypatch.setattr(activation_offload.offloaded.__wrapped__, "__kwdefaults__",
                        {"on": True, "move": to_host})  # fmt: skip
    both(recipe_of("sora", tmp_path), there_only="training.activation_offload=true")
    assert len(moved) > 4
    assert all(moved)
    assert watch.steps == 4


def test_bf16(tmp_path: Path, watch: Watch) -> None:
    """Autocast's lists differ between a CPU and an accelerator, so the losses are near at most."""
    recipe = recipe_of("sora", tmp_path)
    plain, low = (
        train(recipe, f"output.dir={tmp_path}/{name}", f"training.precision={name}")
        for name in ("fp32", "bf16")
    )
    for mine, exact in zip(low.history, plain.history, strict=True):
        if "loss" in mine:
            assert mine["loss"] != exact["loss"]
            assert mine["loss"] == pytest.approx(exact["loss"], rel=0.02)
    assert watch.steps == 8
