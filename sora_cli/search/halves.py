"""Cross-fitting: a size is trained on each half of the rows and tested on the other half.

The promise is about the mean drop of the two pairs of adapters, and its bound is the mean of the
halves' own bounds. The halves depend on each other, since the rows that test one pair have trained
the other, so their counts must not be added up as one sample. But each half's bound holds by
itself, given the rows that trained its pair. If both hold, so does their mean; and both hold with a
probability of at least 1 minus the sum of their errors, whatever the dependence (Bonferroni).

The sizes are named by screening cuts of both halves. So the rows that test one half have a part in
the choice, through the adapters that they trained. They also decide which size is the first that
breaks the promise by the mean, on which the argument of a fixed sequence rests (`search.search`).
Therefore the error is shared among all sizes that could have been named: the bounds of all of them
hold together, and it does not matter how one of them is chosen. For this, few sizes are screened.
No torch here.
"""

from __future__ import annotations

from typing import Any

from sora_cli.search.sizes import SHARES

HALVES = (1, 2)
HALF_SHARES = SHARES[1::2]
"""Sizes that are screened: every second one, since each more takes a share of the error."""


WHOLE_DATA: dict[str, Any] = {"selection": "validation", "half": None}
"""Values of a data block that trains on all rows: none of them is held out."""


def half_confidence(confidence: float) -> float:
    """Return the confidence of one half's bound of one size."""
    return 1 - (1 - confidence) / (len(HALVES) * len(HALF_SHARES))


def held_data(rows: int, seed: int) -> dict[str, Any]:
    """Return the values of a data block that hold rows out of the training split, as `select`."""
    return {
        "selection": "train-rows", "half": None, "selection_rows": rows, "selection_seed": seed,
    }  # fmt: skip


def half_data(half: int, screening: int, seed: int) -> dict[str, Any]:
    """Return the values of a data block that train on one half; the other half is `select`.

    Args:
        screening: rows that both halves leave out: the same as of `held_data`.
    """
    return {**held_data(screening, seed), "selection": "half-train", "half": half}
