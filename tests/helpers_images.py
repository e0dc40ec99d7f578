"""Small images with a bright corner, what they show in words, and recipes on disk for both."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from datasets import ClassLabel, Dataset, Features, Image, Value
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPProcessor, PreTrainedTokenizerFast
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from tests.helpers_models import VOCABULARY, tiny_clip, tiny_vit
from tests.helpers_runs import save_recipe

CORNERS = ("north west", "north east", "south west", "south east")
SIDE = 8
_FEATURES = Features(
    {"image": Image(), "label": ClassLabel(names=list(CORNERS)), "text": Value("string")}
)


def corner_array(corner: int, rng: np.random.Generator) -> np.ndarray:
    """(8, 8) uint8: noise, and one corner brighter than the rest."""
    pixels = rng.integers(0, 120, (SIDE, SIDE))
    down, right = divmod(corner, 2)
    half = SIDE // 2
    pixels[down * half :, right * half :][:half, :half] += 120
    return pixels.astype(np.uint8)


def encoded(pixels: np.ndarray, kind: str = "png") -> bytes:
    """An image file's content."""
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def corner_rows(rows: int, *, seed: int = 0) -> Dataset:
    """Columns image, label and text; the classes take turns."""
    rng = np.random.default_rng(seed)
    made = [
        {
            "image": {"bytes": encoded(corner_array(i % 4, rng)), "path": None},
            "label": i % 4,
            "text": f"the {CORNERS[i % 4]}",
        }
        for i in range(rows)
    ]
    return Dataset.from_list(made, features=_FEATURES)


def tiny_image_processor(*, channels: int = 1, **options: Any) -> Any:
    """8 x 8 pixels around 0."""
    size = {"height": SIDE, "width": SIDE}
    half = [0.5] * channels
    return ViTImageProcessorPil(**{"size": size, "image_mean": half, "image_std": half, **options})


def pair_processor() -> Any:
    """A CLIP processor of those pixels and of one token a word."""
    words = ["<pad>", "<s>", "<unk>", "the", "a", "north", "south", "west", "east"]
    end = VOCABULARY - 1
    vocabulary = {**{word: i for i, word in enumerate(words)}, "</s>": end}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", end)]
    )
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", bos_token="<s>",
        eos_token="</s>", model_max_length=32,
        model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip
    return CLIPProcessor(tiny_image_processor(), made)


def write_image_recipe(folder: Path, *, rows: int = 48, **blocks: dict[str, Any]) -> Path:
    """Classes of images, by a tiny ViT, in seconds; arguments are merged into the blocks."""
    base = folder / "base"
    tiny_vit(num_labels=4).base_model.save_pretrained(base)
    tiny_image_processor().save_pretrained(base)
    return _write(folder, "image-classification", base, rows, blocks)


def write_pair_recipe(folder: Path, *, rows: int = 48, **blocks: dict[str, Any]) -> Path:
    """Images and texts, by a tiny CLIP."""
    base = folder / "base"
    tiny_clip().save_pretrained(base)
    pair_processor().save_pretrained(base)
    return _write(folder, "image-text", base, rows, blocks)


def write_image_folder(folder: Path, *, splits: tuple[str, ...]) -> Path:
    """As many people keep them: SPLIT/CLASS/NUMBER.png."""
    for number, split in enumerate(splits):
        rng = np.random.default_rng(number)
        for i in range(8):
            place = folder / split / CORNERS[i % 4].replace(" ", "-")
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{i}.png").write_bytes(encoded(corner_array(i % 4, rng)))
    return folder


def _write(folder: Path, task: str, base: Path, rows: int, blocks: dict[str, Any]) -> Path:
    files = {}
    for number, (split, n) in enumerate({"train": rows, "validation": 16}.items()):
        files[split] = str(folder / f"{split}.parquet")
        corner_rows(n, seed=number).to_parquet(files[split])
    recipe = {
        "model": {"path": str(base)},
        "task": {"name": task},
        "data": {"files": files},
    }
    return save_recipe(folder / "images.yaml", recipe, blocks)
