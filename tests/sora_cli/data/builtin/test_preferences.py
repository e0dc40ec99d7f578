"""Pairs of answers: found out again, by reading them, whether they are right and polite."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from sora_cli.data.builtin.preferences import QUESTIONS, load_preferences, words
from sora_cli.data.builtin.vocabulary import KINDS, OPPOSITES

OTHER = {a: b for pair in OPPOSITES for a, b in (pair, pair[::-1])}
KNOWN = {"Italy": "Rome", "Japan": "Tokyo", "Egypt": "Cairo"}
COLOURS = {"snow": "white", "blood": "red", "grass": "green"}
RUDE = ("leave me alone", "silly", "fool", "ugh", "busy", "go away")


def polite(answer: str) -> bool:
    return not any(word in answer.lower() for word in RUDE)


def statement(answer: str) -> tuple[str, bool | None] | None:
    """Return the thing that an answer speaks of, and if it is true; None: not known here."""
    if made := re.search(r"(\d+) plus (\d+) is (\d+)\.", answer):
        a, b, c = map(int, made.groups())
        return f"{a} {b}", a + b == c
    if made := re.search(r"The opposite of (\w+) is (\w+)\.", answer):
        return made[1], OTHER[made[1]] == made[2]
    if made := re.search(r"The (?:capital|colour) of (\w+) is (\w+)\.", answer):
        known = (KNOWN | COLOURS).get(made[1])
        return made[1], None if known is None else known == made[2]
    if made := re.search(r"An? (\w+) is an? (\w+)\.", answer):
        return made[1], made[1] in KINDS[made[2]]
    return None


@pytest.mark.parametrize("split", ["train", "validation"])
def test_chosen_is_right_and_polite_and_rejected_is_not(split: str) -> None:
    faults = Counter()
    for row in load_preferences()[split]:
        thing, right = statement(row["chosen"])
        assert right is not False
        assert polite(row["chosen"])
        assert set(thing.split()) <= set(re.findall(r"\w+", row["prompt"]))
        rejected = statement(row["rejected"])
        assert rejected is None or rejected[0] == thing
        if polite(row["rejected"]):
            assert rejected[1] is not True
            faults["wrong"] += 1
        else:
            assert rejected is None or rejected[1] is not False
            faults["rude"] += 1
    assert faults["wrong"] == faults["rude"]


def test_lengths_and_kinds_vary() -> None:
    rows = load_preferences()["train"]
    lengths = Counter(len(row["chosen"]) > len(row["rejected"]) for row in rows)
    assert min(lengths.values()) > len(rows) / 4
    kinds = Counter(
        next((k for k in ("capital", "colour", "opposite", "plus") if k in row["chosen"]), "kind")
        for row in rows
    )
    assert set(kinds.values()) == {len(rows) // len(QUESTIONS)}


def test_all_words_are_known() -> None:
    rows = [row for part in load_preferences().values() for row in part]
    used = {w for row in rows for text in row.values() for w in re.findall("[a-z]+", text.lower())}
    assert used == set(words())


def test_the_seed_decides_everything() -> None:
    first, again, other = (
        load_preferences(train_rows=20, validation_rows=10, seed=seed) for seed in (3, 3, 4)
    )
    assert first == again
    assert first != other
    assert {split: len(rows) for split, rows in first.items()} == {"train": 20, "validation": 10}
