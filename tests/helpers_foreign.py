"""Adapter files in the layouts of other programs, made from random factors and tiny base models."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

from sora_cli.adapter.directory import read_adapter
from sora_cli.app import run
from tests.helpers_models import tiny_llama

RANKS = (2, 3)
"""Of the modules of a file, in turn: uneven, as LyCORIS and resized files have them."""


def llama(folder: Path) -> Path:
    """A base model of a language model, on the disk."""
    tiny_llama().save_pretrained(folder)
    return folder


def clip_text(folder: Path) -> Path:
    """A text encoder of CLIP on the disk, with the names that its checkpoints have."""
    config = transformers.CLIPTextConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=16, projection_dim=32,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.CLIPTextModel(config).save_pretrained(folder)
    return folder


UNET_LAYERS = {
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": (32, 32),
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0": (32, 32),
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k": (32, 24),
    "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj": (256, 32),
}
"""Some layers of diffusers' UNet2DConditionModel and their sizes (out, in)."""


def unet(folder: Path) -> Path:
    """A UNet's directory as diffusers writes it, with a few of its layers and a convolution."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"_class_name": "UNet2DConditionModel"}))
    tensors = {f"{name}.weight": torch.zeros(shape) for name, shape in UNET_LAYERS.items()}
    tensors["conv_in.weight"] = torch.zeros(32, 4, 3, 3)
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors")
    return folder


def factors(
    shapes: Mapping[str, tuple[int, int]], ranks: Sequence[int] = RANKS
) -> dict[str, tuple[Tensor, Tensor]]:
    """Random {module: A (r, in), B (out, r)} for layers of these sizes (out, in)."""
    g = torch.Generator().manual_seed(3)
    found = {}
    for i, (name, (n_out, n_in)) in enumerate(shapes.items()):
        rank = ranks[i % len(ranks)]
        found[name] = (torch.randn(rank, n_in, generator=g), torch.randn(n_out, rank, generator=g))
    return found


def kohya(pairs: Mapping[str, tuple[Tensor, Tensor]], prefix: str, alpha: float | None) -> Any:
    """The tensors of sd-scripts' LoRAModule for each module: down, up and alpha."""
    tensors = {}
    for name, (a, b) in pairs.items():
        flat = f"{prefix}_{name.replace('.', '_')}"
        tensors |= {f"{flat}.lora_down.weight": a, f"{flat}.lora_up.weight": b}
        if alpha is not None:
            tensors[f"{flat}.alpha"] = torch.tensor(alpha)
    return tensors


def mlx(folder: Path, pairs: Mapping[str, tuple[Tensor, Tensor]], **parameters: Any) -> Path:
    """What mlx-lm's trainer writes: `adapters.safetensors` and its configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, (a, b) in pairs.items():
        tensors[f"{name}.lora_a"] = a.T.contiguous()
        tensors[f"{name}.lora_b"] = b.T.contiguous()
    save_file(tensors, folder / "adapters.safetensors")
    config = {
        "fine_tune_type": "lora",
        "model": "mlx-community/some-model-4bit",
        "num_layers": 2,
        "lora_parameters": {"rank": 2, "scale": 20.0, "dropout": 0.0, **parameters},
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def exported(source: Path, *options: str) -> dict[str, Tensor]:
    """Run `sora export` on a file and return {module: dW} of what it wrote beside it."""
    out = source.parent / "exported"
    assert run(["export", str(source), "-o", str(out), *options]) == 0
    return {path: found.dense() for path, found in read_adapter(out).layers.items()}


def assert_updates(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """The same modules, and each update within a few roundings of float32."""
    assert found.keys() == wanted.keys()
    for path, update in wanted.items():
        worst = (found[path] - update).abs().max() / update.abs().max()
        assert worst <= 1e-6, f"{path}: off by {worst:.1e}"
