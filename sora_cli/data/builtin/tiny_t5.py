"""The built-in model `tiny-t5`: a small T5 with some knowledge of number words and digits.

It was trained from random weights to write numbers below 100 ("forty two" -> "42"), sequences of
digits ("four zero two" -> "402"), and "hundred" and "thousand" alone. It has never seen the larger
numbers of `builtin://numbers` and gets none of them right.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sora_cli.data.builtin.digits import DIGIT_NAMES
from sora_cli.data.builtin.models import seeded, teach
from sora_cli.data.builtin.numbers import WORDS, in_words
from sora_cli.data.builtin.word_tokenizer import word_tokenizer

_STEPS = 400
_ROWS = 32  # rows of a step
_UNITS = {"hundred": "100", "thousand": "1000"}


def write_tiny_t5(folder: Path, *, steps: int = _STEPS) -> None:
    """Write a model of 0.2 million parameters and its tokenizer; takes about 15 s on one core.

    Args:
        folder: an existing directory.
        steps: training steps; 0 leaves the weights random.
    """
    from transformers import T5Config, T5ForConditionalGeneration

    tokenizer = word_tokenizer(WORDS, longest=64)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=64,
        d_kv=16,
        d_ff=128,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    )
    with seeded():
        model = T5ForConditionalGeneration(config)
        if steps:
            teach(model, _lessons(tokenizer), steps)
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def lesson(rng: random.Random) -> tuple[str, str]:
    """Draw one training example: source text and target text."""
    kind = rng.choices(("number", "digits", "unit"), weights=(60, 35, 5))[0]
    if kind == "unit":
        return rng.choice(tuple(_UNITS.items()))
    if kind == "number":
        number = rng.randrange(100)
        return in_words(number), str(number)
    digits = [rng.randrange(10) for _ in range(rng.randint(1, 4))]
    return " ".join(DIGIT_NAMES[digit] for digit in digits), "".join(map(str, digits))


def _lessons(tokenizer: Any) -> Iterator[Mapping[str, Any]]:
    """Yield batches of examples, from a fixed seed."""
    rng = random.Random("lessons")
    while True:
        sources, targets = zip(*(lesson(rng) for _ in range(_ROWS)), strict=True)
        batch = tokenizer(
            list(sources), text_target=list(targets), padding=True, return_tensors="pt"
        )
        batch["labels"].masked_fill_(batch["labels"] == tokenizer.pad_token_id, -100)
        yield batch
