"""`model.attention: flash_attention_2` in whole runs, by its functions in plain torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from sora_cli.app import run
from sora_cli.model.attention import KEY, usual_attention
from sora_cli.model.transformers_internals import attention_of
from sora_cli.tasks import decoders
from tests import flash_attention
from tests.flash_attention import NAME
from tests.helpers_chat import write_chat_recipe
from tests.helpers_errors import refused
from tests.helpers_models import tiny_bert, tiny_llama
from tests.helpers_runs import train, write_recipe

ASKED = f"{KEY}={NAME}"
OPEN: dict[str, Any] = {
    "method": {"threshold": 0.0},  # so that no gate hangs on a rounding
    "training": {"epochs": 2, "batch_size": 4, "model_dropout": 0.0},
}
PACKED = {"task": {"packing": True}, **OPEN}


@pytest.fixture(autouse=True)
def package(monkeypatch: pytest.MonkeyPatch) -> None:
    flash_attention.stand_in(monkeypatch)


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
    write: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write(tmp_path)
    assert train(recipe).base.attention == "sdpa"
    before = _adapter(tmp_path / "out")
    assert not flash_attention.calls
    assert run(["train", str(recipe), "--force", ASKED]) == 0
    assert "verified: " in capsys.readouterr().err
    assert flash_attention.calls["lengths"] > 0
    after = _adapter(tmp_path / "out")
    assert float(nn.functional.cosine_similarity(after, before, dim=0)) > 0.9999


def test_packed_rows_are_not_mixed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """transformers finds them in a batch of one row only; were they mixed, it would be noticed."""
    recipe = write_chat_recipe(tmp_path, **PACKED)
    monkeypatch.setattr("sora_cli.tasks.causal_lm.keep_packed_apart", lambda _: None)
    refused(capsys, "train", recipe, ASKED, hide="loss [0-9].*")
    monkeypatch.setattr("sora_cli.tasks.causal_lm.keep_packed_apart", decoders.keep_packed_apart)
    monkeypatch.setattr(decoders, "_takes_lengths", lambda _: False)  # found by each layer
    train(recipe, "--force", ASKED)


def test_attention_that_is_wrong_or_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path, tiny_bert(num_labels=2))
    monkeypatch.setattr(flash_attention, "factor", 1.5)
    refused(capsys, "train", recipe, ASKED, hide="loss [0-9].*")

    def fails(*_: Any, **__: Any) -> Any:
        raise RuntimeError("only for CUDA\nand more")

    monkeypatch.setattr(flash_attention, "_attend", fails)
    refused(capsys, "train", recipe, "--force", ASKED)


def test_the_usual_attention_for_a_while() -> None:
    model = tiny_bert()
    model.set_attn_implementation(NAME)
    with usual_attention(model, on_gpus=True):
        assert attention_of(model.config) == "sdpa"
    assert attention_of(model.config) == NAME
