"""The sizes that are tried, the largest first; they follow from an adapter's numbers alone.

No torch here.
"""

from __future__ import annotations

from collections.abc import Iterable

SHARES = (0.7, 0.5, 0.3, 0.22, 0.15, 0.11, 0.08, 0.055, 0.04, 0.028, 0.02)
"""Shares of the full rank's parameters that `sora auto` screens: each about 1.4 times the next."""
HEALED_DIVISORS = (2, 4, 8)
"""Each size that `sora prune --heal` tests has the adapter's parameters divided by this."""
MAX_SIZES = 12
"""Sizes of a cut that are tested at most."""
SIZE_RATIO = 0.75
"""Each size's share of the components of the one before."""
COARSE_RATIO = 0.5
"""The same where the largest size is nearly a model's whole difference."""


def smaller_sizes(total: int, ratio: float = SIZE_RATIO) -> list[int]:
    """Return numbers of components below `total`, the largest first.

    Args:
        ratio: each size's share of the one before.
    """
    sizes: list[int] = []
    last = total
    while last > 0 and len(sizes) < MAX_SIZES:
        last = min(int(last * ratio), last - 1)
        sizes.append(last)
    return sizes


def healed_budgets(parameters: int, least: int) -> list[int]:
    """Return the parameters of the sizes that are cut from an adapter and healed.

    Args:
        parameters: of the adapter.
        least: numbers in its smallest component, which no size can do without.
    """
    budgets = [parameters // divisor for divisor in HEALED_DIVISORS]
    return [budget for budget in budgets if budget >= max(least, 1)]


def last_passed(passed: Iterable[bool]) -> int | None:
    """Return the place of the last, and so the smallest, size that passed; None: none did."""
    return max((place for place, one in enumerate(passed) if one), default=None)
