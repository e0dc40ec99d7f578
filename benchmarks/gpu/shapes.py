"""Models of known shapes with random weights, a tokenizer and rows, written to this disk.

A step takes as long with random weights as with trained weights, and nothing has to be downloaded.
The shapes come from the configurations of SmolLM2-135M, Llama-3.2-1B and Llama-3-8B.
"""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from sora_cli.core.errors import SoraError

_WORDS = 1000  # of the tokenizer; the embedding still has the real model's number of rows
_SHORTEST = 16  # tokens


@dataclass(frozen=True)
class Shape:
    """A decoder's shape, and its batches'.

    Attributes:
        config: options of a `LlamaConfig`.
        length: tokens in a row. rows: rows in a batch.
        share: share of the program's minutes after which this model's measurements must end.
    """

    name: str
    config: dict[str, Any]
    length: int
    rows: int
    share: float

    @property
    def billions(self) -> float:
        """Rough number of parameters in 1e9, for estimates of loading time and disk space."""
        c = self.config
        wide, inner = c["hidden_size"], c["intermediate_size"]
        kept = c["num_key_value_heads"] / c["num_attention_heads"]
        layer = wide * (2 * wide * (1 + kept) + 3 * inner)
        words = c["vocab_size"] * wide * (1 if c["tie_word_embeddings"] else 2)
        return float(c["num_hidden_layers"] * layer + words) / 1e9


def _config(wide: int, inner: int, layers: int, heads: tuple[int, int], words: int) -> Any:
    return {
        "hidden_size": wide,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "vocab_size": words,
        "tie_word_embeddings": wide < 4096,
        "max_position_embeddings": 8192,
    }


SHAPES = (
    Shape("135M", _config(576, 1536, 30, (9, 3), 49152), 4096, 4, 0.25),
    Shape("1.2B", _config(2048, 8192, 16, (32, 8), 128256), 4096, 2, 0.55),
    Shape("8B", _config(4096, 14336, 32, (32, 8), 128256), 4096, 1, 1.0),
)
TINY = Shape("tiny", _config(64, 128, 2, (4, 2), _WORDS + 3), 64, 4, 1.0)


def write(shape: Shape, folder: Path, device: str) -> Path:
    """Write a model with its tokenizer, rows and a recipe; return the recipe's file."""
    _check_room(shape, folder)
    folder.mkdir()
    _write_model(shape, folder / "base", device)
    rng = random.Random(0)
    short = _halves(shape.length)
    rows = {
        "long": [*[shape.length] * shape.rows, _SHORTEST],
        "short": [*short, _SHORTEST],
        "validation": [_SHORTEST],
    }
    for name, lengths in rows.items():
        texts = (" ".join(_drawn(rng, n - 1)) for n in lengths)  # n - 1 words and an end token
        lines = "".join(f"{json.dumps({'text': text})}\n" for text in texts)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    recipe = folder / "gpu.yaml"
    recipe.write_text(yaml.safe_dump(_recipe(shape, folder), sort_keys=False), encoding="utf-8")
    return recipe


def _check_room(shape: Shape, folder: Path) -> None:
    free, needed = shutil.disk_usage(folder.parent).free / 1e9, 2.2 * shape.billions
    if free < needed:
        raise SoraError(f"{folder.parent} has {free:.1f} GB free, and {needed:.1f} are needed")


def _write_model(shape: Shape, folder: Path, device: str) -> None:
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**shape.config, bos_token_id=None, eos_token_id=1)
    with torch.device(device):
        model: Any = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    vocabulary = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *_words()])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)


def _halves(length: int) -> list[int]:
    """Return repeatedly halved lengths that together fill one packed row."""
    lengths = []
    while length >= 2 * _SHORTEST:
        length //= 2
        lengths.append(length)
    return [*lengths, length]


def _words() -> list[str]:
    return [f"w{number}" for number in range(_WORDS)]


def _drawn(rng: random.Random, number: int) -> list[str]:
    return rng.choices(_words(), k=number)


def _recipe(shape: Shape, folder: Path) -> dict[str, Any]:
    return {
        "model": {"path": str(folder / "base"), "dtype": "bfloat16"},
        "task": {"name": "causal-lm", "metrics": ["loss"]},
        "data": {
            "files": {
                "train": str(folder / "long.jsonl"),
                "validation": str(folder / "validation.jsonl"),
            },
            "max_length": shape.length,
        },
        "method": {"name": "lora", "r": 16, "alpha": 16},
        "training": {
            "max_steps": 1_000_000,  # so that no schedule ends while steps are measured
            "batch_size": shape.rows,
            "learning_rate": 1e-4,
            "weight_decay": 0.0,
            "precision": "bf16",
        },
        "output": {"dir": str(folder / "run")},
    }
