"""Sentences with four others, of which one follows (`builtin://endings`), made by rules.

The four differ in the same ways, whichever is right: the four alone tell nothing, so chance is one
in four. The words of the sentence rule out two of them, but not the third.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable
from functools import partial

from sora_cli.data.builtin.draw import draw_new
from sora_cli.data.builtin.vocabulary import KINDS, OPPOSITES, PEOPLE, TRANSITIVE

Item = tuple[str, list[str]]
"""A sentence, and four others of which the first follows from it."""
CHOICES = 4
_DEALINGS = ("bought", "sold", "lost", "found", "cleaned", "stole", "borrowed", "wanted")
_OVERLAPPING = (("animal", "bird"), ("tool", "weapon"))  # a bird is an animal, an axe is either


def roles(rng: random.Random) -> Item:
    """Say who did what to whom in the active, and ask in the passive."""
    (agent, patient), (verb, other) = rng.sample(PEOPLE, 2), rng.sample(TRANSITIVE, 2)
    asked = [(patient, verb, agent), (agent, verb, patient)]
    asked += [(patient, other, agent), (agent, other, patient)]
    return f"The {agent} {verb} the {patient}.", [
        f"The {a} was {v} by the {b}." for a, v, b in asked
    ]


def kinds(rng: random.Random) -> Item:
    """Ask which kind of thing somebody did something with, where another thing is named, too."""
    person, (verb, other) = rng.choice(PEOPLE), rng.sample(_DEALINGS, 2)
    left_out = [rng.choice(pair) for pair in _OVERLAPPING]
    wholes = rng.sample([whole for whole in KINDS if whole not in left_out], CHOICES)
    part, distraction = (rng.choice(KINDS[whole]) for whole in wholes[:2])
    deeds = [f"{verb} {_a(part)}", f"{other} {_a(distraction)}"]
    rng.shuffle(deeds)
    text = f"The {person} {deeds[0]} and {deeds[1]}."
    return text, [f"The {person} {verb} {_a(whole)}." for whole in wholes]


def opposites(rng: random.Random) -> Item:
    """Ask what follows from somebody's being, or not being, one of two opposites."""
    person, (told, others) = rng.choice(PEOPLE), rng.sample(OPPOSITES, 2)
    first, denied = rng.randrange(2), rng.random() < 0.5
    asked = [told[1 - first], told[first], *others]
    return (
        _is(person, told[first], denied),
        [_is(person, adjective, not denied) for adjective in asked],
    )


PHENOMENA: dict[str, Callable[[random.Random], Item]] = {
    "roles": roles,
    "kinds": kinds,
    "opposites": opposites,
}
"""Phenomenon -> its generator."""


def load_endings(
    *, train_rows: int = 1200, validation_rows: int = 240, seed: int = 0
) -> dict[str, list[dict[str, object]]]:
    """Make the training and the validation rows.

    Args:
        train_rows, validation_rows: how many of either.
        seed: of all that is drawn; the same seed gives the same rows.

    Returns:
        "train" and "validation": shuffled rows with the columns `context`, `choices` (a list of
        four sentences), `label` (the place of the right one, from 0) and `phenomenon`. No context
        occurs twice. Each label and each phenomenon is as frequent as the others, and so is each
        pair of them, as far as the number of rows allows. Chance is 25 %.
    """
    rng, seen = random.Random(f"{seed}/endings"), set[Hashable]()
    return {
        split: _make_rows(rows, rng, seen)
        for split, rows in (("train", train_rows), ("validation", validation_rows))
    }


def _make_rows(rows: int, rng: random.Random, seen: set[Hashable]) -> list[dict[str, object]]:
    names = tuple(PHENOMENA)
    made: list[dict[str, object]] = []
    for index in range(rows):
        name, label = names[index % len(names)], index // len(names) % CHOICES
        make = partial(PHENOMENA[name], rng)
        context, (right, *wrong) = draw_new(make, seen, lambda item: item[0])
        rng.shuffle(wrong)
        choices = [*wrong[:label], right, *wrong[label:]]
        made.append({"context": context, "choices": choices, "label": label, "phenomenon": name})
    rng.shuffle(made)
    return made


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _is(person: str, adjective: str, denied: bool) -> str:
    return f"The {person} is {'not ' if denied else ''}{adjective}."
