"""Short texts with questions (`builtin://passages`), in SQuAD's columns, made by rules.

A text states facts about two people or two companies in random order, with unrelated sentences
between them. A question asks for one fact about one of the two, in other words than the text.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from sora_cli.data.builtin import names
from sora_cli.data.builtin.draw import draw_new

MOST_SENTENCES, LEAST_SENTENCES = 8, 2


@dataclass(frozen=True)
class Fact:
    """A kind of fact: its sentences, its questions and its possible values."""

    sentences: tuple[str, ...]
    questions: tuple[str, ...]
    values: Sequence[str]


def _split(text: str) -> tuple[str, ...]:
    return tuple(text.split(", "))


_YEARS = tuple(str(year) for year in range(1901, 2000))
_PLACES = names.PLACES
PERSON = (
    Fact(
        ("{s} was born in {v} as the youngest of three children.", "The birthplace of {s} is {v}."),
        ("Where was {s} born?", "In which city did the life of {s} begin?"),
        _PLACES,
    ),
    Fact(
        ("{s} came to the world in {v}, a cold year.", "In {v} the parents of {s} had a baby."),
        ("When was {s} born?", "In what year was {s} born?"),
        _YEARS,
    ),
    Fact(
        ("{s} earns a living as a {v}.", "By profession {s} is a {v}, and a good one."),
        ("What is the job of {s}?", "What does {s} work as?"),
        _split(
            "nurse, baker, judge, farmer, pilot, tailor, dentist, carpenter, librarian, gardener, "
            "history teacher, train driver, wedding photographer, sound engineer"
        ),
    ),
    Fact(
        ("Most evenings {s} plays the {v}.", "{s} took lessons on the {v} for nine years."),
        ("Which instrument does {s} play?", "What can {s} play?"),
        _split("piano, violin, cello, flute, harp, trumpet, bass guitar, church organ, oboe, drum"),
    ),
    Fact(
        ("At home {s} keeps a {v}.", "The best friend of {s} is a {v} that sleeps all day."),
        ("Which pet does {s} have?", "What animal lives with {s}?"),
        _split(
            "grey parrot, black cat, rabbit, small turtle, old dog, hamster, white goat, lizard"
        ),
    ),
    Fact(
        ("For dinner {s} likes {v} best.", "Nobody cooks {v} as often as {s} does."),
        ("What does {s} like to eat?", "What is the favourite dish of {s}?"),
        _split(
            "onion soup, fried rice, lentil stew, apple pie, grilled fish, mushroom risotto, "
            "potato salad, roast duck, noodles, pancakes"
        ),
    ),
)
COMPANY = (
    Fact(
        ("{s} has its main office in {v}.", "Since the war {s} has been based in {v}."),
        ("Where is the headquarters of {s}?", "In which city does {s} sit?"),
        _PLACES,
    ),
    Fact(
        ("{s} was set up in {v} with very little money.", "The history of {s} begins in {v}."),
        ("When was {s} founded?", "In what year did {s} start?"),
        _YEARS,
    ),
    Fact(
        ("At first {s} made only {v}.", "The first product of {s} was {v}, which sold well."),
        ("What did {s} produce in the beginning?", "What was sold first by {s}?"),
        _split(
            "bicycles, wooden toys, glass bottles, leather shoes, steam engines, paper bags, "
            "radios, kitchen knives, fishing nets, umbrellas"
        ),
    ),
    Fact(
        ("Today {v} people work for {s}.", "{s} employs {v} men and women."),
        ("How many workers does {s} have?", "How large is the staff of {s}?"),
        _split("40, 75, 120, 260, 380, 450, 800, 1,500, 2,300, 3,600, 9,000, 12,000"),
    ),
    Fact(
        ("The colour of the logo of {s} is {v}.", "Every truck of {s} is painted {v}."),
        ("Which colour does {s} use?", "What colour stands for {s}?"),
        _split("dark red, sky blue, orange, bright green, purple, yellow, silver, pink"),
    ),
    Fact(
        ("The head of {s} is {v}.", "{v} has led {s} through two hard years."),
        ("Who runs {s}?", "Who is the boss of {s}?"),
        tuple(f"{a} {b}" for a, b in zip(names.FIRST, reversed(names.LAST), strict=True)),
    ),
)
_FILLERS = (
    "Not much more is known about those early times, since the archive of the town burnt down.",
    "The local newspaper printed a long article about it, together with a large photograph.",
    "Many visitors who come in summer ask about this, and they usually get a friendly answer.",
    "Some neighbours tell the story in another way, but nobody has ever found a proof of that.",
    "It rained a lot in those years, and the road over the hill was closed for weeks at a time.",
    "A short film about it was shown at school, but most of the pupils fell asleep before the end.",
    "People still talk about it when they sit together at the long table in front of the inn.",
)


def load_passages(
    *, train_rows: int = 800, validation_rows: int = 200, seed: int = 0
) -> dict[str, list[dict[str, object]]]:
    """Make the training and validation rows.

    Args:
        train_rows, validation_rows: number of rows of each split.
        seed: the same seed gives the same rows.

    Returns:
        "train" and "validation": rows with the columns `id`, `title`, `context`, `question` and
        `answers`: one text in "text", its first character in "answer_start". Contexts have 2 to 8
        sentences, and no context occurs twice. Answering with a random fact of the context is right
        in about one of four cases.
    """
    rng, seen = random.Random(f"{seed}/passages"), set[Hashable]()
    return {
        split: [
            draw_new(partial(_make_row, f"{split}-{i}", rng), seen, lambda row: row["context"])
            for i in range(rows)
        ]
        for split, rows in (("train", train_rows), ("validation", validation_rows))
    }


_THEMES: tuple[tuple[tuple[Fact, ...], Callable[[random.Random], str]], ...] = (
    (PERSON, lambda rng: f"{rng.choice(names.FIRST)} {rng.choice(names.LAST)}"),
    (COMPANY, lambda rng: rng.choice(names.ORGANISATIONS)),
)


def _make_row(name: str, rng: random.Random) -> dict[str, Any]:
    facts, subject_of = rng.choice(_THEMES)
    used: set[Hashable] = set()
    subjects = [draw_new(partial(subject_of, rng), used) for _ in range(2)]
    length = rng.randint(LEAST_SENTENCES, MOST_SENTENCES)
    stated = rng.randint(min(length, 2), min(length, 6))
    # The fact in question comes first, then the same kind of fact about the other subject: the
    # kind of the answer alone must not reveal the answer.
    asked, *others = rng.sample(facts, len(facts))
    rest = [(subjects[1], asked), *((s, fact) for fact in others for s in subjects)]
    chosen = [(subjects[0], asked), rest[0], *rng.sample(rest[1:], stated - 2)]
    answer, sentences = _sentences(chosen, rng)
    fillers = rng.sample(_FILLERS, min(length - stated, len(_FILLERS)))
    sentences += [(filler, -1) for filler in fillers]
    rng.shuffle(sentences)
    place = next(index for index, (_, start) in enumerate(sentences) if start >= 0)
    start = sum(len(sentence) + 1 for sentence, _ in sentences[:place]) + sentences[place][1]
    return {
        "id": name,
        "title": " and ".join(sorted(subjects)),
        "context": " ".join(sentence for sentence, _ in sentences),
        "question": rng.choice(asked.questions).format(s=subjects[0]),
        "answers": {"text": [answer], "answer_start": [start]},
    }


def _sentences(
    chosen: Sequence[tuple[str, Fact]], rng: random.Random
) -> tuple[str, list[tuple[str, int]]]:
    """Return the first fact's value, and each sentence with that value's place (-1: none)."""
    used: set[str] = set()
    sentences, answer = [], ""
    for subject, fact in chosen:
        value = rng.choice([value for value in fact.values if value not in used])
        used.add(value)
        form = rng.choice(fact.sentences)
        start = -1
        if not answer:
            answer = value
            start = len(form.partition("{v}")[0].format(s=subject))
        sentences.append((form.format(s=subject, v=value), start))
    return answer, sentences
