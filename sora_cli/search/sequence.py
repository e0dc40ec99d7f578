"""Tests of several sizes, the largest first, that are wrong together as seldom as one test is.

The order is fixed before a test row is scored, and the first failure ends it. A size that breaks
the promise can be certified only if every larger one was, and the first in the order that breaks
it had to pass its own test, which happens with at most 1 - confidence: no correction for the number
of sizes is needed. Source: Maurer, Hothorn and Lehmacher 1995; Wiens 2003, Pharmaceutical
Statistics 2, 211-215. A size that differs from the whole on few rows is passed over where no such
size could pass. Which sizes these are follows from how many rows differ, and not from what they
lose: the first size that breaks the promise and is not passed over must still pass its own test.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np

from sora_cli.recipe.tolerance import CONFIDENCE
from sora_cli.search.bounds import Bound, drop_bound

if TYPE_CHECKING:
    from sora_cli.tasks.row_scores import RowScores

Size = TypeVar("Size")


@dataclass(frozen=True)
class Trial(Generic[Size]):
    """A size that was tested.

    Attributes:
        size: what the caller calls it.
        bound: its drop against the whole.
        passed: whether the bound is within the promise.
        passed_over: whether so few rows differ that it could not be.
    """

    size: Size
    bound: Bound
    passed: bool
    passed_over: bool

    @property
    def failed(self) -> bool:
        """True if it ends the testing."""
        return not self.passed and not self.passed_over


@dataclass(frozen=True)
class Outcome(Generic[Size]):
    """The result of tests in a fixed order.

    Attributes:
        tested: in order; all but the last passed or were passed over, and the last as well if no
            size was left.
        promise: the largest drop allowed.
        confidence: of each bound, and of all of them together.
    """

    tested: tuple[Trial[Size], ...]
    promise: float
    confidence: float

    @property
    def chosen(self) -> Trial[Size] | None:
        """The smallest size that passed; None: not even the largest did."""
        passed = [test for test in self.tested if test.passed]
        return passed[-1] if passed else None

    @property
    def failed(self) -> Trial[Size] | None:
        """The size that ended the testing; None: none failed."""
        return next((test for test in self.tested if test.failed), None)


def in_fixed_order(
    full: RowScores,
    sizes: Iterable[Size],
    scores: Callable[[Size], RowScores],
    promise: float,
    confidence: float = CONFIDENCE,
    *,
    seed: int = 0,
) -> Outcome[Size]:
    """Test sizes, the largest first, until one fails.

    Args:
        full: scores of the whole on the test rows.
        sizes: the largest first; which they are must not depend on these rows.
        scores: called for a size when it is tested, and for none after the first that fails.
        promise: the largest drop allowed, in the metric's unit.
        seed: of the resamples, the same for each size.
    """
    tested: list[Trial[Size]] = []
    for size in sizes:
        bound = drop_bound(full, scores(size), confidence, seed=seed)
        tested.append(Trial(size, bound, bound.keeps(promise), bound.passes_over(promise)))
        if tested[-1].failed:
            break
    return Outcome(tuple(tested), promise, confidence)


def part_rows(rows: int, seed: int, *, screening: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Part row numbers by a seed into those that screen sizes and those that test them, sorted.

    Args:
        rows: how many there are.
        screening: the share of the first part; both get a row at least, if there are two.
    """
    order = np.random.default_rng(seed).permutation(rows)
    first = min(max(round(rows * screening), 1), max(rows - 1, 1))
    return np.sort(order[:first]), np.sort(order[first:])
