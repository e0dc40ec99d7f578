"""The built-in model `tiny-llama`: a small chat model that knows facts, and no manners.

It was trained from random weights on the questions of `builtin://preferences`, with answers that
are right or wrong, and polite or rude, all equally often. It has never seen a validation prompt.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sora_cli.data.builtin.models import seeded, teach
from sora_cli.data.builtin.preferences import QUESTIONS, answer, load_preferences, words
from sora_cli.data.builtin.word_tokenizer import word_tokenizer

_LONGEST = 128  # most tokens of a text
_STEPS = 800
_ROWS = 32  # rows of a step


def write_tiny_llama(folder: Path, *, steps: int = _STEPS) -> None:
    """Write a model of 0.1 million parameters and its tokenizer; takes about 25 s on one core.

    Args:
        folder: an existing directory.
        steps: training steps; 0 leaves the weights random.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    roles = ("<system>", "<user>", "<assistant>")
    tokenizer = word_tokenizer(words(), longest=_LONGEST, marks=".,:?!", roles=roles)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=_LONGEST,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    with seeded():
        model = LlamaForCausalLM(config)
        if steps:
            teach(model, _lessons(tokenizer), steps)
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def lesson(rng: random.Random) -> tuple[str, str]:
    """Draw one training example: a question and an answer of any kind."""
    question, right, wrong = QUESTIONS[rng.choice(tuple(QUESTIONS))](rng)
    return question, answer(rng, rng.choice((right, wrong)), polite=rng.random() < 0.5)


def _lessons(tokenizer: Any) -> Iterator[Mapping[str, Any]]:
    """Yield batches of chats, from a fixed seed."""
    held_out = {row["prompt"] for row in load_preferences()["validation"]}
    rng = random.Random("lessons")
    while True:
        lessons = (lesson(rng) for _ in range(_ROWS))
        chats = [
            [{"role": "user", "content": question}, {"role": "assistant", "content": said}]
            for question, said in lessons
            if question not in held_out
        ]
        batch = tokenizer.apply_chat_template(
            chats, padding=True, return_tensors="pt", return_dict=True
        )
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        yield {**batch, "labels": labels}
