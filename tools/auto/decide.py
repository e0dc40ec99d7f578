"""Take the decisions of `sora auto` on stored scores, by the same functions.

Nothing is trained: the scores of all sizes are stored. A split says which rows are screening rows
and which are test rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from sora_cli.search.evidence import Screened
from sora_cli.search.screening import Cuts, PlannedSize, name_sizes, screen
from sora_cli.search.search import in_fixed_order
from sora_cli.search.size import Size
from sora_cli.search.sizes import last_passed
from sora_cli.search.statistic import Bound
from sora_cli.search.statistics import drop_bound, statistic_of
from sora_cli.tasks.row_scores import RowScores
from tools.auto.stored import FULL, UNCUT, Stored

SIZES = 2
"""Sizes that are trained at most: the default of `auto.sizes`."""
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Setting:
    """The numbers of screening and test rows, and the way they are drawn from the pool.

    Attributes:
        with_replacement: True: each row is drawn independently from the whole pool, so the drop on
            the pool is exactly the drop that the certificate bounds. False: the two parts of a
            split share no row.
        resamples: number of resamples of approximate bounds.
    """

    screening: int
    test: int
    with_replacement: bool = True
    resamples: int = 1000


@dataclass(frozen=True)
class Decision:
    """The outcome of one run.

    Attributes:
        certified: True if the written size passed its test.
        size: index of the written size, from the largest.
        tested: number of sizes that were tested.
    """

    certified: bool
    size: int
    tested: int


@dataclass
class Split:
    """One draw of screening and test rows, with the results computed on it so far.

    Attributes:
        screening, test: indices of the rows in the pool.
        number: number of the split; it seeds the resamples.
        screened: screening results of all sizes.
        bounds: bound of each model that was tested.
    """

    screening: np.ndarray
    test: np.ndarray
    number: int
    screened: list[Screened] = field(default_factory=list)
    bounds: dict[str, Bound] = field(default_factory=dict)


class Pool:
    """The stored scores of one training run: the population of all random splits."""

    def __init__(self, stored: Stored, setting: Setting) -> None:
        self.stored, self.setting = stored, setting
        self._full = _size(stored.full)
        self._planned = [PlannedSize(s.share, s.max_params, {}) for s in stored.sizes]
        self._cuts = [_size(s.cut) for s in stored.sizes]
        full = stored.scores[FULL]
        self._statistic = statistic_of(full)
        self.bound_method = self._statistic.method_on(
            setting.test, CONFIDENCE, rows_alone=full.rows_alone
        )
        self.drops = [self.drop(f"healed-{number}") for number in range(len(stored.sizes))]

    def drop(self, model: str, rows: np.ndarray | None = None) -> float:
        """Return the drop of a model against full rank, on some rows (None: on all)."""
        full, small = self.stored.scores[FULL], self.stored.scores[model]
        if rows is not None:
            full, small = full.take(rows), small.take(rows)
        return self._statistic.drop(full, small)

    def split(self, number: int) -> Split:
        """Draw the rows of a split; equal numbers give equal splits."""
        setting, stored = self.setting, self.stored
        # the same rows for every promise, so that promises are compared on the same splits
        rng = np.random.default_rng((stored.seed, number))
        if setting.with_replacement:
            screening = rng.integers(stored.screening, size=setting.screening)
            test = rng.integers(stored.rows, size=setting.test)
            return Split(screening, test, number)
        screening = rng.permutation(stored.screening)[: setting.screening]
        others = np.setdiff1d(np.arange(stored.rows), screening, assume_unique=True)
        return Split(screening, rng.permutation(others)[: setting.test], number)

    def decide(self, split: Split, promise: float) -> Decision:
        """Return the outcome of a run with these rows and this promise."""
        if not split.screened:  # screening does not depend on the promise
            split.screened = self._screened(split.screening)
        may_pass = self.bound_method.may_pass(promise)
        named = name_sizes(
            split.screened, self._full, promise, SIZES, None, self._statistic, tested=may_pass
        )

        def test(number: int) -> Bound | None:
            return self.bound(f"healed-{number}", split) if may_pass else None

        tried = [*in_fixed_order(named, lambda number: number, test, promise)]
        passed = last_passed(bound is not None and bound.kept for _, bound in tried)
        return Decision(passed is not None, tried[passed or 0][0], len(tried))

    def _screened(self, rows: np.ndarray) -> list[Screened]:
        unhealed = self.stored.unhealed
        names = [f"cut-{number}" for number in range(len(self._planned))]
        small = [unhealed[name].take(rows) for name in names]
        cuts = Cuts(self._full, unhealed[UNCUT].take(rows), self._planned, self._cuts, small)
        return screen(cuts, test_rows=self.setting.test, confidence=CONFIDENCE)

    def bound(self, model: str, split: Split) -> Bound:
        """Return the bound of a model's drop on a split's test rows, computed once per split."""
        bound = split.bounds.get(model)
        if bound is None:
            full, small = (self._on(split, name) for name in (FULL, model))
            bound = drop_bound(
                full, small, CONFIDENCE, seed=split.number, resamples=self.setting.resamples
            )
            split.bounds[model] = bound
        return bound

    def _on(self, split: Split, model: str) -> RowScores:
        return self.stored.scores[model].take(split.test)


def _size(three: tuple[int, int, int]) -> Size:
    parameters, components, largest = three
    return Size(
        parameters=parameters, components=components, largest_rank=largest, served=parameters
    )
