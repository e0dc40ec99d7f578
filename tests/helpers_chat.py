"""Tiny decoders that follow instructions: their tokenizer, rows, and recipes on disk."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.helpers_models import tiny_llama
from tests.helpers_runs import WORDS, save_recipe, write_rows

CHATML = (
    "{% for m in messages %}<|im_start|> {{ m['role'] }} {{ m['content'] }} <|im_end|> "
    "{% endfor %}{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
)
_EXTRA = ["<pad>", "<unk>", "<|im_start|>", "<|im_end|>", "user", "assistant", "system", "###",
          "Instruction:", "Response:", "Input:"]  # fmt: skip


def chat_tokenizer(*, template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """One token a word, with ChatML's special tokens; it ends texts with <|im_end|>."""
    vocabulary = {word: i for i, word in enumerate([*_EXTRA, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.Fuse()
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
        model_max_length=64,
    )
    made.chat_template = template
    return made


def instruct_rows(rows: int, *, seed: int = 0) -> list[dict[str, Any]]:
    """The answer is the instruction's last two words: what a small model learns in some steps."""
    rng = random.Random(seed)
    made = []
    for _ in range(rows):
        words = rng.choices(WORDS, k=rng.randint(2, 7))
        made.append({"instruction": " ".join(words), "output": " ".join(words[-2:])})
    return made


def write_chat_base(folder: Path, *, tied: bool = True) -> Path:
    """A tiny Llama with its chat tokenizer."""
    tiny_llama(tied=tied, eos_token_id=3, bos_token_id=2).save_pretrained(folder)
    chat_tokenizer().save_pretrained(folder)
    return folder


def write_chat_recipe(folder: Path, *, rows: int = 48, **blocks: dict[str, Any]) -> Path:
    """A recipe that trains for seconds; keyword arguments are merged into its blocks."""
    recipe = {
        "model": {"path": str(write_chat_base(folder / "base"))},
        "task": {"name": "causal-lm", "max_new_tokens": 6},
        "data": {
            "files": {
                "train": write_rows(folder / "train.jsonl", instruct_rows(rows)),
                "validation": write_rows(folder / "valid.jsonl", instruct_rows(16, seed=1)),
            },
            "max_length": 32,
        },
    }
    return save_recipe(folder / "chat.yaml", recipe, blocks)
