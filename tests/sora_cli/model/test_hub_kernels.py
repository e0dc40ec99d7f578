"""Attention by a kernel of the Hub: who may run it, at which commit, and whether it is right.

No hub is reached: `tests.attention_kernel` stands in for what the package kernels would fetch, at
the one function of transformers that asks for it. All else is transformers' own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import nn

from sora_cli.app import run
from sora_cli.core.errors import SoraError
from sora_cli.model import hub_kernels
from sora_cli.model.attention import check_attention, check_config, check_device, usual_attention
from sora_cli.model.hub_kernels import KEY, TRUST
from sora_cli.model.transformers_internals import attention_of, kernel_versions
from sora_cli.recipe.recipe import ModelBlock
from sora_cli.tasks import decoders
from tests import attention_kernel
from tests.attention_kernel import COMMIT, NAME
from tests.helpers_chat import write_chat_recipe
from tests.helpers_errors import error_of, error_text
from tests.helpers_models import tiny_bert, tiny_llama
from tests.helpers_runs import train, write_recipe

ASKED = (f"{KEY}={NAME}", f"{TRUST}=true")
OPEN: dict[str, Any] = {
    "method": {"threshold": 0.0},  # so that no gate hangs on a rounding
    "training": {"epochs": 2, "batch_size": 4, "model_dropout": 0.0},
}
PACKED = {"task": {"packing": True}, **OPEN}


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What was asked of the Hub."""
    return attention_kernel.stand_in(monkeypatch)


def _block(name: str, **options: Any) -> ModelBlock:
    return ModelBlock.model_validate({"path": "unused", "attention": name, **options})


@pytest.mark.parametrize(
    "name", ["kernels-community/flash-attn2", "me/mine@v1", f"me/mine@{COMMIT[:12]}", "../x@main"]
)
def test_a_kernel_that_could_be_put_in_its_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    recipe = write_recipe(tmp_path, tiny_bert(num_labels=2))
    said = error_text(capsys, "train", recipe, f"{KEY}={name}", f"{TRUST}=true")
    assert f"'{name}' is compiled code from the Hub and must name its commit" in said
    assert len(said.splitlines()) <= 3
    assert not (tmp_path / "out").exists()


def test_a_kernel_that_is_not_trusted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fetched: list[Any]
) -> None:
    recipe = write_recipe(tmp_path, tiny_bert(num_labels=2))
    said = error_of(capsys, "train", recipe, ASKED[0])
    assert f"{NAME} is compiled code from the Hub, which is not run" in said[0]
    assert said[-1].endswith(f"if you trust its authors: {TRUST}=true; else {KEY}=sdpa")
    assert len(said) <= 3
    assert not fetched


def test_the_package_that_fetches_it(monkeypatch: pytest.MonkeyPatch) -> None:
    block = _block(NAME, trust_kernel=True)
    monkeypatch.setattr(hub_kernels, "find_spec", lambda _: None)
    with pytest.raises(SoraError, match="needs the package kernels, which is not installed"):
        check_attention(block)
    monkeypatch.setattr(hub_kernels, "find_spec", lambda name: name)
    check_attention(block)
    monkeypatch.setattr(hub_kernels, "version", lambda _: "0.1")
    monkeypatch.setattr("transformers.utils.is_kernels_available", lambda: False)
    with pytest.raises(SoraError, match=r"does not work with kernels 0\.1") as caught:
        check_device(block, "fp32")
    assert f"pip install 'kernels{kernel_versions()}'" in caught.value.hint
    assert kernel_versions().startswith(">=0.")


def test_a_class_with_kernels_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Transformers would take the first of those, at no commit."""
    own = ["kernels-community/vllm-flash-attn3"]
    kind = transformers.BertForSequenceClassification
    monkeypatch.setattr(kind, "_compatible_flash_implementations", own)
    auto, config = transformers.AutoModelForSequenceClassification, transformers.BertConfig()
    with pytest.raises(SoraError, match=f"runs with {own[0]} instead of me/flash"):
        check_config(_block(NAME, trust_kernel=True), config, auto)
    check_config(_block(f"me/other@{COMMIT}", trust_kernel=True), config, auto)


def _adapter(folder: Path) -> torch.Tensor:
    """All numbers of an adapter's file."""
    stored = load_file(folder / "adapter" / "adapter_model.safetensors")
    return torch.cat([stored[name].flatten() for name in sorted(stored)])


@pytest.mark.parametrize(
    "write",
    [
        lambda folder: write_recipe(folder, tiny_bert(num_labels=2), **OPEN),
        lambda folder: write_recipe(folder, tiny_llama(num_labels=2), **OPEN),
        lambda folder: write_chat_recipe(folder, **PACKED),
    ],
    ids=["encoder", "decoder", "packed"],
)
def test_a_run_is_as_by_the_usual_attention(
    write: Any, tmp_path: Path, fetched: list[dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    recipe = write(tmp_path)
    usual = train(recipe)
    before = _adapter(tmp_path / "out")
    assert not attention_kernel.calls
    assert run(["train", str(recipe), "--force", *ASKED]) == 0
    said = capsys.readouterr().err
    assert f"{TRUST} is on (command line: {TRUST}=true): compiled code from the Hub, {NAME}" in said
    assert "verified: " in said
    assert {(one["name"], one["revision"]) for one in fetched} == {("me/flash", COMMIT)}
    assert attention_kernel.calls["lengths"] > 0
    after = _adapter(tmp_path / "out")
    assert float(nn.functional.cosine_similarity(after, before, dim=0)) > 0.9999
    assert usual.base.attention == "sdpa"


@pytest.mark.usefixtures("fetched")
def test_packed_rows_are_not_mixed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """transformers finds them in a batch of one row only; were they mixed, it would be noticed."""
    recipe = write_chat_recipe(tmp_path, **PACKED)
    monkeypatch.setattr("sora_cli.tasks.causal_lm.keep_packed_apart", lambda _: None)
    said = error_text(capsys, "train", recipe, *ASKED)
    assert f"{KEY}={NAME} changes the loss or gradient of LlamaForCausalLM" in said
    monkeypatch.setattr("sora_cli.tasks.causal_lm.keep_packed_apart", decoders.keep_packed_apart)
    monkeypatch.setattr(decoders, "_takes_lengths", lambda _: False)  # found by each layer
    train(recipe, "--force", *ASKED)


@pytest.mark.usefixtures("fetched")
def test_a_kernel_that_is_wrong_or_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path, tiny_bert(num_labels=2))
    monkeypatch.setattr(attention_kernel, "factor", 1.5)
    said = error_text(capsys, "train", recipe, *ASKED)
    assert "changes the loss or gradient of BertForSequenceClassification" in said
    assert said.splitlines()[-1].endswith(f"{KEY}=sdpa")

    def fails(*_: Any, **__: Any) -> Any:
        raise RuntimeError("only for CUDA\nand more")

    monkeypatch.setattr(attention_kernel, "_attend", fails)
    said = error_text(capsys, "train", recipe, "--force", *ASKED)
    assert f"{KEY}={NAME} fails in BertForSequenceClassification: only for CUDA" in said


@pytest.mark.usefixtures("fetched")
def test_a_kernel_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def get_kernel(name: str, **_: Any) -> Any:
        raise FileNotFoundError(f"no build of {name} for this machine")

    monkeypatch.setattr("transformers.integrations.hub_kernels.get_kernel", get_kernel)
    recipe = write_recipe(tmp_path, tiny_bert(num_labels=2))
    said = error_text(capsys, "train", recipe, *ASKED)
    assert f"the kernel {NAME} cannot be used" in said
    assert "no build of me/flash" in said
    assert not (tmp_path / "out").exists()


def test_it_does_not_run_before_training(
    tmp_path: Path, fetched: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """A dry run's memory and its trials of the model are of transformers' own choice."""
    recipe = write_chat_recipe(tmp_path, **PACKED)
    assert run(["train", str(recipe), "--dry-run", *ASKED]) == 0
    assert "memory" in capsys.readouterr().out
    assert len(fetched) == 1


def test_a_result_is_used_with_it_only_if_that_is_said_again(
    tmp_path: Path, fetched: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path, tiny_bert(num_labels=2), training={"epochs": 1})
    train(recipe, *ASKED)
    rows, out = str(tmp_path / "validation.jsonl"), str(tmp_path / "out")
    words = ["predict", out, rows, "-o", str(tmp_path / "p.jsonl")]
    fetched.clear()
    attention_kernel.calls.clear()
    assert f"{TRUST}=true" in error_text(capsys, *words)
    assert not fetched
    assert not attention_kernel.calls
    assert run([*words, f"{TRUST}=true"]) == 0
    assert attention_kernel.calls
    assert run([*words, "--force", f"{KEY}=null"]) == 0


def test_the_usual_attention_for_a_while(fetched: list[Any]) -> None:
    model = tiny_bert()
    model.set_attn_implementation(NAME)
    with usual_attention(model, of_kernels=True):
        assert attention_of(model.config) == "sdpa"
    assert attention_of(model.config) == NAME
    assert len(fetched) == 1
