"""diffusers' files in the spellings that it has had, with and without a base model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.helpers_errors import error_text
from tests.helpers_foreign import UNET_LAYERS, assert_updates, clip_text, exported, factors, unet

TEXT_LAYERS = {
    "text_model.encoder.layers.0.self_attn.q_proj": (32, 32),
    "text_model.encoder.layers.1.self_attn.out_proj": (32, 32),
}
ENDINGS = {
    "peft": ("lora_A.weight", "lora_B.weight"),
    "plain": ("lora.down.weight", "lora.up.weight"),
    "linear": ("lora_linear_layer.down.weight", "lora_linear_layer.up.weight"),
}
ONE_RANK = (3,)
"""Of all modules: else the scaling has to be told."""
Pairs = Mapping[str, tuple[Tensor, Tensor]]


def _tensors(pairs: Pairs, part: str, spelling: str) -> dict[str, Tensor]:
    down, up = ENDINGS[spelling]
    tensors = {f"{part}.{name}.{down}": a for name, (a, _) in pairs.items()}
    return tensors | {f"{part}.{name}.{up}": b for name, (_, b) in pairs.items()}


def _processors(pairs: Pairs, part: str) -> dict[str, Tensor]:
    """The oldest spelling: `attn1.processor.to_out_lora.down.weight` for `attn1.to_out.0`."""
    tensors = {}
    for name, (a, b) in pairs.items():
        module, _, last = name.removesuffix(".0").rpartition(".")
        if part == "text_encoder":
            last = f"to_{last.removesuffix('_proj')}"
        start = f"{part}.{module}.processor.{last}_lora"
        tensors |= {f"{start}.down.weight": a, f"{start}.up.weight": b}
    return tensors


def _updates(pairs: Pairs) -> dict[str, Tensor]:
    return {name: b @ a for name, (a, b) in pairs.items()}


@pytest.mark.parametrize("spelling", list(ENDINGS))
@pytest.mark.parametrize("with_base", [True, False])
def test_a_unet(tmp_path: Path, spelling: str, with_base: bool) -> None:
    pairs = factors(UNET_LAYERS, ONE_RANK)
    file = tmp_path / "pytorch_lora_weights.safetensors"
    save_file(_tensors(pairs, "unet", spelling), file)
    base = ["--base", str(unet(tmp_path / "base"))] if with_base else []
    assert_updates(exported(file, *base), _updates(pairs))


def test_processors_of_a_unet(tmp_path: Path) -> None:
    pairs = factors({name: shape for name, shape in UNET_LAYERS.items() if ".to_" in name},
                    ONE_RANK)  # fmt: skip
    save_file(_processors(pairs, "unet"), tmp_path / "a.safetensors")
    found = exported(tmp_path / "a.safetensors", "--base", str(unet(tmp_path / "base")))
    assert_updates(found, _updates(pairs))


@pytest.mark.parametrize("spelling", [*ENDINGS, "processors"])
def test_a_text_encoder(tmp_path: Path, spelling: str) -> None:
    pairs = factors(TEXT_LAYERS, ONE_RANK)
    old = spelling == "processors"
    tensors = (
        _processors(pairs, "text_encoder") if old else _tensors(pairs, "text_encoder", spelling)
    )
    save_file(tensors, tmp_path / "a.safetensors")
    found = exported(tmp_path / "a.safetensors", "--base", str(clip_text(tmp_path / "base")))
    wanted = {n.removeprefix("text_model."): update for n, update in _updates(pairs).items()}
    assert_updates({n.removeprefix("text_model."): t for n, t in found.items()}, wanted)


def test_the_directory_that_it_writes(tmp_path: Path) -> None:
    pairs = factors(UNET_LAYERS, ONE_RANK)
    (tmp_path / "lora").mkdir()
    save_file(
        _tensors(pairs, "unet", "peft"), tmp_path / "lora" / "pytorch_lora_weights.safetensors"
    )
    assert_updates(exported(tmp_path / "lora"), _updates(pairs))


def _alphas(pairs: Pairs, part: str) -> dict[str, Tensor]:
    return {f"{part}.{name}.alpha": torch.tensor(1.0 + i) for i, name in enumerate(pairs)}


def test_alphas_beside_pairs_of_several_ranks(tmp_path: Path) -> None:
    pairs = factors(UNET_LAYERS)
    tensors = _tensors(pairs, "unet", "plain") | _alphas(pairs, "unet")
    save_file(tensors, tmp_path / "a.safetensors")
    wanted = {
        name: (1.0 + i) / a.shape[0] * (b @ a) for i, (name, (a, b)) in enumerate(pairs.items())
    }
    assert_updates(exported(tmp_path / "a.safetensors"), wanted)


@pytest.mark.parametrize(
    ("ranks", "alphas", "words"),
    [((2, 3), 0, "the pairs differ in rank in unet"), ((2,), 2, "others none in unet")],
)
def test_a_scaling_that_cannot_be_told(
    tmp_path: Path,
    ranks: tuple[int, ...],
    alphas: int,
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """diffusers divides the rank that comes first by each pair's own, its early versions do not."""
    pairs = factors(UNET_LAYERS, ranks)
    some = dict(list(_alphas(pairs, "unet").items())[:alphas])
    save_file(_tensors(pairs, "unet", "plain") | some, tmp_path / "a.safetensors")
    message = _refused(tmp_path / "a.safetensors", capsys)
    assert words in message
    assert "add an alpha to each pair" in message


@pytest.mark.parametrize("with_alphas", [False, True])
def test_the_configuration_in_the_header(tmp_path: Path, with_alphas: bool) -> None:
    """It holds alone, as in diffusers (`_create_lora_config`), where there are alphas, too."""
    pairs = factors(UNET_LAYERS)
    last = list(UNET_LAYERS)[-1]
    config = {
        "unet.r": 2,
        "unet.lora_alpha": 8,
        "unet.rank_pattern": {name: a.shape[0] for name, (a, _) in pairs.items()},
        "unet.alpha_pattern": {last: 3},
        "unet.target_modules": list(pairs),
    }
    save_file(
        _tensors(pairs, "unet", "peft") | (_alphas(pairs, "unet") if with_alphas else {}),
        tmp_path / "a.safetensors",
        metadata={"format": "pt", "lora_adapter_metadata": json.dumps(config)},
    )
    wanted = {
        name: (3 if name == last else 8) / a.shape[0] * (b @ a) for name, (a, b) in pairs.items()
    }
    assert_updates(exported(tmp_path / "a.safetensors"), wanted)


def _refused(file: Path, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    return error_text(capsys, "export", file, "-o", file.parent / "out", *options)


def test_several_models_need_a_base(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = _tensors(factors(UNET_LAYERS, ONE_RANK), "unet", "peft")
    text = _tensors(factors(TEXT_LAYERS, ONE_RANK), "text_encoder", "peft")
    save_file({**pairs, **text}, tmp_path / "a.safetensors")
    message = _refused(tmp_path / "a.safetensors", capsys)
    assert "several models: text_encoder, unet" in message
    assert "--base MODEL" in message
    base = ["--base", str(unet(tmp_path / "base"))]
    assert exported(tmp_path / "a.safetensors", *base).keys() == UNET_LAYERS.keys()


def test_one_that_fits_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = factors({"other.layer": (4, 4)})
    others = factors({"other.layer": (4, 4)})
    tensors = _tensors(pairs, "unet", "peft") | _tensors(others, "text_encoder", "peft")
    save_file(tensors, tmp_path / "a.safetensors")
    message = _refused(tmp_path / "a.safetensors", capsys, "--base", str(unet(tmp_path / "base")))
    assert "no part of this file of diffusers fits" in message


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("unet.mid_block.x.lora_magnitude_vector", "DoRA"),
        ("unet.mid_block.x.lora_B.bias", "bias"),
        ("unet.mid_block.x.weight", "neither half"),
    ],
)
def test_more_than_a_plain_lora(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str, reason: str
) -> None:
    tensors = _tensors(factors(UNET_LAYERS, ONE_RANK), "unet", "peft")
    save_file({**tensors, key: torch.ones(4)}, tmp_path / "a.safetensors")
    message = _refused(tmp_path / "a.safetensors", capsys)
    assert "this is an adapter file of diffusers" in message
    assert reason in message
