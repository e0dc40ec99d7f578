"""The statistics that a promise can be about, and the one that fits two models' scores.

A statistic of one's own is one class and one line here: `STATISTICS.insert(0, Mine())`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sora_cli.core.errors import SoraError
from sora_cli.core.words import listed
from sora_cli.recipe.tolerance import CONFIDENCE
from sora_cli.search.any_metric import AnyMetric
from sora_cli.search.asked_labels import AskedLabels
from sora_cli.search.differing_answers import DifferingAnswers
from sora_cli.search.right_or_wrong import RightOrWrong
from sora_cli.search.statistic import RESAMPLES, Bound, BoundMethod, OfRows, Statistic

if TYPE_CHECKING:
    from sora_cli.recipe.auto import Basis
    from sora_cli.search.promise import Promise
    from sora_cli.tasks.row_scores import RowScores

STATISTICS: list[Statistic] = [DifferingAnswers(), AskedLabels(), RightOrWrong(), AnyMetric()]
"""The first that measures the scores of the test rows is taken."""


def statistic_of(scores: RowScores) -> Statistic:
    """Return the statistic that compares these scores with another model's."""
    return next(one for one in STATISTICS if one.measures(scores))


def statistic_on(basis: Basis) -> OfRows:
    """Return the statistic of rows that are right or wrong, by what tests them."""
    tested: dict[Basis, OfRows] = {
        "labels": RightOrWrong(),
        "answers": DifferingAnswers(),
        "asked": AskedLabels(),
    }
    return tested[basis]


def statistic_in(bound: BoundMethod, promise: Promise) -> Statistic:
    """Return the statistic of a certificate; those of earlier versions do not name it."""
    name = bound.statistic
    if name is None and promise.by_answers:
        name = DifferingAnswers.name
    elif name is None:
        by_rows = bound.exact or RightOrWrong.method in bound.method
        name = RightOrWrong.name if by_rows else AnyMetric.name
    known = {one.name: one for one in STATISTICS}
    if name not in known:
        raise SoraError(
            f"the certificate is about '{name}', which this program does not compare",
            where=f"it knows {listed(list(known))}",
            hint="load the file that has it: --code FILE",
        )
    return known[name].about(promise)


def drop_bound(
    full: RowScores,
    small: RowScores,
    confidence: float = CONFIDENCE,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Bound:
    """Return the drop from one model to another, with its upper confidence bound.

    Args:
        full: scores of the reference model.
        small: scores of the other model: same metric, same rows, same order.
        confidence: one-sided, at least 0.5 and below 1.
        seed, resamples: of the bootstrap, for metrics whose rows are not just right or wrong.
    """
    if (full.metric, full.formula, len(full)) != (small.metric, small.formula, len(small)):
        raise ValueError("scores of different metrics or rows are compared")
    bound = statistic_of(full).bound(full, small, confidence, seed=seed, resamples=resamples)
    if full.every is None or small.every is None:
        return bound
    return bound.model_copy(update={"every": statistic_of(full).drop(full.every, small.every)})
