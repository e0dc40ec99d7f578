"""Multiple choice (`builtin://endings`), by rules: which of four sentences follows from the first?

The four differ in the same ways, whichever is right. So a model that does not see the first
sentence is right in one case of four. The words of the first sentence rule out two of the four, but
not the third.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable
from functools import partial

from sora_cli.data.builtin.draw import draw_new
from sora_cli.data.builtin.vocabulary import KINDS, OPPOSITES, PEOPLE, TRANSITIVE

Item = tuple[str, list[str]]
"""A sentence and four choices; the first choice follows from the sentence."""
CHOICES = 4
_DEALINGS = ("bought", "sold", "lost", "found", "cleaned", "stole", "borrowed", "wanted")
# a bird is an animal, too; an axe is a tool and a weapon
_OVERLAPPING = (("animal", "bird"), ("tool", "weapon"))


def roles(rng: random.Random) -> Item:
    """Make an active sentence and four passive choices that exchange agent, patient or verb."""
    (agent, patient), (verb, other) = rng.sample(PEOPLE, 2), rng.sample(TRANSITIVE, 2)
    asked = [(patient, verb, agent), (agent, verb, patient)]
    asked += [(patient, other, agent), (agent, other, patient)]
    return f"The {agent} {verb} the {patient}.", [
        f"The {a} was {v} by the {b}." for a, v, b in asked
    ]


def kinds(rng: random.Random) -> Item:
    """Make a sentence about two things; the choices name the kind of thing for one of its verbs."""
    person, (verb, other) = rng.choice(PEOPLE), rng.sample(_DEALINGS, 2)
    # one kind of each overlapping pair is left out: otherwise two choices could be right
    left_out = [rng.choice(pair) for pair in _OVERLAPPING]
    wholes = rng.sample([whole for whole in KINDS if whole not in left_out], CHOICES)
    part, distraction = (rng.choice(KINDS[whole]) for whole in wholes[:2])
    deeds = [f"{verb} {_a(part)}", f"{other} {_a(distraction)}"]
    rng.shuffle(deeds)
    text = f"The {person} {deeds[0]} and {deeds[1]}."
    return text, [f"The {person} {verb} {_a(whole)}." for whole in wholes]


def opposites(rng: random.Random) -> Item:
    """Make a sentence with one of two opposites, or its negation, and an equivalent choice."""
    person, (stated, others) = rng.choice(PEOPLE), rng.sample(OPPOSITES, 2)
    first, denied = rng.randrange(2), rng.random() < 0.5
    asked = [stated[1 - first], stated[first], *others]
    return (
        _is(person, stated[first], denied),
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
    """Make the training and validation rows.

    Args:
        train_rows, validation_rows: number of rows of each split.
        seed: the same seed gives the same rows.

    Returns:
        "train" and "validation": shuffled rows with the columns `context`, `choices` (a list of
        four sentences), `label` (the place of the right one, from 0) and `phenomenon`. No context
        occurs twice. All pairs of label and phenomenon are equally frequent, as far as the number
        of rows allows. Chance is 25 %.
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
        # the phenomenon varies fastest, then the label: all pairs of both are equally frequent
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
