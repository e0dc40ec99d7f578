"""Draws that never give the same thing twice."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeVar

T = TypeVar("T")
_DRAWS = 1000  # in vain, before there is taken to be nothing new left


def itself(drawn: Hashable) -> Hashable:
    """Return what was drawn."""
    return drawn


def draw_new(
    draw: Callable[[], T], seen: set[Hashable], key: Callable[[T], Hashable] = itself
) -> T:
    """Draw until something is new, and add it to what was seen.

    Args:
        key: what tells two draws apart.

    Raises:
        ValueError: nothing new came of many draws.
    """
    for _ in range(_DRAWS):
        drawn = draw()
        if key(drawn) not in seen:
            seen.add(key(drawn))
            return drawn
    raise ValueError("there are not that many different ones: ask for fewer rows")
