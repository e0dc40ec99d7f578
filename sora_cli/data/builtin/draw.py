"""Random draws without repetition."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeVar

T = TypeVar("T")
_DRAWS = 1000  # draws without a new one before giving up


def itself(drawn: Hashable) -> Hashable:
    """Return the argument (the default key of `draw_new`)."""
    return drawn


def draw_new(
    draw: Callable[[], T], seen: set[Hashable], key: Callable[[T], Hashable] = itself
) -> T:
    """Draw until the key of a draw is not in `seen`, add the key to `seen`, and return the draw.

    Args:
        key: two draws with the same key count as equal.

    Raises:
        ValueError: 1,000 draws brought nothing new.
    """
    for _ in range(_DRAWS):
        drawn = draw()
        if key(drawn) not in seen:
            seen.add(key(drawn))
            return drawn
    raise ValueError("there are too few different rows: ask for fewer")
