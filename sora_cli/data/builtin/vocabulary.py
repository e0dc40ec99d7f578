"""The words of the built-in entailment set, and the rule for combining them in a sentence.

Every list is dealt into `GROUPS` groups by position. In a training sentence all content words come
from different groups; in a validation sentence all come from one group. So two content words of a
validation sentence never occur together in a training sentence, although each word by itself occurs
in training.
"""

import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


GROUPS = 4
"""Number of groups of words: a quarter of all word pairs is held out."""

PEOPLE = _words(
    "nurse doctor boy girl teacher farmer lawyer singer driver soldier baker king queen artist "
    "sailor judge student priest pilot butler cook guard hunter actor"
)
"""Countable nouns for people; plural with -s."""

TRANSITIVE = _words(
    "followed helped pushed called watched visited kissed chased painted thanked trusted blamed "
    "hired insulted rescued praised"
)
"""Verbs between two people; the past tense is also the participle."""

INTRANSITIVE = _words(
    "danced laughed waited slept smiled cried arrived talked shouted worked left jumped"
)
"""Verbs, in the past tense, that need no object."""

ADJECTIVES = _words("old famous small pretty heavy strange loud clean cold lovely large dirty")
"""Adjectives that fit people, animals and things."""

OPPOSITES = (
    ("awake", "asleep"),
    ("alive", "dead"),
    ("married", "single"),
    ("present", "absent"),
    ("guilty", "innocent"),
    ("healthy", "sick"),
    ("visible", "hidden"),
    ("inside", "outside"),
    ("seated", "standing"),
    ("sober", "drunk"),
    ("right", "wrong"),
    ("wet", "dry"),
)
"""Complementary adjectives: exactly one of the two is true of anybody."""

KINDS = {
    "animal": _words("dog cat horse cow pig lion goat rabbit"),
    "bird": _words("eagle duck parrot owl chicken pigeon crow hawk"),
    "vehicle": _words("car truck bus taxi van tractor bicycle motorcycle"),
    "flower": _words("rose lily tulip daisy orchid violet sunflower iris"),
    "fruit": _words("apple banana lemon cherry orange pear plum grape"),
    "tool": _words("hammer saw drill axe shovel wrench rake chisel"),
    "weapon": _words("gun sword rifle spear dagger pistol bow cannon"),
    "instrument": _words("piano guitar violin flute drum trumpet harp cello"),
}
"""Hypernym -> its hyponyms; all plural with -s (see `plural` for the exceptions)."""


def plural(noun: str) -> str:
    """Return the plural of one of the nouns above."""
    if noun.endswith(("s", "ch", "x")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


class WordPicker:
    """A source of the content words of one sentence pair that respects the split.

    Args:
        rng: source of all randomness.
        held_out: True for validation (all words from one group), False for training (each word from
            another group).
    """

    def __init__(self, rng: random.Random, *, held_out: bool) -> None:
        self.rng = rng
        self._groups = rng.sample(range(GROUPS), GROUPS)
        if held_out:
            self._groups = self._groups[:1] * GROUPS

    def pick(self, words: Sequence[T]) -> T:
        """Draw a word from this sentence's next group (at most `GROUPS` times)."""
        return self.rng.choice(words[self._groups.pop() :: GROUPS])

    def pick_two(self, words: Sequence[T]) -> tuple[T, T]:
        """Draw two different words of one list that may occur together in a sentence."""
        first = self.pick(words)
        rest = [word for word in words[self._groups.pop() :: GROUPS] if word != first]
        return first, self.rng.choice(rest)

    def pick_kind(self) -> tuple[str, str]:
        """Draw a hyponym and its hypernym; they never occur together, so they may share a group."""
        hypernym_group, other = self._groups.pop(), self._groups.pop()
        hypernym = self.rng.choice(tuple(KINDS)[hypernym_group::GROUPS])
        group = self.rng.choice((hypernym_group, other))
        return self.rng.choice(KINDS[hypernym][group::GROUPS]), hypernym
