"""The device's memory: forecasts against the sums of live tensors, and the end of it."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from sora_cli.app import run
from sora_cli.core.device import device_module
from sora_cli.recipe.load import load_recipe
from sora_cli.report import read_report
from sora_cli.run import memory, micro_batch
from sora_cli.run.memory import predict_memory
from sora_cli.run.prepare import prepare
from sora_cli.train.trainer import AdapterTrainer
from tests.helpers_families import FAMILIES
from tests.helpers_runs import train
from tests.present import present
from tests.rehearsal import fake
from tests.rehearsal.test_commands import METHODS, recipe_of

pytestmark = [
    pytest.mark.usefixtures("watch", "_memory"),
    pytest.mark.skipif(fake.REAL, reason="a real accelerator's allocator counts more than tensors"),
]
RECIPES = [("lora", "sequence-classification"), ("cut", "multiple-choice")]
QUIET = ["training.evaluate=no", "training.checkpoint=no"]


@pytest.fixture
def _memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No library takes memory of its own on this device; it gets its room back."""
    monkeypatch.setattr(memory, "CUDA_RUNTIME", 0)
    yield
    fake.STATE.room, fake.STATE.late = fake.ROOM, None


def forecast(recipe: Path, *words: str) -> float:
    loaded = load_recipe(recipe, list(words)).recipe
    block, ready = loaded.training, prepare(loaded, lambda _: nullcontext())
    rows = block.batch_size // block.gradient_accumulation
    return predict_memory(ready, loaded, rows_per_pass=rows).peak


def errors(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The message of a command's end: its first line begins with "error: "."""
    lines = capsys.readouterr().err.splitlines()
    begin = next(i for i, line in enumerate(lines) if line.startswith("error: "))
    return lines[begin:]


@pytest.mark.parametrize(("method", "family"), RECIPES)
def test_forecast(method: str, family: str, tmp_path: Path) -> None:
    plain = family == "sequence-classification"
    recipe = recipe_of(method, tmp_path) if plain else FAMILIES[family](tmp_path)
    block = yaml.safe_load(recipe.read_text())
    block["method"] = {"name": method.partition(",")[0], **METHODS[method]}
    recipe.write_text(yaml.safe_dump(block))
    words = ["training.max_steps=2", *QUIET]
    predicted = forecast(recipe, *words)
    gc.collect()
    device_module().reset_peak_memory_stats()
    before = fake.STATE.live
    train(recipe, *words)
    counted = fake.STATE.peak - before
    assert predicted == pytest.approx(counted, rel=0.1)


def test_checkpoints_of_activations_are_forecast(tmp_path: Path) -> None:
    """They run the model again in the backward pass, on the tensors of the forecast."""
    recipe, word = recipe_of("lora", tmp_path), "training.gradient_checkpointing=true"
    loaded = load_recipe(recipe, [word]).recipe
    ready = prepare(loaded, lambda _: nullcontext())
    assert predict_memory(ready, loaded, rows_per_pass=8).exact


def no_room_from(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave hardly any room from this step on, counted from 1."""
    inner = AdapterTrainer.get_batch_samples

    def get_batch_samples(self: Any, *args: Any, **kwargs: Any) -> Any:
        samples = inner(self, *args, **kwargs)
        if self.state.global_step + 1 == step:
            fake.STATE.room = fake.STATE.live + 1000
        return samples

    monkeypatch.setattr(AdapterTrainer, "get_batch_samples", get_batch_samples)


def test_a_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = recipe_of("lora", tmp_path)
    words = ["train", str(recipe), "--no-verify", "training.checkpoint=1"]
    with monkeypatch.context() as patched:
        no_room_from(3, patched)
        assert run(words) == 2
    what, where, hint = errors(capsys)
    assert what.startswith("error: step 3: out of memory (for a tensor of 0.0")
    assert where.startswith("  micro-batches of 8 rows of up to ")
    assert where.endswith(" tokens; sora train RECIPE --dry-run forecasts their memory")
    assert hint == (
        "  training.micro_batch=auto, or training.gradient_checkpointing=true, or "
        "a data.max_length below 128, or a smaller training.batch_size"
    )
    report = present(read_report(tmp_path / "out"))
    assert (report.status, report.steps) == ("failed", 2)
    assert {file.name for file in (tmp_path / "out").iterdir()} <= {
        "report.json", "history.json", "checkpoints", ".lock",
    }  # fmt: skip
    fake.STATE.room = fake.ROOM
    assert run([*words, "--resume"]) == 0


def test_a_step_whose_memory_was_forecast(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = recipe_of("lora", tmp_path)
    no_room_from(2, monkeypatch)
    words = ["training.micro_batch=auto", "training.gradient_checkpointing=true"]
    assert run(["train", str(recipe), "--no-verify", *words]) == 2
    _, where, hint = errors(capsys)
    assert "tokens; the forecast was " in where
    assert where.endswith(" kB of 17.2 GB")
    assert hint == (
        "  training.micro_batch=null training.gradient_accumulation=2, or "
        "a data.max_length below 128, or a smaller training.batch_size"
    )


def test_loading(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = recipe_of("lora", tmp_path)
    fake.STATE.room = 50_000
    assert run(["train", str(recipe)]) == 2
    what, hint = errors(capsys)
    assert what.startswith("error: moving the model to the device: out of memory (for a tensor of ")
    assert hint.startswith("  a smaller base model (model.path)")
    assert read_report(tmp_path / "out") is None
    fake.STATE.room = fake.ROOM
    train(recipe, "training.max_steps=1")
    gc.collect()
    fake.STATE.room = 50_000
    assert run(["eval", str(tmp_path / "out"), "-r", str(recipe)]) == 2
    what, hint = errors(capsys)  # a finished adapter keeps its base model
    assert what.startswith("error: moving the model to the device: out of memory (for a tensor of ")
    assert hint == "  fewer bits: model.dtype=bfloat16, or model.quantise=4bit"


def test_an_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = recipe_of("lora", tmp_path)
    fake.STATE.room = 600_000
    words = ["train", str(recipe), "--no-verify", "training.batch_size=2", "training.epochs=1"]
    assert run([*words, "training.evaluate=4", "training.eval_batch_size=64"]) == 2
    what, where, hint = errors(capsys)
    assert what.startswith("error: evaluation after step 4: out of memory (for a tensor of ")
    assert where == "  batches of 64 rows"
    assert hint == "  training.eval_batch_size=32, or a data.max_length below 128"
    assert not (tmp_path / "out" / "adapter").exists()


def test_the_largest_micro_batch_that_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is foreseen; and it is found where the forecast is too low."""
    recipe = recipe_of("lora", tmp_path)
    words = [*QUIET, "training.eval_batch_size=1", "training.max_steps=1"]
    four = forecast(recipe, *words, "training.gradient_accumulation=2")
    command = ["train", str(recipe), "--no-verify", "--force", *words]
    gc.collect()
    fake.STATE.room = fake.STATE.live + int(1.2 * four)
    fits = [run([*command, f"training.gradient_accumulation={n}"]) for n in (1, 2)]
    assert fits == [2, 0]  # micro-batches of eight rows, and of four
    for failed in ([], [8]):
        gc.collect()  # what is left of the runs above
        report = train(recipe, "--force", *words, "training.micro_batch=auto")
        assert report.micro_batch is not None
        assert report.micro_batch.rows == 4
        assert report.micro_batch.failed == failed
        monkeypatch.setattr(
            micro_batch, "predict_memory", lambda *_, **__: SimpleNamespace(training_peak=0.0)
        )


def test_not_even_a_row_fits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = recipe_of("lora", tmp_path)
    fake.STATE.room = 180_000
    assert run(["train", str(recipe), "training.micro_batch=auto"]) == 2
    assert errors(capsys)[0] == "error: not even one row fits into memory"
    assert read_report(tmp_path / "out") is None
