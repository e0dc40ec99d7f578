"""Number words and their digits (`builtin://numbers`): "three hundred forty two" -> "342"."""

from __future__ import annotations

import random

from sora_cli.data.builtin.digits import DIGIT_NAMES

LARGEST = 9999
_TEENS = (
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
WORDS = (*DIGIT_NAMES, *_TEENS, *_TENS, "hundred", "thousand")
"""All words that `in_words` uses."""


def in_words(number: int) -> str:
    """Write a number from 0 to `LARGEST` in English words, without "and" and hyphens.

    Raises:
        ValueError: the number is outside this range.
    """
    if not 0 <= number <= LARGEST:
        raise ValueError(f"{number} is not between 0 and {LARGEST}")
    if number < 10:
        return DIGIT_NAMES[number]
    if number < 20:
        return _TEENS[number - 10]
    if number < 100:
        return _joined(_TENS[number // 10 - 2], number % 10)
    unit, name = (1000, "thousand") if number >= 1000 else (100, "hundred")
    return _joined(f"{in_words(number // unit)} {name}", number % unit)


def load_numbers(
    *, train_rows: int = 1500, validation_rows: int = 200, seed: int = 0
) -> dict[str, list[dict[str, object]]]:
    """Make the training and validation rows.

    Args:
        train_rows, validation_rows: number of rows of each split.
        seed: the same seed gives the same rows.

    Returns:
        "train" and "validation": rows with the columns `source` (words) and `target` (digits). All
        numbers are different and between 100 and `LARGEST`, so that always answering with one
        target is right once.

    Raises:
        ValueError: more rows than numbers.
    """
    numbers = random.Random(f"{seed}/numbers").sample(
        range(100, LARGEST + 1), train_rows + validation_rows
    )
    parts = {"train": numbers[:train_rows], "validation": numbers[train_rows:]}
    return {
        split: [{"source": in_words(number), "target": str(number)} for number in part]
        for split, part in parts.items()
    }


def _joined(words: str, rest: int) -> str:
    return f"{words} {in_words(rest)}" if rest else words
