"""mlx-lm's directories: transposed factors, and a scale in a configuration of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sora_cli.app import run
from tests.helpers_errors import error_of
from tests.helpers_foreign import assert_updates, exported, factors, llama, mlx

LAYERS = {
    "model.layers.0.self_attn.q_proj": (32, 32),
    "model.layers.1.self_attn.v_proj": (16, 32),
    "model.layers.1.mlp.down_proj": (32, 64),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_update_is_the_one_that_mlx_fuses(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = mlx(tmp_path / "adapters", factors(LAYERS), scale=0.3)
    tensors = {k: t.to(dtype) for k, t in load_file(folder / "adapters.safetensors").items()}
    save_file(tensors, folder / "adapters.safetensors")
    base = llama(tmp_path / "base")
    found = exported(folder, "--base", str(base), "--dtype", "float32")
    wanted = {  # mlx_lm/tuner/lora.py, LoRALinear.fuse: ((scale * lora_b.T) @ lora_a.T)
        n: (0.3 * tensors[f"{n}.lora_b"].float().T) @ tensors[f"{n}.lora_a"].float().T
        for n in LAYERS
    }
    assert_updates(found, wanted)
    config = json.loads((tmp_path / "exported" / "adapter_config.json").read_text())
    assert config["task_type"] == "CAUSAL_LM"
    assert config["base_model_name_or_path"] == str(base)


def test_one_of_its_checkpoints_is_named_by_its_file(tmp_path: Path) -> None:
    folder = mlx(tmp_path / "adapters", factors(LAYERS))
    (folder / "adapters.safetensors").rename(folder / "0000100_adapters.safetensors")
    found = exported(folder / "0000100_adapters.safetensors", "--base", str(llama(tmp_path / "b")))
    assert found.keys() == LAYERS.keys()


def test_inspect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = mlx(tmp_path / "adapters", factors(LAYERS))
    assert run(["inspect", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "LoRA, a file of MLX" in shown
    assert "mlx-community/some-model-4bit" in shown
    assert run(["inspect", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["format"] == "MLX"


def test_other_commands_say_how_to_have_an_adapter(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = mlx(tmp_path / "adapters", factors(LAYERS))
    for command in ("prune", "merge"):
        said = error_of(capsys, command, folder, "-o", tmp_path / "out")
        assert f"sora export {folder} -o DIR --base MODEL" in " ".join(said)


def _refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    base, out = llama(folder.parent / "base"), folder.parent / "o"
    said = error_of(capsys, "export", folder, "-o", out, "--base", base)
    assert not out.exists()
    return "\n".join(said)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"fine_tune_type": "dora"}, "DoRA"),
        ({"fine_tune_type": "full"}, "'full'"),
        ({"lora_parameters": None}, "lora_parameters"),
        ({"lora_parameters": {"rank": 2}}, "no scale"),
        ({"lora_parameters": {"rank": 2, "alpha": 16, "scale": 10.0}}, "alpha 16 and scale 10.0"),
    ],
)
def test_what_the_configuration_does_not_tell(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], config: dict[str, Any], reason: str
) -> None:
    folder = mlx(tmp_path / "adapters", factors(LAYERS))
    raw = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**raw, **config}))
    message = _refused(folder, capsys)
    assert "this is an adapter file of MLX" in message
    assert reason in message


def test_an_alpha_that_changes_nothing(tmp_path: Path) -> None:
    folder = mlx(tmp_path / "adapters", factors(LAYERS), alpha=2)
    assert exported(folder, "--base", str(llama(tmp_path / "b"))).keys() == LAYERS.keys()


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"model.layers.0.mlp.up_proj.m": torch.ones(64)}, "DoRA"),
        (
            {
                "model.layers.0.mlp.w.lora_a": torch.ones(4, 2, 32),
                "model.layers.0.mlp.w.lora_b": torch.ones(4, 32, 2),
            },
            "experts",
        ),
        ({"model.layers.0.mlp.up_proj.weight": torch.ones(64, 32)}, "neither half"),
        (
            {
                "model.embed_tokens.lora_a": torch.ones(64, 2),
                "model.embed_tokens.lora_b": torch.ones(2, 32),
            },
            "no layer model.embed_tokens",
        ),
    ],
)
def test_what_is_no_linear_layers_pair(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tensors: dict[str, Any], reason: str
) -> None:
    folder = mlx(tmp_path / "adapters", factors(LAYERS))
    there = load_file(folder / "adapters.safetensors")
    save_file({**there, **tensors}, folder / "adapters.safetensors")
    assert reason in _refused(folder, capsys)
