"""The sizes to try, from the largest to the smallest; no score plays a part. No torch here."""

from __future__ import annotations

from collections.abc import Iterable

SHARES = (0.7, 0.5, 0.3, 0.22, 0.15, 0.11, 0.08, 0.055, 0.04, 0.028, 0.02)
"""Sizes that `sora auto` screens, as shares of full rank's parameters, in ratios of about 0.7."""
HEALED_DIVISORS = (2, 4, 8)
"""Sizes that `sora prune --heal` tests: the adapter's parameters divided by these."""
MAX_SIZES = 12
"""The largest number of sizes that `sora prune` tests by cutting alone."""
SIZE_RATIO = 0.75
"""Components of each size, as a share of the next larger size's."""
COARSE_RATIO = 0.5
"""The same ratio if the largest size is nearly the full difference of two models."""

NEARLY_ALL = 0.99
"""Share of each layer's squared difference that the largest size of `sora extract` keeps."""


def smaller_sizes(total: int, ratio: float = SIZE_RATIO) -> list[int]:
    """Return numbers of components below `total`, from the largest to the smallest."""
    sizes: list[int] = []
    last = total
    while last > 0 and len(sizes) < MAX_SIZES:
        last = min(int(last * ratio), last - 1)
        sizes.append(last)
    return sizes


def healed_budgets(parameters: int, least: int) -> list[int]:
    """Return the numbers of parameters to which an adapter is cut before healing.

    Args:
        parameters: number in the uncut adapter.
        least: numbers in its smallest component; no size is smaller.
    """
    budgets = [parameters // divisor for divisor in HEALED_DIVISORS]
    return [budget for budget in budgets if budget >= max(least, 1)]


def last_passed(passed: Iterable[bool]) -> int | None:
    """Return the index of the last (smallest) size that passed; None: none passed."""
    return max((place for place, one in enumerate(passed) if one), default=None)
