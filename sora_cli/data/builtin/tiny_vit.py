"""The built-in model `tiny-vit`: a small vision transformer for grey images of 8 x 8.

Its weights are random, with a standard deviation of 0.12 (transformers' default is 0.02): the
layers then mix their inputs enough to give an adapter useful features. On `builtin://digits` a head
on the frozen model reaches about 63 %, LoRA of rank 8 about 95 %.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sora_cli.data.builtin.models import seeded

IMAGE_SIZE = 8
"""Pixels of each side."""


def write_tiny_vit(folder: Path) -> None:
    """Write a model of 0.1 million parameters, without a head, and its image processor.

    Args:
        folder: an existing directory.
    """
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=128,
        image_size=IMAGE_SIZE,
        patch_size=2,
        num_channels=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.12,
    )
    with seeded():
        ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    image_processor().save_pretrained(folder)


def image_processor() -> Any:
    """Return a processor that turns grey images into (1, 8, 8) numbers, -1 (paper) to 1 (ink)."""
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    return ViTImageProcessorPil(size=size, image_mean=0.5, image_std=0.5)
