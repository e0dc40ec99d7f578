"""An upper bound of the drop if two models differ on few rows: the worst case.

With few differing rows, resamples say too little about the rows that might differ. But the number
of differing rows is binomial for every metric, so Clopper and Pearson bound the share of all rows
that differ. The upper bound is the drop that results if this share of the rows is lost: the rows
that hurt the metric most, each with the worst possible answer. The actual answers on the differing
rows are not used. The bound is usually much larger than the true drop. It is approximate in one
thing: the most harmful rows are known from the given rows only. Their worst combination is exact,
or the drop is rounded up (`search.worst`).

Source: Clopper and Pearson 1934, Biometrika 26, 404-413.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import beta

from sora_cli.search.worst import worst_value

if TYPE_CHECKING:
    from sora_cli.tasks.row_scores import RowScores


def few_rows_bound(
    full: RowScores, differing: int, confidence: float, *, rows: int | None = None
) -> float | None:
    """Return the one-sided upper bound of the drop of a model that differs on few rows.

    Args:
        full: scores of the reference model.
        differing: number of rows on which the two models differ.
        rows: number of rows that `differing` was counted on; None: the rows of `full`.

    Returns:
        The bound, in the metric's unit; None: a row has no worst answer, as with losses.
    """
    if not np.isfinite(full.parts).all():
        return None
    rows = rows or len(full)
    most = 1.0 if differing >= rows else beta.ppf(confidence, differing + 1, rows - differing)
    worst = worst_value(full, float(most) * len(full))
    return None if worst is None else max(full.value - worst, 0.0)
