"""`model.attention: flash_attention_2`, by its functions in plain torch: what is noticed.

Whole runs with it are compared with those without in `tests/rehearsal/test_switches.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sora_cli.model.attention import KEY, usual_attention
from sora_cli.model.transformers_internals import attention_of
from sora_cli.tasks import decoders
from tests import flash_attention
from tests.flash_attention import NAME
from tests.helpers_chat import write_chat_recipe
from tests.helpers_errors import refused
from tests.helpers_models import tiny_bert
from tests.helpers_runs import train, write_recipe

ASKED = f"{KEY}={NAME}"


@pytest.fixture(autouse=True)
def package(monkeypatch: pytest.MonkeyPatch) -> None:
    flash_attention.stand_in(monkeypatch)


def test_packed_rows_are_not_mixed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """transformers finds them in a batch of one row only; were they mixed, it would be noticed."""
    training = {"epochs": 1, "batch_size": 4, "model_dropout": 0.0}
    recipe = write_chat_recipe(tmp_path, task={"packing": True}, training=training)
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
