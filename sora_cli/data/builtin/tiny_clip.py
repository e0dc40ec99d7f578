"""The built-in model `tiny-clip`: a small CLIP for grey images of 8 x 8 and a few words.

Its weights are random; its words are those of `builtin://captions`. On that data the frozen model
finds an image's text in 5 % of the cases, which is chance; LoRA of rank 8 reaches over 80 %.
"""

from __future__ import annotations

from pathlib import Path

from sora_cli.data.builtin.captions import PHRASES, STROKES
from sora_cli.data.builtin.digits import DIGIT_NAMES
from sora_cli.data.builtin.models import seeded
from sora_cli.data.builtin.tiny_vit import image_processor
from sora_cli.data.builtin.word_tokenizer import word_tokenizer

_LONGEST = 16  # most tokens of a text
_LAYERS = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}


def write_tiny_clip(folder: Path) -> None:
    """Write a model of 0.2 million parameters, its tokenizer and its image processor.

    Args:
        folder: an existing directory.
    """
    from transformers import CLIPConfig, CLIPModel, CLIPProcessor

    spoken = " ".join(PHRASES).split()
    words = {*DIGIT_NAMES, *STROKES, *(word for word in spoken if not word.startswith("{"))}
    tokenizer = word_tokenizer(sorted(words), longest=_LONGEST, start="<s>")
    config = CLIPConfig(
        text_config={
            **_LAYERS,
            "vocab_size": len(tokenizer),
            "num_hidden_layers": 2,
            "max_position_embeddings": _LONGEST,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            **_LAYERS,
            "num_hidden_layers": 3,
            "image_size": 8,
            "patch_size": 2,
            "num_channels": 1,
        },
        projection_dim=32,
    )
    with seeded():
        CLIPModel(config).save_pretrained(folder)
    CLIPProcessor(image_processor(), tokenizer).save_pretrained(folder)
