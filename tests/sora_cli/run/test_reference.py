"""The reference model of preferences: what the run starts from, computed once and kept."""

from __future__ import annotations

import gc
import math
import shutil
import signal
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from methods.inject import adapted_layers
from sora_cli.app import run
from sora_cli.recipe.load import load_recipe
from sora_cli.run.output import REFERENCE
from sora_cli.run.prepare import Prepared, prepare
from sora_cli.run.reference import Reference, hold_reference
from sora_cli.tasks.encoded import Encoded
from sora_cli.train.trainer import AdapterTrainer, build_trainer
from tests.helpers_adapters import forget_base_weights
from tests.helpers_chat import chat_tokenizer, write_chat_recipe
from tests.helpers_errors import refused
from tests.helpers_families import (
    check_accumulation,
    preference_rows,
    write_preference_recipe,
)
from tests.helpers_models import tiny_llama
from tests.helpers_runs import resumes_as_if_whole, signal_at, timeless, train, write_rows

LORA = "method={name: lora, r: 2}"
SHORT = ["training.max_steps=3", "training.logging_steps=1", "training.evaluate=no"]


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe of preferences; beside it adapters of its base: sft (rank 4), other, and sora."""
    folder = tmp_path_factory.mktemp("origin")
    chats = write_chat_recipe(folder, training={"evaluate": "no", "checkpoint": "no"})
    for name, *words in (
        ("sft", "method={name: lora, r: 4}"),
        ("other", "method={name: lora, r: 4}", "training.seed=1"),
        ("sora",),
    ):
        train(chats, f"output.dir={folder}/{name}", *words)
    return write_preference_recipe(folder)


def _from(recipe: Path, name: str) -> str:
    return f"start.adapter={recipe.parent}/{name}"


def _first_loss(recipe: Path, folder: Path, *words: str) -> float:
    report = train(recipe, f"output.dir={folder}/out", LORA, *SHORT, *words)
    losses = [entry["loss"] for entry in report.history if "loss" in entry]
    assert losses[2] != losses[0]
    return float(losses[0])


@pytest.mark.parametrize("start", [None, "sft", "sora"])
def test_the_first_loss_is_log_2(start: str | None, origin: Path, tmp_path: Path) -> None:
    words = [] if start is None else [_from(origin, start)]
    assert _first_loss(origin, tmp_path, *words) == pytest.approx(math.log(2), rel=1e-5)


@pytest.mark.parametrize("word", ["start.rank=1", "task.reference=base"])
def test_it_is_not_if_the_start_is_no_longer_the_reference(
    word: str, origin: Path, tmp_path: Path
) -> None:
    loss = _first_loss(origin, tmp_path, _from(origin, "sft"), word)
    assert abs(loss - math.log(2)) > 1e-3


def _log_probabilities(model: Path) -> Tensor:
    """Of the validation rows' answers (rows, 2), by transformers alone."""
    loaded = AutoModelForCausalLM.from_pretrained(model).eval()
    tokenizer = AutoTokenizer.from_pretrained(model)
    sums = []
    for row in preference_rows(16, seed=1):
        asked = {"role": "user", "content": row["prompt"]}
        prompt = tokenizer.apply_chat_template([asked], tokenize=False, add_generation_prompt=True)
        for side in ("chosen", "rejected"):
            text = f"{prompt}{row[side]} <|im_end|>"
            start = len(tokenizer(prompt)["input_ids"])
            ids = torch.tensor([tokenizer(text)["input_ids"]])
            with torch.no_grad():
                logps = loaded(ids).logits[0, start - 1 : -1].log_softmax(-1)
            sums.append(logps.gather(1, ids[0, start:, None]).sum())
    return torch.stack(sums).view(-1, 2)


@pytest.mark.parametrize("start", ["sft", "sora"])
def test_after_instructions_it_is_base_and_adapter(
    start: str, origin: Path, tmp_path: Path
) -> None:
    """https://github.com/hiyouga/LLaMA-Factory/issues/8974: there it is the bare base model."""
    train(origin, f"output.dir={tmp_path}/out", LORA, *SHORT, _from(origin, start))
    stored = load_file(tmp_path / "out" / REFERENCE)["validation"].float()
    assert run(["merge", f"{origin.parent}/{start}", "-o", str(tmp_path / "merged")]) == 0
    torch.testing.assert_close(
        stored, _log_probabilities(tmp_path / "merged"), rtol=1e-5, atol=1e-5
    )
    assert (stored - _log_probabilities(origin.parent / "base")).abs().min() > 0.01


def _ready(recipe: Path, *words: str) -> tuple[Prepared, AdapterTrainer]:
    loaded = load_recipe(recipe, [LORA, *words])
    ready = prepare(loaded.recipe, lambda _: nullcontext())
    trainer = build_trainer(loaded.recipe, ready.task, ready.base, recipe.parent, train=ready.train)
    return ready, trainer


def _facts(model: Any) -> dict[str, Any]:
    """All that a pass could change in a model, but for its tensors' numbers."""
    hooks = {name: (len(m._forward_hooks), len(m._forward_pre_hooks), "forward" in vars(m))
             for name, m in model.named_modules()}  # fmt: skip
    return {"hooks": hooks} | {
        name: (p.data_ptr(), p.requires_grad, p.grad) for name, p in model.named_parameters()
    }


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_computing_it_leaves_the_model_as_it_was(
    precision: str, origin: Path, tmp_path: Path
) -> None:
    words = [_from(origin, "sft"), "start.rank=1", f"training.precision={precision}"]
    ready, trainer = _ready(origin, *words)
    model = ready.base.model
    numbers = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert any(layer.B.any() for layer in adapted_layers(model).values())
    facts, prepared = _facts(model), "_is_accelerate_prepared" in vars(model)
    hold_reference(trainer, {"train": ready.train}, tmp_path, resumed=False)
    after = model.state_dict()
    assert after.keys() == numbers.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in numbers.items())
    now = _facts(model)
    now["hooks"][""] = (*now["hooks"][""][:2], facts["hooks"][""][2])  # the same forward, set again
    assert now == facts
    assert model.forward.__func__ is type(model).forward
    assert ("_is_accelerate_prepared" in vars(model)) is prepared is False
    assert ready.train.dataset[0]["reference"] != trainer.train_dataset[0]["reference"]


def test_a_reference_of_an_unknown_base_model_is_told_once(
    origin: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unknown = shutil.copytree(origin.parent / "sft" / "adapter", tmp_path / "unknown")
    forget_base_weights(unknown)
    train(origin, f"task.reference={unknown}", LORA, f"output.dir={tmp_path}/out", *SHORT)
    said = f"may not be the base model of {unknown}: its fingerprint is not recorded"
    assert capsys.readouterr().err.count(said) == 1


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of rows at every time that a reference's outputs are computed."""
    seen: list[int] = []
    inner = Reference._compute

    def compute(self: Any, rows: Any, trainer: Any) -> Any:
        seen.append(len(rows.dataset))
        return inner(self, rows, trainer)

    monkeypatch.setattr(Reference, "_compute", compute)
    return seen


def test_a_resumed_run_reads_it(
    origin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, computed: list[int]
) -> None:
    recipe = tmp_path / "resumed.yaml"
    recipe.write_text(f"extends: {origin}\n{LORA.replace('=', ': ')}\n"
                      f"start: {{adapter: {origin.parent}/sft}}\n"
                      "training: {max_steps: 4, checkpoint: 1, model_dropout: 0.1}\n")  # fmt: skip
    resumes_as_if_whole(recipe, tmp_path, monkeypatch)
    assert computed == [48, 16] * 2  # the whole run, and the one that is stopped


class _Stopped:
    """A run that was stopped in its second step, with rows and a reference of its own."""

    def __init__(self, origin: Path, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.reference, self.file = folder, folder / "sft", folder / "out" / REFERENCE
        shutil.copytree(origin.parent / "sft", self.reference)
        self.rows = folder / "own.jsonl"
        write_rows(self.rows, preference_rows(24))
        self.words = [
            "train", str(origin), "--no-verify", LORA, "training.max_steps=4",
            f"task.reference={self.reference}", f"data.files.train={self.rows}",
            f"output.dir={folder}/out",
        ]  # fmt: skip
        with patch.context() as patched:
            signal_at(patched, 2)
            assert run(self.words) == 128 + signal.SIGTERM


@pytest.fixture
def stopped(origin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> _Stopped:
    return _Stopped(origin, tmp_path, monkeypatch)


def test_changed_rows_are_refused(stopped: _Stopped, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(stopped.rows, preference_rows(24, seed=5))
    refused(capsys, *stopped.words, "--resume")


def test_a_changed_reference_is_refused(
    stopped: _Stopped, origin: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(stopped.reference)
    shutil.copytree(origin.parent / "other", stopped.reference)
    refused(capsys, *stopped.words, "--resume")
    shutil.rmtree(stopped.reference)
    refused(capsys, *stopped.words, "--resume")


def test_a_damaged_file_is_refused(
    stopped: _Stopped, computed: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    whole = stopped.file.read_bytes()
    for damaged in (whole[:-8], whole[:-1] + bytes([whole[-1] ^ 1]), b""):
        stopped.file.write_bytes(damaged)
        refused(capsys, *stopped.words, "--resume")
    save_file({"train": torch.zeros(24, 2), "select": torch.zeros(16, 2)}, stopped.file)
    refused(capsys, *stopped.words, "--resume")
    assert not computed
    stopped.file.unlink()  # then it is computed again
    assert run([*stopped.words, "--resume"]) == 0
    assert computed == [24, 16]
    assert stopped.file.read_bytes() == whole


def test_a_fork_names_its_reference(
    origin: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = f"task.reference={origin.parent}/sft"
    first = [str(origin), f"output.dir={tmp_path}/first", LORA, *SHORT, named,
             "training.checkpoint=1", "training.keep_checkpoints=[2]"]  # fmt: skip
    whole = train(*first)
    fork = [str(origin), f"output.dir={tmp_path}/fork", LORA, *SHORT,
            f"start={{checkpoint: {tmp_path}/first, step: 2}}"]  # fmt: skip
    refused(capsys, "train", *fork)
    assert timeless(train(*fork, named))["history"][-1] == timeless(whole)["history"][-1]


def test_an_adapter_with_parts_in_full_is_refused(
    origin: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = AutoModelForCausalLM.from_pretrained(origin.parent / "base")
    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["norm"])
    get_peft_model(base, config).save_pretrained(tmp_path / "full")
    for key in ("task.reference", "start.adapter"):
        words = [str(origin), f"output.dir={tmp_path}/out", LORA, f"{key}={tmp_path}/full"]
        refused(capsys, "train", *words)


def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path: Path) -> None:
    """A micro-batch weighs by its pairs, whatever the lengths of their answers."""
    model, task = tiny_llama(eos_token_id=3, bos_token_id=2), {"name": "preference", "loss": "orpo"}
    rows = preference_rows(22)
    check_accumulation(tmp_path, model, chat_tokenizer(), rows, steps=3, near=1e-5, task=task)


def test_accumulated_steps_are_those_of_the_whole_batch(origin: Path, tmp_path: Path) -> None:
    words = [LORA, *SHORT, _from(origin, "sft"), "start.rank=1", "training.max_steps=6"]
    one, four = (
        train(origin, f"output.dir={tmp_path}/{n}", *words, f"training.gradient_accumulation={n}")
        for n in (1, 4)
    )
    for key in ("loss", "grad_norm"):
        losses = [[e[key] for e in report.history if key in e] for report in (one, four)]
        assert len(losses[0]) == 6
        assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_outputs_live_as_long_as_their_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of a long file come one after another: their outputs must not stay in memory."""
    recipe: Any = SimpleNamespace(task=SimpleNamespace(options=SimpleNamespace(reference="base")))
    trainer: Any = None
    reference = Reference(recipe)
    monkeypatch.setattr(reference, "_compute", lambda rows, _: rows.lengths.astype(float))
    rows = Encoded(Dataset.from_dict({}), np.array([3]), truncated=0)
    assert reference.outputs(rows, trainer) is reference.outputs(rows, trainer)
    del rows
    gc.collect()
    assert not reference._known
