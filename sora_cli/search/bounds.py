"""One bound of a drop, by the way that fits the metric: exact, approximate, or refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from sora_cli.recipe.tolerance import CONFIDENCE
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
    """The drop from one model to another on some rows, and at most on rows like these.

    Attributes:
        drop: on these rows, in the metric's own unit; positive: worse.
        upper: the one-sided upper confidence bound of the drop; None: there is none.
        kind: `exact` holds its confidence for every number of rows, `approximate` for many.
        rows: all of them.
        differing: those on which the models' scores differ.
        refused: why there is no bound, or None.
        reason: the same in words.
        least: the smallest bound that any model could have that differs on few rows; None: the
            models differ on more, or there is none.
    """

    drop: float
    upper: float | None
    kind: Literal["exact", "approximate"]
    rows: int
    differing: int
    refused: Refusal | None = None
    reason: str | None = None
    least: float | None = None

    @property
    def is_of_many(self) -> bool:
        """True if there is a bound, and enough rows differ for the usual one."""
        return self.refused is None and self.least is None

    def passes_over(self, promise: float) -> bool:
        """Tell whether few rows differ, and no model that differs on few could pass.

        That is no failure, and ends no testing: it does not depend on what the rows that differ
        have lost.
        """
        hopeless = self.least is not None and self.least > promise
        return hopeless or self.refused == "few rows differ"

    def keeps(self, promise: float) -> bool:
        """Tell whether the drop is shown to be at most the promise."""
        return self.upper is not None and self.upper <= promise

    def fails(self, promise: float) -> bool:
        """Tell whether this ends the testing: it is neither kept nor passed over."""
        return not self.keeps(promise) and not self.passes_over(promise)


def drop_bound(
    full: RowScores,
    small: RowScores,
    confidence: float = CONFIDENCE,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Bound:
    """Return the drop from one model to another, and its upper confidence bound.

    Args:
        full: the scores that are promised to be kept.
        small: the other model's, of the same metric, on the same rows in the same order.
        confidence: of the bound, one-sided, from a half to below 1.
        seed, resamples: for metrics that are not right or wrong by row.
    """
    if (full.metric, full.formula, len(full)) != (small.metric, small.formula, len(small)):
        raise ValueError("scores of different metrics or rows are compared")
    rows, differing = len(full), differing_rows(full, small)
    here = drop_on(full, small)
    if full.is_right_or_wrong and np.isfinite(here):
        apart = full.parts[:, 0] - small.parts[:, 0]
        apart = apart if full.greater_is_better else -apart
        lost, won = int((apart > 0).sum()), int((apart < 0).sum())
        return Bound(here, exact_bound(lost, won, rows, confidence), "exact", rows, differing)
    try:
        upper = bca_bound(full, small, confidence, seed=seed, resamples=resamples)
    except BootstrapRefusedError as error:
        few = error.reason == "few rows differ"
        worst = few_rows_bound(full, differing, confidence) if few else None
        if worst is None:
            return Bound(here, None, "approximate", rows, differing, error.reason, str(error))
        least = few_rows_bound(full, 0, confidence)
        return Bound(here, worst, "approximate", rows, differing, least=least)
    return Bound(here, upper, "approximate", rows, differing)
