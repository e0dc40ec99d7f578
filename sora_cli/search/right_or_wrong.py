"""The drop of a metric whose rows are right or wrong: its bound is exact.

Only the rows that one model alone gets right matter (McNemar's table); `search.paired` has the
mathematics.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from sora_cli.search.statistic import DIFFERING, Bound, Expected, OfRows, mixed

if TYPE_CHECKING:
    from sora_cli.tasks.row_scores import RowScores

_ROUNDING = 1e-6


class RightOrWrong(OfRows):
    """The mean of rows that score 0 or 1, such as accuracy."""

    name = "right or wrong"
    method = (
        " for right-or-wrong rows: Buehler's bound of the paired difference, in the order of "
        "Tango's score (Lloyd and Moldovan 2007)"
    )

    def measures(self, scores: RowScores) -> bool:
        """Return True if each row scores 0 or 1 by definition, and the metric is their mean."""
        return scores.is_right_or_wrong

    def bound(
        self, full: RowScores, small: RowScores, confidence: float, *, seed: int, resamples: int
    ) -> Bound:
        """Return the drop with its upper bound."""
        from sora_cli.search.bca import REASONS
        from sora_cli.search.paired import exact_bound

        del seed, resamples
        if not math.isfinite(self.drop(full, small)):
            return self.result(full, small, None, refused=REASONS["not finite"])
        difference = full.parts[:, 0] - small.parts[:, 0]
        difference = difference if full.greater_is_better else -difference
        lost, won = int((difference > 0).sum()), int((difference < 0).sum())
        return self.result(full, small, exact_bound(lost, won, len(full), confidence))

    def best_case(self, rows: int, confidence: float) -> float | None:
        """Return the drop that is certified if no row differs."""
        return self.smallest(rows, confidence, 0)

    def smallest(self, rows: int, confidence: float, differing: float = DIFFERING) -> float:
        """Return the drop that rows certify if so many differ, half lost and half won."""
        from sora_cli.search.certifiable import certifiable_drop

        return certifiable_drop(rows, differing=differing, confidence=confidence)

    def chance(self, max_drop: float, rows: int, differing: float, confidence: float) -> float:
        """Return the probability that rows certify a drop, if half of those that differ are won."""
        from sora_cli.search.certifiable import chance_by_labels

        return chance_by_labels(max_drop, rows, differing, confidence)

    def expected(
        self, share: float, full: RowScores, small: RowScores, rows: int, confidence: float
    ) -> Expected:
        """Return the expected drop, and what rows can certify if so many of them differ."""
        seen = float(full.differs(small).mean())
        drop, differing = mixed(share, self.drop(full, small), seen, len(full))
        return Expected(drop, self.smallest(rows, confidence, differing))

    def apart(self, full: RowScores, here: Bound, confidence: float, rows: int) -> float:
        """Return the distance of the bounds with fewer lost or more won rows, or more lost rows."""
        from sora_cli.search.paired import exact_bound

        total, differing = len(full), here.differing or 0
        lost, won = _lost_and_won(here.drop, differing, total) or (differing, 0)
        less = min(lost, rows)
        more = min(rows - less, total - lost - won)
        low = exact_bound(lost - less, won + more, total, confidence)
        high = exact_bound(min(lost + rows, total - won), won, total, confidence)
        return max(here.upper - low, high - here.upper)

    def following(self, drop: float, differing: int, rows: int, confidence: float) -> float | None:
        """Return the bound of the lost and won rows; NaN if none give this drop."""
        from sora_cli.search.paired import exact_bound

        counts = _lost_and_won(drop, differing, rows)
        return math.nan if counts is None else exact_bound(*counts, rows, confidence)


def _lost_and_won(drop: float, differing: int, rows: int) -> tuple[int, int] | None:
    """Return the numbers of lost and won rows; None: none give this drop."""
    if not math.isfinite(drop * rows):
        return None
    net = round(drop * rows)
    lost, won = (differing + net) // 2, (differing - net) // 2
    whole = math.isclose(drop * rows, net, rel_tol=_ROUNDING, abs_tol=_ROUNDING)
    if not whole or lost + won != differing or min(lost, won) < 0 or differing > rows:
        return None
    return lost, won
