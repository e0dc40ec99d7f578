"""Sentences with names of people, places and organisations (`builtin://entities`), by rules.

Some names are ambiguous ("Jordan", "Amazon"): only the sentence tells their kind. About half of the
names in validation never occur in training. Tags follow the IOB2 scheme.
"""

from __future__ import annotations

import random
from collections.abc import Hashable
from functools import partial
from typing import Any

from sora_cli.data.builtin import names
from sora_cli.data.builtin.draw import draw_new

TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-ORG", "I-ORG")
"""Tag names in the order of the tag numbers."""

_CLAUSES = (
    "{PER} moved to {LOC}",
    "{PER} was born in {LOC}",
    "{PER} works for {ORG}",
    "{PER} met {PER} in {LOC}",
    "{PER} left {ORG}",
    "{PER} wrote a letter to {PER}",
    "{PER} and her sister {PER} live near {LOC}",
    "{ORG} hired {PER}",
    "{ORG} opened an office in {LOC}",
    "{ORG} bought {ORG}",
    "{ORG} reported a loss",
    "{ORG} was founded by {PER}",
    "the mayor of {LOC} thanked {PER}",
    "the lawyers of {ORG} wrote to {PER}",
    "the road to {LOC} was closed",
    "the shares of {ORG} fell",
    "the train from {LOC} to {LOC} was late",
    "heavy rain fell in {LOC}",
    "the river flows through {LOC}",
    "a strike at {ORG} ended",
    "a museum in {LOC} showed pictures by {PER}",
    "the director , {PER} , praised {ORG}",
    "according to {PER} , the weather in {LOC} was bad",
    "tourists love the old harbour of {LOC}",
    "the engineers at {ORG} asked {PER} for help",
    "{PER} teaches music",
    "{PER} fell ill",
    "nobody in {LOC} knew {PER}",
)
_FRAMES = (
    "{clause} .",
    "{clause} in March .",
    "{clause} two years ago .",
    "{clause} on Monday , it was said .",
    "last week {clause} .",
    "in spring {clause} again .",
    "to the surprise of many , {clause} .",
    "as the paper said , {clause} before noon .",
)
_AMBIGUOUS = 0.3  # share of names that are ambiguous
_HELD_OUT = 0.5  # share of validation's other names that never occur in training


def load_entities(
    *, train_rows: int = 800, validation_rows: int = 200, seed: int = 0
) -> dict[str, list[dict[str, object]]]:
    """Make the training and validation rows.

    Args:
        train_rows, validation_rows: number of rows of each split.
        seed: the same seed gives the same rows.

    Returns:
        "train" and "validation": rows with the columns `tokens` (words and punctuation marks) and
        `tags` (an index into `TAGS` for each token). No sentence occurs twice. Without any tag the
        entity F1 is 0.
    """
    rng, seen = random.Random(f"{seed}/entities"), set[Hashable]()

    def split(rows: int, held_out: float) -> list[dict[str, object]]:
        make = partial(_sentence, rng, held_out=held_out)
        return [draw_new(make, seen, lambda row: str(row["tokens"])) for _ in range(rows)]

    return {"train": split(train_rows, 0.0), "validation": split(validation_rows, _HELD_OUT)}


def _sentence(rng: random.Random, *, held_out: float) -> dict[str, Any]:
    """Make a row: the words of a sentence, and each word's tag number."""
    tokens: list[str] = []
    tags: list[str] = []
    used: set[Hashable] = set()
    for word in rng.choice(_FRAMES).replace("{clause}", rng.choice(_CLAUSES)).split():
        if not word.startswith("{"):
            tokens.append(word)
            tags.append("O")
            continue
        kind = word.strip("{}")
        name = draw_new(partial(_name, kind, rng, held_out=held_out), used).split()
        tokens.extend(name)
        tags.extend(f"{'I' if index else 'B'}-{kind}" for index in range(len(name)))
    tokens[0] = tokens[0][0].upper() + tokens[0][1:]
    return {"tokens": tokens, "tags": [TAGS.index(tag) for tag in tags]}


def _name(kind: str, rng: random.Random, *, held_out: float) -> str:
    if rng.random() < _AMBIGUOUS:
        return rng.choice([name for name, kinds in names.AMBIGUOUS.items() if kind in kinds])
    return names.draw(kind, rng, held_out=rng.random() < held_out)
