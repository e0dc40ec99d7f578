"""Small but complete inputs of a run on disk: a tiny model with its tokenizer, rows, a recipe."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import yaml
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

WORDS = ("cat dog bird fish sees hears likes knows red blue old new the a not every some no").split()
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word; pairs as BERT joins them."""
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=64,
    )


def save_base(model: Any, folder: Path) -> Path:
    """The model's backbone alone, as a pretrained checkpoint is: its head must be made anew."""
    model.base_model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def pair_rows(rows: int, *, seed: int = 0, regression: bool = False) -> list[dict[str, Any]]:
    """Sentence pairs of different lengths; the label says whether they share their first word."""
    rng = random.Random(seed)
    made = []
    for i in range(rows):
        first, second = rng.choices(WORDS, k=rng.randint(2, 9)), rng.choices(WORDS, k=rng.randint(2, 9))
        if i % 2:
            second[0] = first[0]
        same = first[0] == second[0]
        label: Any = 5.0 * same + rng.random() if regression else int(same)
        made.append({"sentence1": " ".join(first), "sentence2": " ".join(second), "label": label})
    return made


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    """Rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def write_recipe(folder: Path, model: Any, *, rows: int = 48, **blocks: dict[str, Any]) -> Path:
    """A recipe that trains for seconds; keyword arguments are merged into its blocks."""
    regression = blocks.get("task", {}).get("name") == "sequence-regression"
    recipe: dict[str, Any] = {
        "model": {"path": str(save_base(model, folder / "base"))},
        "task": {"name": "sequence-classification"},
        "data": {
            "files": {
                "train": write_rows(
                    folder / "train.jsonl", pair_rows(rows, regression=regression)
                ),
                "validation": write_rows(
                    folder / "validation.jsonl", pair_rows(24, seed=1, regression=regression)
                ),
            }
        },
        "method": {"name": "sora", "r_max": 4, "threshold": 0.01},
        "training": {"epochs": 2, "batch_size": 8, "learning_rate": 0.01},
        "output": {"dir": str(folder / "out")},
    }
    for block, values in blocks.items():
        recipe[block] = {**recipe.get(block, {}), **values}
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return path
