"""`model.attention`: the same numbers by each implementation, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from methods.inject import inject
from methods.registry import create
from sora_cli.app import run
from sora_cli.core.errors import SoraError
from sora_cli.model import attention
from sora_cli.model.attention import (
    ON_GPUS,
    check_attention,
    check_config,
    check_device,
    check_dropout,
    usual_attention,
)
from sora_cli.model.base import Base, load_base
from sora_cli.model.transformers_internals import attention_of
from sora_cli.recipe.recipe import DataBlock, ModelBlock, TaskBlock
from sora_cli.run.trial import try_base
from sora_cli.tasks import create_task
from sora_cli.tasks.encoded import Encoded
from tests.helpers_device import computing_on
from tests.helpers_errors import refusal, refused
from tests.helpers_models import tiny_bert, tiny_deberta, tiny_llama
from tests.helpers_runs import pair_rows, save_base, tiny_tokenizer, train, write_recipe

KEY = "model.attention"
EAGER = f"{KEY}=eager"


def _block(name: str | None, **options: Any) -> ModelBlock:
    return ModelBlock.model_validate({"path": "unused", "attention": name, **options})


def _load(folder: Path, name: str | None) -> Base:
    task = create_task(TaskBlock(name="sequence-classification"), DataBlock(path="unused"))
    from datasets import Dataset

    task.bind(Dataset.from_list(pair_rows(8)))
    torch.manual_seed(0)  # a new head is drawn
    return load_base(_block(name, path=str(folder)), task, dropout=0.0)


def _gradient(model: Any) -> tuple[float, torch.Tensor]:
    """The loss of a padded batch, and the gradient of all adapters."""
    made = create("lora", r=4)
    generator = torch.Generator().manual_seed(0)
    layers = inject(model, made, exclude=["classifier", "score"], generator=generator)
    for layer in layers.values():
        layer.B.data.normal_(std=0.02, generator=generator)
    rows = [f"{row['sentence1']} {row['sentence2']}" for row in pair_rows(8)]
    batch = tiny_tokenizer()(rows, padding=True, return_tensors="pt")
    assert not bool(batch["attention_mask"].all())
    model.eval()
    loss = model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        labels=torch.arange(8) % 2,
    ).loss
    loss.backward()
    parts = [p.grad.flatten() for layer in layers.values() for p in (layer.A, layer.B)]
    return float(loss.detach()), torch.cat(parts).double()


@pytest.mark.parametrize("build", [tiny_bert, tiny_llama])
def test_eager_and_sdpa_give_one_loss_and_gradient(build: Any, tmp_path: Path) -> None:
    folder = save_base(build(num_labels=2), tmp_path / "base")
    bases = [_load(folder, name) for name in ("eager", "sdpa", None)]
    names = [attention_of(base.model.config) for base in bases]
    assert names == ["eager", "sdpa", "sdpa"]
    (loss, eager), (other, sdpa), _ = (_gradient(base.model) for base in bases)
    assert loss == pytest.approx(other, rel=1e-5)
    assert float(nn.functional.cosine_similarity(eager, sdpa, dim=0)) > 0.9999
    assert float(eager.norm()) == pytest.approx(float(sdpa.norm()), rel=1e-4)
    assert not torch.equal(eager, sdpa)  # they are two ways


def test_a_run_keeps_its_implementation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_recipe(tmp_path, tiny_bert(num_labels=2), training={"epochs": 1})
    assert run(["train", str(recipe), EAGER]) == 0
    assert "verified: " in capsys.readouterr().err
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert report["recipe"]["model"]["attention"] == "eager"
    assert report["base"]["attention"] == "eager"
    refused(capsys, "train", recipe, "--resume", "--force", f"{KEY}=null")
    assert train(recipe, "--force", f"{KEY}=null").base.attention == "sdpa"


def test_a_result_is_used_as_it_was_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write_recipe(tmp_path, tiny_bert(num_labels=2), training={"epochs": 1})
    train(recipe, EAGER)
    used: list[Any] = []
    monkeypatch.setattr(
        attention, "attention_options", lambda block: used.append(block.attention) or {}
    )
    monkeypatch.setattr("sora_cli.model.base.attention_options", attention.attention_options)
    rows = str(tmp_path / "validation.jsonl")
    assert run(["predict", str(tmp_path / "out"), rows, "-o", str(tmp_path / "p.jsonl")]) == 0
    assert run(["eval", str(tmp_path / "out"), "--recipe", str(recipe), EAGER]) == 0
    assert used == ["eager", "eager"]


def test_code_that_a_models_files_ask_for_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path, tiny_bert(num_labels=2))
    file = tmp_path / "base" / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config["attn_implementation"] = "kernels-community/flash-attn2"
    file.write_text(json.dumps(config), encoding="utf-8")
    refused(capsys, "train", recipe)
    assert run(["train", str(recipe), "--no-verify", f"{KEY}=sdpa", "training.epochs=1"]) == 0


def test_a_class_with_kernels_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = transformers.AutoModelForSequenceClassification
    monkeypatch.setattr(
        transformers.BertForSequenceClassification,
        "_compatible_flash_implementations",
        ["kernels-community/vllm-flash-attn3"],
    )
    config = transformers.BertConfig()
    check_config(_block("sdpa"), config, kind)
    with pytest.raises(SoraError, match="runs with kernels-community/vllm-flash-attn3 instead"):
        check_config(_block("flash_attention_2"), config, kind)


def test_a_model_without_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_recipe(tmp_path, tiny_deberta(num_labels=2))
    assert run(["train", str(recipe), f"{KEY}=sdpa"]) == 2
    said = capsys.readouterr().err.splitlines()[-3:]
    assert "has no sdpa: DebertaV2" in said[0]
    assert said[-1].endswith(f"{KEY}=null lets transformers choose")
    assert not (tmp_path / "out").exists()


def _refusal(check: Any, *args: Any) -> None:
    with refusal() as error:
        check(*args)
    assert error.value.key == KEY


def test_a_machine_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "find_spec", lambda _: None)
    flash = _block("flash_attention_2")
    for name in (None, "sdpa", "eager", "flex_attention"):
        check_attention(_block(name))
    _refusal(check_attention, flash)
    monkeypatch.setattr(attention, "find_spec", lambda name: name)
    computing_on("cpu", monkeypatch)
    for name in ON_GPUS:
        _refusal(check_device, _block(name), "bf16")
    computing_on("cuda", monkeypatch)
    check_device(_block("flex_attention"), "fp32")
    monkeypatch.setattr("transformers.utils.is_flash_attn_2_available", lambda: False)
    _refusal(check_device, flash, "bf16")
    monkeypatch.setattr("transformers.utils.is_flash_attn_2_available", lambda: True)
    _refusal(check_device, flash, "fp32")
    check_device(flash, "bf16")
    check_device(_block("flash_attention_2", dtype="bfloat16"), "fp32")


def test_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write_recipe(tmp_path, tiny_bert(num_labels=2))
    monkeypatch.setattr(attention, "find_spec", lambda _: None)
    computing_on("cpu", monkeypatch)
    for name in ("flash_attention_2", "flex_attention"):
        refused(capsys, "train", recipe, f"{KEY}={name}")
        assert not (tmp_path / "out").exists()


def test_flex_attention_drops_no_weights() -> None:
    config = transformers.BertConfig()
    check_dropout(_block("sdpa"), config)
    _refusal(check_dropout, _block("flex_attention"), config)
    config.attention_probs_dropout_prob = 0.0
    check_dropout(_block("flex_attention"), config)


def test_a_trial_needs_no_gpu() -> None:
    """On a CPU there is no backward pass of flex attention: the trial takes another."""
    from datasets import Dataset

    model = tiny_bert(num_labels=2)
    model.set_attn_implementation("flex_attention")
    row = {"input_ids": [3] * 6, "attention_mask": [1] * 6, "labels": 1}
    lengths = torch.full((2,), 6).numpy()
    rows = Encoded(Dataset.from_list([row, row]), lengths, 0)
    base = Base(model, None, "tiny", "tiny", None, (), ("classifier",))

    def collate(some: list[Any]) -> dict[str, torch.Tensor]:
        return {key: torch.tensor([one[key] for one in some]) for key in row}

    def _loss(model: Any, batch: Any) -> Any:
        outputs = model(**batch)
        return outputs["loss"], outputs

    trial = try_base(base, collate, rows, _loss)
    assert [len(group) for group in trial.siblings] == [3, 3]
    assert attention_of(model.config) == "flex_attention"


def test_the_usual_one_for_a_while() -> None:
    for model, usual in ((tiny_bert(), "sdpa"), (tiny_deberta(), "eager")):
        model.set_attn_implementation("eager")
        with usual_attention(model, on_gpus=True):
            assert attention_of(model.config) == "eager"
        with usual_attention(model):
            assert attention_of(model.config) == usual
        assert attention_of(model.config) == "eager"
