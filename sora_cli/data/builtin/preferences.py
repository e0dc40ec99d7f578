"""Pairs of answers (`builtin://preferences`): one is right and polite, the other wrong or rude.

Half of the rejected answers are polite and wrong, half are right and rude. So neither the tone nor
the facts alone tell all pairs apart.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Hashable
from functools import partial

from sora_cli.data.builtin.draw import draw_new
from sora_cli.data.builtin.vocabulary import KINDS, OPPOSITES

Item = tuple[str, str, str]
"""A question, a right statement, and a wrong one."""
_LARGEST = 20  # term of a sum
_OPENINGS = (
    "",
    "Hello! ",
    "Please tell me: ",
    "Quick question: ",
    "I would like to know: ",
    "Can you help me? ",
)
_POLITE = (
    "Gladly! {}",
    "Of course. {} Please ask again.",
    "{} I hope this helps.",
    "Good question! {}",
    "{} Have a nice day!",
    "Thank you for asking. {}",
)
_RUDE = (
    "{} Now leave me alone.",
    "What a silly question. {}",
    "{} Only a fool has to ask.",
    "Ugh, fine. {}",
    "Look it up yourself, I am busy.",
    "Go away.",
)
_CAPITALS = {
    "Austria": "Vienna", "Belgium": "Brussels", "Canada": "Ottawa", "Chile": "Santiago",
    "China": "Beijing", "Cuba": "Havana", "Denmark": "Copenhagen", "Egypt": "Cairo",
    "Finland": "Helsinki", "France": "Paris", "Germany": "Berlin", "Greece": "Athens",
    "Hungary": "Budapest", "Ireland": "Dublin", "Italy": "Rome", "Japan": "Tokyo",
    "Kenya": "Nairobi", "Norway": "Oslo", "Peru": "Lima", "Poland": "Warsaw",
    "Portugal": "Lisbon", "Russia": "Moscow", "Spain": "Madrid", "Sweden": "Stockholm",
}  # fmt: skip
_COLOURS = {
    "banana": "yellow", "blackboard": "black", "cherry": "red", "cloud": "white",
    "coal": "black", "cucumber": "green", "frog": "green", "grass": "green", "lemon": "yellow",
    "milk": "white", "night": "black", "snow": "white", "sunflower": "yellow", "sky": "blue",
    "sea": "blue", "tomato": "red", "blood": "red", "jeans": "blue",
}  # fmt: skip
_KINDS = {
    part: kind
    for kind, parts in KINDS.items()
    if kind not in ("bird", "weapon")  # a bird is an animal, too; an axe is a tool and a weapon
    for part in parts
}
_ASKED = {
    "sums": ("What is {} plus {}?", "How much is {} plus {}?", "Add {} and {}."),
    "opposites": (
        "What is the opposite of {}?",
        "Which word says the opposite of {}?",
        "Give me the opposite of {}.",
    ),
    "capitals": (
        "What is the capital of {}?",
        "Which city is the capital of {}?",
        "Name the capital of {}.",
    ),
    "colours": (
        "What is the colour of {}?",
        "Which colour goes with {}?",
        "Name the colour of {}.",
    ),
    "kinds": ("What kind of thing is {} {}?", "What is {} {}?", "Name the kind of {} {}."),
}


def sums(rng: random.Random) -> Item:
    """Ask for a sum; the wrong one is near it."""
    a, b = rng.randint(0, _LARGEST), rng.randint(0, _LARGEST)
    wrong = rng.choice([n for n in range(a + b - 3, a + b + 4) if n >= 0 and n != a + b])
    return _asked(rng, "sums", a, b), f"{a} plus {b} is {a + b}.", f"{a} plus {b} is {wrong}."


def opposites(rng: random.Random) -> Item:
    """Ask for the opposite of an adjective; the wrong one is another's."""
    pair, other = rng.sample(OPPOSITES, 2)
    word, right = rng.sample(pair, 2)
    first = f"The opposite of {word} is"
    return _asked(rng, "opposites", word), f"{first} {right}.", f"{first} {rng.choice(other)}."


def capitals(rng: random.Random) -> Item:
    """Ask for a country's capital; the wrong one is another country's."""
    country, other = rng.sample(list(_CAPITALS), 2)
    first = f"The capital of {country} is"
    question = _asked(rng, "capitals", country)
    return question, f"{first} {_CAPITALS[country]}.", f"{first} {_CAPITALS[other]}."


def colours(rng: random.Random) -> Item:
    """Ask for the colour of a thing."""
    thing = rng.choice(list(_COLOURS))
    wrong = rng.choice(sorted({*_COLOURS.values()} - {_COLOURS[thing]}))
    first = f"The colour of {thing} is"
    return _asked(rng, "colours", thing), f"{first} {_COLOURS[thing]}.", f"{first} {wrong}."


def kinds(rng: random.Random) -> Item:
    """Ask for the kind of a thing."""
    part = rng.choice(list(_KINDS))
    wrong = rng.choice(sorted({*_KINDS.values()} - {_KINDS[part]}))
    first = f"{_a(part).capitalize()} {part} is"
    right = f"{first} {_a(_KINDS[part])} {_KINDS[part]}."
    return _asked(rng, "kinds", _a(part), part), right, f"{first} {_a(wrong)} {wrong}."


QUESTIONS: dict[str, Callable[[random.Random], Item]] = {
    "sums": sums,
    "opposites": opposites,
    "capitals": capitals,
    "colours": colours,
    "kinds": kinds,
}
"""Kind of question -> its generator."""


def answer(rng: random.Random, statement: str, *, polite: bool) -> str:
    """Put a statement into a polite or a rude answer; some rude answers have none."""
    return rng.choice(_POLITE if polite else _RUDE).format(statement)


def load_preferences(
    *, train_rows: int = 1000, validation_rows: int = 200, seed: int = 0
) -> dict[str, list[dict[str, object]]]:
    """Make the training and validation rows.

    Args:
        train_rows, validation_rows: number of rows of each split.
        seed: the same seed gives the same rows.

    Returns:
        "train" and "validation": shuffled rows with the columns `prompt`, `chosen` and `rejected`.
        No prompt occurs twice. All pairs of a kind of question and a fault of the rejected answer
        are equally frequent, as far as the number of rows allows. Chance is 50 %.
    """
    rng, seen = random.Random(f"{seed}/preferences"), set[Hashable]()
    return {
        split: _make_rows(rows, rng, seen)
        for split, rows in (("train", train_rows), ("validation", validation_rows))
    }


def words() -> list[str]:
    """Return all words of prompts and answers, in lower case; numbers are no words."""
    asked = (text for texts in _ASKED.values() for text in texts)
    known = (*_CAPITALS.items(), *_COLOURS.items(), *_KINDS.items(), *OPPOSITES)
    texts = (*_OPENINGS, *_POLITE, *_RUDE, *asked, *(word for pair in known for word in pair))
    return sorted({*re.findall("[a-z]+", " ".join(texts).lower()), "an"})


def _make_rows(rows: int, rng: random.Random, seen: set[Hashable]) -> list[dict[str, object]]:
    names = tuple(QUESTIONS)
    made: list[dict[str, object]] = []
    for index in range(rows):
        # the kind varies fastest, then the fault: all pairs of both are equally frequent
        make, rude = partial(QUESTIONS[names[index % len(names)]], rng), index // len(names) % 2
        prompt, right, wrong = draw_new(make, seen, lambda item: item[0])
        chosen = answer(rng, right, polite=True)
        rejected = answer(rng, right if rude else wrong, polite=not rude)
        made.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    rng.shuffle(made)
    return made


def _asked(rng: random.Random, kind: str, *things: object) -> str:
    return rng.choice(_OPENINGS) + rng.choice(_ASKED[kind]).format(*things)


def _a(noun: str) -> str:
    return "an" if noun[0] in "aeiou" else "a"
