"""The drop of a metric whose rows are right or wrong, with labels for the rows that differ alone.

On a row that both models answer alike no label matters, so a person labels only the others. Rows
without a label count as lost; the bound is exact for any number of them (`search.paired`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

from sora_cli.recipe.tolerance import AGREEMENT
from sora_cli.search.promise import LABELS
from sora_cli.search.statistic import (
    DIFFERING,
    FULL_RANK,
    Bound,
    Expected,
    Labelled,
    Nouns,
    OfRows,
    mixed,
)

if TYPE_CHECKING:
    import numpy as np

    from sora_cli.search.promise import Promise
    from sora_cli.tasks.row_scores import RowScores

NEED_SECOND = 0.1
"""Share of labels that were neither model's from which on these rows need a second label."""


@dataclass(frozen=True)
class AskedLabels(OfRows):
    """The lost rows less the won ones, of rows whose labels are asked for where answers differ.

    Attributes:
        labels: the largest number of rows to label.
    """

    labels: int = LABELS

    name = "asked labels"
    method = (
        " for right-or-wrong rows with labels where answers differ: Buehler's bound of the paired "
        "difference, in the order of Tango's score (Lloyd and Moldovan 2007); rows without a label "
        "count as lost"
    )
    metric = AGREEMENT

    def measures(self, scores: RowScores) -> bool:
        """Return True for answers beside the labels of a person."""
        from sora_cli.tasks.row_scores import ASKED  # numpy, which help pages do without

        return scores.formula == ASKED

    def about(self, promise: Promise) -> Self:
        """Return the statistic with the promise's largest number of labels."""
        return replace(self, labels=promise.labels or LABELS)

    def drop(self, full: RowScores, small: RowScores) -> float:
        """Return the drop; rows without a label count as lost."""
        return _drop(counted(full, small), len(full))

    def score(self, full: RowScores, small: RowScores) -> float:
        """Return the share of rows on which a model agrees with the reference."""
        return 1 - float(full.differs(small).mean())

    def bound(
        self, full: RowScores, small: RowScores, confidence: float, *, seed: int, resamples: int
    ) -> Bound:
        """Return the drop with its upper bounds, and the counts that they follow from."""
        del seed, resamples
        counts = counted(full, small)
        strict = bound_of(counts.strictly, len(full), confidence)
        upper = bound_of(counts, len(full), confidence)
        counts = counts.model_copy(update={"strict": strict})
        return self.result(full, small, upper, labelled=counts)

    def lower(
        self, test: Bound, rows: int, confidence: float, exchanged: Callable[[], Bound]
    ) -> float | None:
        """Return the lower bound of the drop; rows without a label count as won."""
        del exchanged
        counts = test.labelled
        assert counts is not None
        turned = counts.model_copy(update={"lost": counts.won, "won": counts.lost})
        return -bound_of(turned, rows, confidence)

    def best_case(self, rows: int, confidence: float) -> float | None:
        """Return the drop that is certified if no row differs."""
        from sora_cli.search.paired import exact_bound

        return exact_bound(0, 0, rows, confidence)

    def smallest(self, rows: int, confidence: float, differing: float = DIFFERING) -> float:
        """Return the drop that rows certify if so many differ, as far as the labels reach."""
        from sora_cli.search.certifiable import certifiable_drop

        reached = max(min(rows, int(self.labels / max(differing, 1e-9))), 1)
        return certifiable_drop(reached, differing=differing, confidence=confidence)

    def chance(self, max_drop: float, rows: int, differing: float, confidence: float) -> float:
        """Return the probability that rows certify a drop, if half of those that differ are won."""
        from sora_cli.search.certifiable import chance_by_labels

        return chance_by_labels(max_drop, rows, differing, confidence)

    def expected(
        self, share: float, full: RowScores, small: RowScores, rows: int, confidence: float
    ) -> Expected:
        """Return the drop before healing if half of the differing rows are lost, and its bound.

        Few labels should be spent on a test that nearly surely passes, and most answers that change
        may be lost ones. So it is planned as if all of them were, of the largest share of rows that
        is likely to differ.
        """
        from sora_cli.search.certifiable import drop_if_lost

        seen, screening = int(full.differs(small).sum()), len(full)
        drop = expected_share(share, seen / screening, screening) / 2
        most = largest_share(seen, screening)
        reached = max(min(rows, int(self.labels / most)), 1)
        return Expected(drop, drop_if_lost(reached, most, confidence) - drop)

    def apart(self, full: RowScores, here: Bound, confidence: float, rows: int) -> float:
        """Return the distance of the bounds with fewer lost or more lost and unlabelled rows."""
        total, counts = len(full), here.labelled
        assert counts is not None
        less = min(counts.lost, rows)
        better = {"lost": counts.lost - less, "missing": max(counts.missing - rows + less, 0)}
        more = min(rows, total - counts.differing)
        low = bound_of(counts.model_copy(update=better), total, confidence)
        worse = counts.model_copy(update={"missing": counts.missing + more})
        high = bound_of(worse, total, confidence)
        return max(here.upper - low, high - here.upper)

    def followed(self, test: Bound, full: float, rows: int, promise: Promise) -> Bound:
        """Return a test with drop, differing rows and bounds as they follow from the counts."""
        del full
        counts, sure = test.labelled, promise.confidence
        assert counts is not None
        strict = bound_of(counts.strictly, rows, sure)
        known = {
            "drop": _drop(counts, rows),
            "differing": round((1 - test.score) * rows),
            "upper": bound_of(counts, rows, sure),
            "labelled": counts.model_copy(update={"strict": strict}),
        }
        return test.model_copy(update=known)

    def nouns(self, promise: Promise, reference: str = FULL_RANK) -> Nouns:
        """Return the words about a drop on rows that had no labels."""
        return replace(super().nouns(promise, reference), labels=False)

    def remark(self, test: Bound, promise: Promise) -> str:
        """Return the labels behind a bound, and whether it rests on those of neither model."""
        counts = test.labelled
        if counts is None:
            return ""
        text = f"{counts.differing} rows differ: {counts.lost} lost, {counts.won} won"
        parts = {
            "neither": counts.neither,
            "without a label": counts.missing,
            "with two labels that disagree": counts.disagree,
        }
        text += "".join(f", {number} {what}" for what, number in parts.items() if number)
        if counts.missing or counts.disagree:
            text += "; rows without an agreed label count as lost"
        if counts.neither:
            text += (
                f"; with the labels of neither model lost, too, the bound is {counts.strict:.4f}"
            )
            if test.kept and not counts.strict <= promise.max_drop:
                text += ": the promise RESTS ON THESE LABELS"
        return f"; {text}"


def sorted_rows(full: RowScores, small: RowScores) -> dict[str, np.ndarray]:
    """Sort the rows that differ by their labels; each kind is (rows,) of bool.

    Where the labels of neither model are many, only those count that a second person gave, too.
    """
    import numpy as np

    from sora_cli.tasks.row_scores import UNLABELLED

    answer, first, second = full.parts.T
    label = np.where(first == UNLABELLED, second, first)
    twice = (first != UNLABELLED) & (second != UNLABELLED)
    differ, apart = full.differs(small), twice & (first != second)
    given = differ & (label != UNLABELLED) & ~apart
    lost, won = given & (label == answer), given & (label == small.parts[:, 0])
    neither = given & ~lost & ~won
    alone = neither & ~twice & (neither.sum() >= NEED_SECOND * given.sum())
    return {
        "lost": lost,
        "won": won,
        "neither": neither & ~alone,
        "missing": (differ & (label == UNLABELLED)) | alone,
        "alone": alone,
        "disagree": differ & apart,
    }


def counted(full: RowScores, small: RowScores) -> Labelled:
    """Count the rows that differ by their labels."""
    return Labelled(**{kind: int(rows.sum()) for kind, rows in sorted_rows(full, small).items()})


def bound_of(counts: Labelled, rows: int, confidence: float) -> float:
    """Return the upper bound of the drop; what has no agreed label counts as lost."""
    from sora_cli.search.paired import exact_bound

    unknown = counts.missing + counts.disagree
    return exact_bound(counts.lost + unknown, counts.won, rows, confidence, unknown)


def best_of(counts: Labelled, rows: int, confidence: float) -> float:
    """Return the bound if every label that is still missing is in the small model's favour."""
    filled = {"won": counts.won + counts.missing, "missing": 0}
    return bound_of(counts.model_copy(update=filled), rows, confidence)


def more_labels(counts: Labelled, rows: int, promise: Promise) -> int | None:
    """Return how many more labels certify, if their shares stay as they are; None: not all do."""
    given = counts.lost + counts.won + counts.neither

    def certified(more: int) -> bool:
        won, neither = (more * n // given for n in (counts.won, counts.neither))
        shares = {
            "lost": counts.lost + more - won - neither,
            "won": counts.won + won,
            "missing": counts.missing - more,
        }
        bound = bound_of(counts.model_copy(update=shares), rows, promise.confidence)
        return bound <= promise.max_drop

    if not given or not certified(counts.missing):
        return None
    low, high = 0, counts.missing
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if certified(middle) else (middle, high)
    return high


def expected_share(share: float, seen: float, rows: int) -> float:
    """Return the share of rows on which a size is expected to differ.

    Args:
        share: of full rank's parameters.
        seen: share of the screening rows that differ.
        rows: number of screening rows.
    """
    # twice: `mixed` takes half of its prior share for the drop, and this is all of it
    return max(mixed(share, seen, seen, rows, worth=2.0)[0], _LEAST)


def largest_share(seen: int, rows: int) -> float:
    """Return the largest share of rows on which a size is likely to differ: Clopper and Pearson's.

    Args:
        seen: number of screening rows that differ.
        rows: number of screening rows.
    """
    from scipy.stats import beta

    return 1.0 if seen >= rows else float(beta.ppf(_SURE, seen + 1, rows - seen))


_SURE = 0.8
"""Probability that a size differs on no larger share than that with which it is planned."""
_LEAST = 0.005
"""The smallest share that is planned with: a few hundred rows without a difference show no less."""


def _drop(counts: Labelled, rows: int) -> float:
    return (counts.lost + counts.missing + counts.disagree - counts.won) / rows
