"""The share of rows that two models answer differently: no label is needed, and the bound is exact.

Where a row is right or wrong, the share also bounds the drop of the metric: a model can lose no
more rows than it answers differently. That bound is conservative: rows that are won, or wrong
before and after, count as lost all the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from sora_cli.recipe.tolerance import AGREEMENT
from sora_cli.search.statistic import (
    DIFFERING,
    FULL_RANK,
    POWER,
    Bound,
    Expected,
    Nouns,
    OfRows,
    mixed,
)

if TYPE_CHECKING:
    from sora_cli.search.promise import Promise
    from sora_cli.tasks.row_scores import RowScores


class DifferingAnswers(OfRows):
    """The share of rows that are answered differently."""

    name = "differing answers"
    method = " for answers: the binomial bound of the share that differs (Clopper and Pearson 1934)"
    metric = AGREEMENT

    def measures(self, scores: RowScores) -> bool:
        """Return True for answers, which mean something only beside another model's."""
        return scores.is_agreement

    def drop(self, full: RowScores, small: RowScores) -> float:
        """Return the share of rows that differ."""
        return float(full.differs(small).mean())

    def score(self, full: RowScores, small: RowScores) -> float:
        """Return the share of rows on which a model agrees with the reference."""
        return 1 - self.drop(full, small)

    def drop_between(self, full: float, score: float, promise: Promise) -> float:
        """Return the drop from two shares, whatever metric the recipe has."""
        del promise
        return full - score

    def bound(
        self, full: RowScores, small: RowScores, confidence: float, *, seed: int, resamples: int
    ) -> Bound:
        """Return the share that differs, with its upper bound."""
        from sora_cli.search.binomial import share_bound

        del seed, resamples
        differing = int(full.differs(small).sum())
        return self.result(full, small, share_bound(differing, len(full), confidence))

    def lower(
        self, test: Bound, rows: int, confidence: float, exchanged: Callable[[], Bound]
    ) -> float | None:
        """Return the lower bound of the share: 1 less the upper bound of the rows that agree."""
        from sora_cli.search.binomial import share_bound

        del exchanged  # the share is the same
        return 1 - share_bound(rows - (test.differing or 0), rows, confidence)

    def best_case(self, rows: int, confidence: float) -> float | None:
        """Return the share that is certified if no row differs."""
        from sora_cli.search.binomial import share_bound

        return share_bound(0, rows, confidence)

    def smallest(self, rows: int, confidence: float, differing: float = DIFFERING) -> float:
        """Return the share that rows certify if so many differ."""
        from sora_cli.search.binomial import certifiable_share

        return certifiable_share(rows, differing, confidence, POWER)

    def chance(self, max_drop: float, rows: int, differing: float, confidence: float) -> float:
        """Return the probability that rows certify a share."""
        from sora_cli.search.binomial import chance_by_answers

        return chance_by_answers(max_drop, rows, differing, confidence)

    def expected(
        self, share: float, full: RowScores, small: RowScores, rows: int, confidence: float
    ) -> Expected:
        """Return the share that is expected to differ, and what it leaves to the promise."""
        seen = self.drop(full, small)
        # the drop is the differing share itself, and not half of it
        drop, _ = mixed(share, seen, seen, len(full), worth=2.0)
        certified = self.smallest(rows, confidence, drop)
        return Expected(drop, certified - drop)

    def places(self, safe: int, liked: int, most: int) -> Sequence[int]:
        """Return the neighbours of the safe size: healing wins no answers back."""
        neighbours = [max(safe - 1, 0), max(safe, liked)]
        return [safe] if most == 1 else neighbours if most == 2 else [*neighbours, safe]

    def apart(self, full: RowScores, here: Bound, confidence: float, rows: int) -> float:
        """Return the distance of the bounds with so many more or fewer differing rows."""
        from sora_cli.search.binomial import share_bound

        total, differing = len(full), here.differing or 0
        ends = (max(differing - rows, 0), min(differing + rows, total))
        return max(abs(share_bound(end, total, confidence) - here.upper) for end in ends)

    def differing(self, drop: float, stored: int, rows: int) -> int:
        """Return the number of rows that a share is of: the score says how many differ."""
        return round(drop * rows) if math.isfinite(drop) else stored

    def following(self, drop: float, differing: int, rows: int, confidence: float) -> float | None:
        """Return the bound of a number of differing rows."""
        from sora_cli.search.binomial import share_bound

        del drop
        return share_bound(differing, rows, confidence)

    def nouns(self, promise: Promise, reference: str = FULL_RANK) -> Nouns:
        """Return the words about a share, or about a drop that it bounds."""
        if promise.kind == "drop":
            words = replace(
                super().nouns(promise, reference),
                because="at most {} of the answers differ",
                axis=f"differing answers: the largest drop of {promise.metric}",
            )
            return _counted(words, promise)
        those = "those at full rank" if reference == FULL_RANK else f"{reference}'s"
        share, verb = f"{100 * promise.max_drop:g} %", promise.differ
        words = Nouns(
            promised=f"at most {share} of the {promise.compared} {verb}",
            end=f" from {those}",
            may=f"up to {{}} of the {promise.compared} may {verb}",
            tolerated=share,
            loss="share",
            percent=True,
            axis=f"{promise.compared} that {verb} from {reference}'s",
        )
        return _counted(words, promise)


def _counted(words: Nouns, promise: Promise) -> Nouns:
    """Return words that tell how many rows differ."""
    return replace(
        words,
        counts=True,
        things=promise.compared,
        differ=promise.differ,
        column="differ",
        form=".2%",
        labels=False,
    )
