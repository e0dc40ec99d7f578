"""The drop of any other metric: its bound is approximate, and holds for many rows.

If the models differ on few rows, the bootstrap of `search.bca` is refused, and the worst case of
`search.few` takes its place: it needs no spread, only the number of differing rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sora_cli.search.statistic import (
    FEWEST_DIFFERING,
    FEWEST_ROWS,
    POWER,
    STEP,
    Bound,
    Expected,
    Statistic,
    mixed,
)

if TYPE_CHECKING:
    from sora_cli.tasks.row_scores import RowScores

TESTABLE = 1.5 * FEWEST_DIFFERING
"""Test rows that are expected to differ for a size to get a bound of many rows."""


class AnyMetric(Statistic):
    """A metric that can be computed on any rows: F1, correlations, losses, scores of texts."""

    name = "metric"
    method = ": BCa bootstrap over whole rows (Efron 1987)"
    fewest = FEWEST_ROWS

    def measures(self, scores: RowScores) -> bool:
        """Return True: every metric has scores by row."""
        del scores
        return True

    def bound(
        self, full: RowScores, small: RowScores, confidence: float, *, seed: int, resamples: int
    ) -> Bound:
        """Return the drop with its upper bound, or with the reason for having none."""
        from sora_cli.search.bca import BootstrapRefusedError, bca_bound
        from sora_cli.search.few import few_rows_bound

        try:
            upper = bca_bound(full, small, confidence, seed=seed, resamples=resamples)
            return self.result(full, small, upper)
        except BootstrapRefusedError as error:
            few = error.reason == "few rows differ"
            none = self.result(full, small, None, refused=str(error), passed_over=few)
        worst = few_rows_bound(full, none.differing or 0, confidence) if few else None
        if worst is None:
            return none
        least = few_rows_bound(full, 0, confidence)
        coarse = {"upper": worst, "least": least, "refused": None, "passed_over": False}
        return none.model_copy(update=coarse)

    def beside(
        self, full: RowScores, small: RowScores, rows: int, confidence: float
    ) -> float | None:
        """Return the drop that rows can certify, by the spread of each row's influence on it."""
        from scipy.special import ndtri

        from sora_cli.search.bca import influences

        # the drop is asymptotically normal with standard error spread / sqrt(rows)
        spread = float(influences(full, small).std(ddof=1))
        return float(ndtri(confidence) + ndtri(POWER)) * spread / math.sqrt(rows)

    def expected(
        self, share: float, full: RowScores, small: RowScores, rows: int, confidence: float
    ) -> Expected:
        """Return the expected figures; with a worst answer known for each row, the drop, too."""
        from scipy.stats import binom

        from sora_cli.search.bca import influences
        from sora_cli.search.few import few_rows_bound
        from sora_cli.search.worst import has_worst

        certifiable = self.beside(full, small, rows, confidence)
        if not (certifiable is not None and math.isfinite(certifiable) and certifiable > 0):
            certifiable = None  # screening cannot tell
        drop, seen = None, float(full.differs(small).mean())
        differing = seen
        if has_worst(full):
            # the spread of the influences per differing row; about 1 for accuracy
            worth = float(influences(full, small).std()) / math.sqrt(seen) if seen else 0.0
            drop, differing = mixed(share, self.drop(full, small), seen, len(full), worth)
        # too few test rows would differ for the bootstrap: the worst-case bound then applies
        if rows * differing < TESTABLE or not seen:
            most = int(binom.ppf(POWER, rows, differing))
            certifiable = few_rows_bound(full, most, confidence, rows=rows)
        elif certifiable is not None:
            # the spread, and with it the bound, grows with the root of the share of differing rows
            certifiable *= math.sqrt(differing / seen)
        return Expected(drop, certifiable, rows * differing)

    def places(self, safe: int, liked: int, most: int) -> Sequence[int]:
        """Return a larger size, the safe one and bolder ones: few pass by their drop alone."""
        del liked
        above = [max(safe - STEP, 0)] if most > 1 else []
        return [*above, safe, *(safe + STEP * n for n in range(1, most))]

    def apart(self, full: RowScores, here: Bound, confidence: float, rows: int) -> float:
        """Return how far the rows move the drop, and its squared error by their squares.

        With few differing rows, as many more or fewer differ.
        """
        from scipy.special import ndtri

        from sora_cli.search.few import few_rows_bound

        total, differing = len(full), here.differing or 0
        if _is_coarse(here):
            ends = (max(differing - rows, 0), min(differing + rows, total))
            bounds = [few_rows_bound(full, end, confidence) for end in ends]
            return max((abs(b - here.upper) for b in bounds if b is not None), default=0.0)
        one_row = max(1.0, abs(full.value)) / total
        margin = here.upper - here.drop
        # the bound is about drop + z * s; each turned row changes the drop by one_row at most
        left = margin**2 - rows * (float(ndtri(confidence)) * one_row) ** 2
        return rows * one_row + margin - math.sqrt(max(left, 0.0))

    def comparable(self, one: Bound, other: Bound) -> bool:
        """Return True if both bounds are those of few differing rows, or of many."""
        return super().comparable(one, other) and _is_coarse(one) == _is_coarse(other)


def _is_coarse(bound: Bound) -> bool:
    """Return True if the bound is that of few differing rows, which has another formula."""
    return (bound.differing or 0) < FEWEST_DIFFERING
