"""Formats that are recognised and not read, files of none, and PEFT's own from other programs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.helpers_errors import error_text
from tests.helpers_foreign import assert_updates, exported, factors

LAYER = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("keys", "name", "then"),
    [
        (
            ("layers.0.attn.q_proj.lora_a.weight", "layers.0.attn.q_proj.lora_b.weight"),
            "torchtune",
            "FullModelHFCheckpointer",
        ),
        (("transformer.h.0.attn.qkv.lora_A", "transformer.h.0.attn.qkv.lora_B"), "litgpt", "merge"),
        ((f"base_model.model.{LAYER}.lora_A.weight",), "PEFT", "adapter_model.safetensors"),
        (("model.embed_tokens.weight",), "no known adapter format", "Kohya, diffusers, MLX"),
    ],
)
@pytest.mark.parametrize("command", ["inspect", "export"])
def test_named_and_refused(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    keys: tuple[str, ...],
    name: str,
    then: str,
    command: str,
) -> None:
    file = tmp_path / "a.safetensors"
    save_file({key: torch.ones(2, 2) for key in keys}, file)
    out = ["-o", str(tmp_path / "out")] if command == "export" else []
    message = error_text(capsys, command, file, *out)
    assert name in message
    assert then in message


@pytest.mark.parametrize(
    ("file", "word"), [("lit_model.pth.lora", "litgpt"), ("adapter_model.pt", "torchtune")]
)
def test_pickles(tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, word: str) -> None:
    (tmp_path / file).write_bytes(b"PK")
    message = error_text(capsys, "inspect", tmp_path / file)
    assert "pickle" in message
    assert word in message
    assert word == "torchtune" or word in error_text(capsys, "inspect", tmp_path)


def _peft(folder: Path, config: dict[str, object]) -> dict[str, torch.Tensor]:
    folder.mkdir()
    ((a, b),) = factors({LAYER: (8, 6)}).values()
    start = f"base_model.model.{LAYER}"
    tensors = {f"{start}.lora_A.weight": a, f"{start}.lora_B.weight": b}
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4, **config})
    )
    return {LAYER: 2 * (b @ a)}


def test_torchtunes_checkpointer_writes_pefts_files(tmp_path: Path) -> None:
    """What its recipes and `tune_to_peft_adapter_config` put into the configuration."""
    config = {"target_modules": ["q_proj"], "base_model_name_or_path": "org/model"}
    wanted = _peft(tmp_path / "a", dict(config))
    assert_updates(exported(tmp_path / "a"), wanted)


def test_unsloths_targets_are_an_expression(tmp_path: Path) -> None:
    """As its `get_peft_regex` spells them; the keys it adds are passed over."""
    expression = (
        r"(?:.*?(?:language|text).*?(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense).*?"
        r"(?:q_proj|k_proj|v_proj|o_proj).*?)|(?:\bmodel\.layers\.[\d]{1,}\."
        r"(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense)\."
        r"(?:(?:q_proj|k_proj|v_proj|o_proj)))"
    )
    config = {
        "target_modules": expression,
        "base_model_name_or_path": "unsloth/some-model-bnb-4bit",
        "auto_mapping": {"base_model_class": "LlamaForCausalLM", "unsloth_fixed": True},
        "corda_config": None,
        "ensure_weight_tying": False,
    }
    wanted = _peft(tmp_path / "a", dict(config))
    assert_updates(exported(tmp_path / "a"), wanted)


def test_a_base_is_for_other_programs_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _peft(tmp_path / "a", {"target_modules": ["q_proj"], "base_model_name_or_path": "org/model"})
    words = ["export", tmp_path / "a", "-o", tmp_path / "out", "--base", "org/model"]
    assert "leave out --base" in error_text(capsys, *words)
