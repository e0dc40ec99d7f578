"""Numbers in words, read back by another way of reading them."""

from __future__ import annotations

import pytest

from sora_cli.data.builtin.numbers import LARGEST, WORDS, in_words, load_numbers

NAMES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety"
)
VALUES = dict(zip(NAMES.split(), [*range(20), *range(20, 100, 10)], strict=True))


def read(words: str) -> int:
    total = group = 0
    for word in words.split():
        if word == "thousand":
            total, group = total + group * 1000, 0
        elif word == "hundred":
            group *= 100
        else:
            group += VALUES[word]
    return total + group


def test_every_number_reads_back() -> None:
    assert all(read(in_words(number)) == number for number in range(LARGEST + 1))


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "zero"),
        (13, "thirteen"),
        (60, "sixty"),
        (342, "three hundred forty two"),
        (7010, "seven thousand ten"),
        (9999, "nine thousand nine hundred ninety nine"),
    ],
)
def test_known_numbers(number: int, words: str) -> None:
    assert in_words(number) == words


@pytest.mark.parametrize("number", [-1, LARGEST + 1])
def test_numbers_without_words_are_refused(number: int) -> None:
    with pytest.raises(ValueError, match="between"):
        in_words(number)


def test_rows_say_the_same_twice() -> None:
    for rows in load_numbers().values():
        assert all(read(row["source"]) == int(row["target"]) >= 100 for row in rows)
    used = {word for row in load_numbers()["train"] for word in row["source"].split()}
    assert used == set(WORDS) - {"zero"}


def test_sizes_and_seed() -> None:
    rows = load_numbers(train_rows=5, validation_rows=3, seed=7)
    assert {split: len(part) for split, part in rows.items()} == {"train": 5, "validation": 3}
    assert rows == load_numbers(train_rows=5, validation_rows=3, seed=7)
    assert rows != load_numbers(train_rows=5, validation_rows=3, seed=8)
    with pytest.raises(ValueError, match="larger"):
        load_numbers(train_rows=LARGEST)
