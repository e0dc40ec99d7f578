"""Generators of sentence pairs, one for each phenomenon, with the label as an argument.

Each word is equally likely under both labels, in the premise and in the hypothesis. So neither the
hypothesis alone nor the bag of words of both sentences reveals the label.
"""

from collections.abc import Callable

from sora_cli.data.builtin.vocabulary import (
    ADJECTIVES,
    INTRANSITIVE,
    OPPOSITES,
    PEOPLE,
    TRANSITIVE,
    WordPicker,
    plural,
)

Pair = tuple[str, str]
"""Premise and hypothesis."""


def roles(words: WordPicker, entailed: bool) -> Pair:
    """Pair an active with a passive sentence; agent and patient are kept (entailed) or swapped."""
    (agent, patient), verb = words.pick_two(PEOPLE), words.pick(TRANSITIVE)
    # One sentence is always passive, whatever the label: otherwise "passive" is a clue of its own.
    active = f"The {agent} {verb} the {patient}."
    if not entailed:
        agent, patient = patient, agent
    passive = f"The {patient} was {verb} by the {agent}."
    return (active, passive) if words.rng.random() < 0.5 else (passive, active)


def negation(words: WordPicker, entailed: bool) -> Pair:
    """Replace an adjective by its opposite and negate the sentence: both (entailed) or only one."""
    person, opposites = words.pick(PEOPLE), words.pick(OPPOSITES)
    negated, which = words.rng.random() < 0.5, words.rng.randrange(2)

    def sentence(negated: bool, which: int) -> str:
        return f"The {person} is {'not ' if negated else ''}{opposites[which]}."

    premise = sentence(negated, which)
    if entailed:
        return premise, sentence(not negated, 1 - which)
    if words.rng.random() < 0.5:
        return premise, sentence(not negated, which)
    return premise, sentence(negated, 1 - which)


_FORMS = {
    "all": "All {nouns} are {adjective}.",
    "some": "Some {nouns} are {adjective}.",
    "no": "No {nouns} are {adjective}.",
    "not all": "Not all {nouns} are {adjective}.",
}


def quantifiers(words: WordPicker, entailed: bool) -> Pair:
    """Pair quantifiers: "all" entails "some" if the set is not empty, "no" entails "not all"."""
    names = {"nouns": plural(words.pick(PEOPLE)), "adjective": words.pick(ADJECTIVES)}
    strong, weak = words.rng.choice((("all", "some"), ("no", "not all")))
    if not entailed:
        weak = "not all" if weak == "some" else "some"
    return _FORMS[strong].format(**names), _FORMS[weak].format(**names)


def monotonicity(words: WordPicker, entailed: bool) -> Pair:
    """Pair a narrow and a wide noun phrase: "some" entails the wider, "no" the narrower."""
    upward = words.rng.random() < 0.5
    if words.rng.random() < 0.5:
        narrow, wide = (plural(noun) for noun in words.pick_kind())
    else:
        modifier, wide = words.pick(ADJECTIVES), plural(words.pick(PEOPLE))
        narrow = f"{modifier} {wide}"
    verb = words.pick(INTRANSITIVE)
    quantifier = "Some" if upward else "No"
    low, high = f"{quantifier} {narrow} {verb}.", f"{quantifier} {wide} {verb}."
    return (low, high) if entailed == upward else (high, low)


PHENOMENA: dict[str, Callable[[WordPicker, bool], Pair]] = {
    "negation": negation,
    "quantifiers": quantifiers,
    "monotonicity": monotonicity,
    "roles": roles,
}
"""Phenomenon -> its generator."""
