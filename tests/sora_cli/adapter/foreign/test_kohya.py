"""Kohya's files: names flattened to "_", alpha tensors, several models in one file."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file, save_file

from sora_cli.app import run
from tests.helpers_errors import error_of, error_text
from tests.helpers_foreign import (
    UNET_LAYERS,
    assert_updates,
    clip_text,
    exported,
    factors,
    kohya,
    unet,
)

TEXT_LAYERS = {
    f"text_model.encoder.layers.{i}.{name}": shape
    for i in range(2)
    for name, shape in {
        "self_attn.q_proj": (32, 32), "self_attn.out_proj": (32, 32), "mlp.fc1": (48, 32),
    }.items()
}  # fmt: skip
"""As sd-scripts name CLIP's text encoder, and the checkpoints do."""


@pytest.mark.parametrize("alpha", [None, 1.0, 6.0])
def test_a_text_encoder(tmp_path: Path, alpha: float | None) -> None:
    base, pairs = clip_text(tmp_path / "base"), factors(TEXT_LAYERS)
    save_file(kohya(pairs, "lora_te", alpha), tmp_path / "a.safetensors")
    found = exported(tmp_path / "a.safetensors", "--base", str(base))
    modules = dict(transformers.CLIPTextModel.from_pretrained(base).named_modules())
    today = {name: name.removeprefix("text_model.") for name in pairs}
    today = {n: path if path in modules else n for n, path in today.items()}
    assert set(today.values()) <= modules.keys()
    assert_updates(
        found,
        {today[n]: (alpha or a.shape[0]) / a.shape[0] * (b @ a) for n, (a, b) in pairs.items()},
    )
    model = PeftModel.from_pretrained(
        transformers.CLIPTextModel.from_pretrained(base), tmp_path / "exported"
    )
    plain = transformers.CLIPTextModel.from_pretrained(base).state_dict()
    merged = model.merge_and_unload().state_dict()
    for path, update in found.items():
        change = merged[f"{path}.weight"] - plain[f"{path}.weight"]
        assert torch.allclose(change, update.float(), atol=1e-5)


def test_a_unet_by_the_names_in_its_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = factors(UNET_LAYERS)
    save_file(kohya(pairs, "lora_unet", 4.0), tmp_path / "a.safetensors")
    found = exported(tmp_path / "a.safetensors", "--base", str(unet(tmp_path / "unet")))
    assert_updates(found, {n: 4.0 / a.shape[0] * (b @ a) for n, (a, b) in pairs.items()})
    said = capsys.readouterr().out
    assert "LoRA (Kohya) of 4 modules" in said
    assert "PEFT:         yes" in said
    assert "vLLM:         no   its base model is a diffusers model" in said


def test_a_file_for_two_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = factors(UNET_LAYERS)
    other = kohya(factors(TEXT_LAYERS), "lora_te", 1.0)
    save_file({**other, **kohya(pairs, "lora_unet", None)}, tmp_path / "a.safetensors")
    base = unet(tmp_path / "pipeline" / "unet")
    found = exported(tmp_path / "a.safetensors", "--base", str(base))
    assert_updates(found, {n: b @ a for n, (a, b) in pairs.items()})
    assert "left out: the file's 6 modules of lora_te: " in capsys.readouterr().err


def test_a_pipeline_stands_for_the_only_model_that_the_file_is_for(tmp_path: Path) -> None:
    pairs = factors(UNET_LAYERS)
    save_file(kohya(pairs, "lora_unet", None), tmp_path / "a.safetensors")
    unet(tmp_path / "pipeline" / "unet")
    (tmp_path / "pipeline" / "model_index.json").write_text("{}")
    found = exported(tmp_path / "a.safetensors", "--base", str(tmp_path / "pipeline"))
    assert found.keys() == pairs.keys()


def test_inspect_needs_no_base(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file(kohya(factors(UNET_LAYERS), "lora_unet", 4.0), tmp_path / "a.safetensors")
    assert run(["inspect", str(tmp_path / "a.safetensors"), "--modules"]) == 0
    shown = capsys.readouterr().out
    assert "LoRA, a file of Kohya" in shown
    assert "not compared with a base model" in shown
    assert "sora prune" not in shown
    assert f"sora export {tmp_path / 'a.safetensors'} -o DIR --base MODEL" in shown


def test_inspect_shows_convolutions(tmp_path: Path) -> None:
    a, b = torch.randn(2, 4, 3, 3), torch.randn(8, 2, 1, 1)
    tensors = kohya({"conv_in": (a, b)}, "lora_unet", 2.0)
    save_file(tensors, tmp_path / "a.safetensors")
    assert run(["inspect", str(tmp_path / "a.safetensors")]) == 0


def _refused(path: Path, base: Path, capsys: pytest.CaptureFixture[str]) -> str:
    out = path.parent / "refused"
    said = error_of(capsys, "export", path, "-o", out, "--base", base)
    assert not out.exists()
    return "\n".join(said)


@pytest.mark.parametrize(
    ("ending", "reason"),
    [
        ("hada_w1_a", "LoHa"),
        ("lokr_w1", "LoKr"),
        ("dora_scale", "DoRA"),
        ("lora_mid.weight", "Tucker"),
        ("oft_blocks", "OFT"),
        ("diff", "in full"),
    ],
)
def test_other_kinds_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], ending: str, reason: str
) -> None:
    tensors = kohya(factors(UNET_LAYERS), "lora_unet", 4.0)
    tensors[f"lora_unet_mid_block_x.{ending}"] = torch.ones(2, 2)
    save_file(tensors, tmp_path / "a.safetensors")
    message = _refused(tmp_path / "a.safetensors", unet(tmp_path / "unet"), capsys)
    assert "this is an adapter file of Kohya" in message
    assert reason in message


def test_convolutions(tmp_path: Path) -> None:
    """As LoRAModule.merge_to does it: the two kernels convolved."""
    a, b = torch.randn(2, 4, 3, 3), torch.randn(32, 2, 1, 1)
    save_file(kohya({"conv_in": (a, b)}, "lora_unet", 4.0), tmp_path / "a.safetensors")
    found = exported(tmp_path / "a.safetensors", "--base", str(unet(tmp_path / "unet")))
    both = torch.nn.functional.conv2d(a.permute(1, 0, 2, 3), b).permute(1, 0, 2, 3)
    assert_updates(found, {"conv_in": 4.0 / 2 * both.reshape(32, -1)})
    stored = load_file(tmp_path / "exported" / "adapter_model.safetensors")
    assert stored["base_model.model.conv_in.lora_A.weight"].shape == (2, 4, 3, 3)
    assert stored["base_model.model.conv_in.lora_B.weight"].shape == (32, 2, 1, 1)


def test_a_linear_layer_is_no_convolution(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = next(iter(UNET_LAYERS))
    pair = (torch.randn(2, 32, 1, 1), torch.randn(32, 2, 1, 1))
    save_file(kohya({name: pair}, "lora_unet", 4.0), tmp_path / "a.safetensors")
    message = _refused(tmp_path / "a.safetensors", unet(tmp_path / "unet"), capsys)
    assert "its update in the file (32, 32, 1, 1)" in message


def test_names_that_the_base_has_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = unet(tmp_path / "unet")
    pairs = factors({**UNET_LAYERS, "input_blocks.4.1.proj": (4, 4)})
    save_file(kohya(pairs, "lora_unet", 4.0), tmp_path / "a.safetensors")
    message = _refused(tmp_path / "a.safetensors", base, capsys)
    assert "no layer input_blocks_4_1_proj" in message


def test_names_that_two_layers_have(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = unet(tmp_path / "unet")
    twins = {"a.b_c.weight": torch.zeros(4, 4), "a_b.c.weight": torch.zeros(4, 4)}
    save_file(twins, base / "diffusion_pytorch_model.safetensors")
    pairs = factors({"a.b_c": (4, 4)})
    save_file(kohya(pairs, "lora_unet", 4.0), tmp_path / "a.safetensors")
    message = _refused(tmp_path / "a.safetensors", base, capsys)
    assert "'a_b_c' fits several layers of" in message
    assert ": a.b_c and a_b.c" in message


def test_another_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = unet(tmp_path / "unet")
    pairs = factors({next(iter(UNET_LAYERS)): (32, 16)})
    save_file(kohya(pairs, "lora_unet", 4.0), tmp_path / "a.safetensors")
    assert "its update in the file (32, 16)" in _refused(tmp_path / "a.safetensors", base, capsys)


def test_half_a_pair(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = kohya(factors(UNET_LAYERS), "lora_unet", 4.0)
    del tensors[next(key for key in tensors if "lora_up" in key)]
    save_file(tensors, tmp_path / "a.safetensors")
    message = _refused(tmp_path / "a.safetensors", unet(tmp_path / "unet"), capsys)
    assert "is half a pair" in message
    assert "|" not in message


def test_without_a_base(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file(kohya(factors(UNET_LAYERS), "lora_unet", 4.0), tmp_path / "a.safetensors")
    said = error_of(capsys, "export", tmp_path / "a.safetensors", "-o", tmp_path / "out")
    assert "--base MODEL" in " ".join(said)


def test_two_models_that_both_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both = kohya(factors(UNET_LAYERS), "lora_te1", 4.0)
    both |= kohya(factors(UNET_LAYERS), "lora_te2", 4.0)
    save_file(both, tmp_path / "a.safetensors")
    message = _refused(tmp_path / "a.safetensors", unet(tmp_path / "unet"), capsys)
    assert "lora_te1 and lora_te2 in the file both fit" in message


def test_two_names_of_one_layer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, pairs = clip_text(tmp_path / "base"), factors(TEXT_LAYERS)
    shorter = {
        name.removeprefix("text_model."): pair for name, pair in factors(TEXT_LAYERS).items()
    }
    save_file(kohya({**pairs, **shorter}, "lora_te", 1.0), tmp_path / "a.safetensors")
    assert ": 'encoder.layers.0." in _refused(tmp_path / "a.safetensors", base, capsys)


def test_a_pipeline_of_several_that_are_meant(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = kohya(factors(UNET_LAYERS), "lora_unet", 1.0)
    save_file({**pairs, **kohya(factors(TEXT_LAYERS), "lora_te", 1.0)}, tmp_path / "a.safetensors")
    for part in ("unet", "text_encoder"):
        unet(tmp_path / "pipeline" / part)
    (tmp_path / "pipeline" / "model_index.json").write_text("{}")
    message = _refused(tmp_path / "a.safetensors", tmp_path / "pipeline", capsys)
    assert "a pipeline of several models" in message
    assert str(tmp_path / "pipeline" / "text_encoder") in message


@pytest.mark.parametrize(
    ("alpha", "reason"),
    [(torch.ones(2), "not a single number"), (torch.tensor(math.nan), "alpha must be above 0")],
)
def test_an_alpha_that_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], alpha: torch.Tensor, reason: str
) -> None:
    tensors = kohya(factors({"conv_out": (32, 32)}), "lora_unet", 1.0)
    save_file({**tensors, "lora_unet_conv_out.alpha": alpha}, tmp_path / "a.safetensors")
    assert reason in error_text(capsys, "inspect", tmp_path / "a.safetensors")
