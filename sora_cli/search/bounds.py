"""The upper bound of a drop: exact or approximate by the kind of metric, or refused."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from sora_cli.recipe.tolerance import CONFIDENCE
from sora_cli.search.agreement import share_bound
from sora_cli.search.bca import (
    RESAMPLES,
    BootstrapRefusedError,
    Refusal,
    bca_bound,
    differing_rows,
    drop_on,
)
from sora_cli.search.few import few_rows_bound
from sora_cli.search.paired import exact_bound

if TYPE_CHECKING:
    from sora_cli.tasks.row_scores import RowScores


@dataclass(frozen=True)
class Bound:
    """The drop from one model to another on some rows, with its upper confidence bound.

    Attributes:
        drop: measured on these rows, in the metric's unit; positive: worse.
        upper: one-sided upper confidence bound of the drop; None: no bound.
        kind: `exact` keeps its confidence for any number of rows that are drawn independently;
            `approximate` for many rows, or for rows that depend on each other.
        rows: number of rows.
        differing: number of rows on which the models' scores differ.
        refused: reason for having no bound; None: there is a bound.
        reason: `refused` as a sentence.
        least: if few rows differ, the bound that a model without any differing row would get: the
            smallest possible here. None: enough rows differ, or there is no bound.
        every: the drop on all rows as they come, where repeated rows do not test; None: all do.
    """

    drop: float
    upper: float | None
    kind: Literal["exact", "approximate"]
    rows: int
    differing: int
    refused: Refusal | None = None
    reason: str | None = None
    least: float | None = None
    every: float | None = None

    @property
    def is_of_many(self) -> bool:
        """True if enough rows differ for the usual bound, and it was computed."""
        return self.refused is None and self.least is None

    def passes_over(self, promise: float) -> bool:
        """Return True if too few rows differ for any model to pass the test.

        The test is then neither passed nor failed, and testing goes on. This does not bias the next
        tests: it depends only on the number of differing rows, not on their losses.
        """
        hopeless = self.least is not None and self.least > promise
        return hopeless or self.refused == "few rows differ"

    def keeps(self, promise: float) -> bool:
        """Return True if the bound is within the promise."""
        return self.upper is not None and self.upper <= promise

    def fails(self, promise: float) -> bool:
        """Return True if this test ends the testing: neither kept nor passed over."""
        return not self.keeps(promise) and not self.passes_over(promise)


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
    bound = _bound(full, small, confidence, seed=seed, resamples=resamples)
    if full.every is None or small.every is None:
        return bound
    return replace(bound, every=drop_on(full.every, small.every))


def _bound(
    full: RowScores, small: RowScores, confidence: float, *, seed: int, resamples: int
) -> Bound:
    if (full.metric, full.formula, len(full)) != (small.metric, small.formula, len(small)):
        raise ValueError("scores of different metrics or rows are compared")
    rows, differing = len(full), differing_rows(full, small)
    drop = drop_on(full, small)
    # the counts are binomial, and the bounds exact, only if the rows are independent
    kind: Literal["exact", "approximate"] = "exact" if full.rows_alone else "approximate"
    if full.is_agreement:
        return Bound(drop, share_bound(differing, rows, confidence), kind, rows, differing)
    if full.is_right_or_wrong and np.isfinite(drop):
        # only the rows that one model alone gets right matter (McNemar's table)
        difference = full.parts[:, 0] - small.parts[:, 0]
        difference = difference if full.greater_is_better else -difference
        lost, won = int((difference > 0).sum()), int((difference < 0).sum())
        return Bound(drop, exact_bound(lost, won, rows, confidence), kind, rows, differing)
    try:
        upper = bca_bound(full, small, confidence, seed=seed, resamples=resamples)
    except BootstrapRefusedError as error:
        # the bootstrap is not valid here; a worst-case bound needs no spread, only the count
        few = error.reason == "few rows differ"
        worst = few_rows_bound(full, differing, confidence) if few else None
        if worst is None:
            return Bound(drop, None, "approximate", rows, differing, error.reason, str(error))
        least = few_rows_bound(full, 0, confidence)
        return Bound(drop, worst, "approximate", rows, differing, least=least)
    return Bound(drop, upper, "approximate", rows, differing)
