"""Names of people, places and organisations; a quarter of them is held out for validation."""

from __future__ import annotations

import random
from collections.abc import Sequence


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


FIRST = _words(
    "Anna Peter Maria Thomas Laura Daniel Sofia Michael Emma Robert Julia David Clara Martin Helen "
    "Simon Alice Oliver Nora Frank Ruth Walter Irene Hugo Lena Victor Rosa Edgar Ingrid Felix "
    "Miriam Oscar"
)
LAST = _words(
    "Keller Brown Novak Silva Jensen Moreau Rossi Tanaka Murphy Schmidt Larsen Ortega Popov Dubois "
    "Fischer Haddad Nilsson Costa Weber Okafor Lindgren Marino Petrov Bauer Castillo Hansen Duval "
    "Moretti Sato Kelly Romero Vogel"
)
PLACES = (
    *_words("Berlin Lisbon Oslo Toronto Cairo Madrid Vienna Dublin Prague Lima Nairobi Osaka"),
    *_words("Helsinki Warsaw Athens Denver Boston Geneva Havana Milan Quito Hamburg Seville Porto"),
    *("New York", "San Diego", "Cape Town", "Hong Kong", "Buenos Aires", "Tel Aviv", "New Delhi"),
    *("Los Angeles", "Santa Cruz", "Port Louis", "Fort Worth", "Salt Lake City"),
)
_STEMS = _words(
    "Northwind Silverline Bluestone Meridian Redwood Sunrise Ironbridge Greenfield Atlas Falcon "
    "Evergreen Highland Starlight Riverside Summit Lakeside"
)
_ENDS = _words("Energy Bank Airlines Records Foods Motors Insurance Steel Press Pharma")
ORGANISATIONS = tuple(f"{stem} {end}" for stem in _STEMS for end in _ENDS)

AMBIGUOUS = {
    "Jordan": ("PER", "LOC"),
    "Sydney": ("PER", "LOC"),
    "Austin": ("PER", "LOC"),
    "Florence": ("PER", "LOC"),
    "Virginia": ("PER", "LOC"),
    "Georgia": ("PER", "LOC"),
    "Charlotte": ("PER", "LOC"),
    "Paris": ("PER", "LOC"),
    "Lincoln": ("PER", "LOC", "ORG"),
    "Washington": ("PER", "LOC"),
    "Amazon": ("LOC", "ORG"),
    "Columbia": ("LOC", "ORG"),
    "Phoenix": ("LOC", "ORG"),
    "Victoria": ("PER", "LOC", "ORG"),
    "Ford": ("PER", "ORG"),
    "Morgan": ("PER", "ORG"),
    "Wells": ("PER", "LOC", "ORG"),
    "Mercedes": ("PER", "ORG"),
}
"""Name -> its possible kinds."""


def draw(kind: str, rng: random.Random, *, held_out: bool) -> str:
    """Draw a name of a person (PER), a place (LOC) or an organisation (ORG).

    Args:
        kind: "PER", "LOC" or "ORG".
        rng: source of all randomness.
        held_out: draw from the held-out quarter of names; otherwise from the other three. For a
            person this holds for first and last name, for an organisation for the first of its two
            words.
    """
    if kind == "PER":
        first, last = _part(FIRST, held_out=held_out), _part(LAST, held_out=held_out)
        shape = rng.randrange(3)
        if shape == 0:
            return rng.choice(first)
        return f"{rng.choice(first)} {rng.choice(last)}"
    if kind == "LOC":
        return rng.choice(_part(PLACES, held_out=held_out))
    return f"{rng.choice(_part(_STEMS, held_out=held_out))} {rng.choice(_ENDS)}"


def _part(values: Sequence[str], *, held_out: bool) -> list[str]:
    """Return every fourth value (held out), or all other values."""
    return [value for index, value in enumerate(values) if (index % 4 == 3) == held_out]
