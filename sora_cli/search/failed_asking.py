"""What to do after labels have certified nothing: more rows, unused rows, or a larger size.

The numbers of rows and labels are estimates, by the normal approximation; they decide nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from sora_cli.search.row_set import POOL, SCREENING, TEST

if TYPE_CHECKING:
    from sora_cli.search.evidence import Evidence


def has_failed(evidence: Evidence) -> bool:
    """Return True if the first size failed the test of its labels."""
    first = evidence.candidates[0].test if evidence.candidates else None
    return first is not None and first.labelled is not None and first.failed


def advice(evidence: Evidence, unused: str | None) -> Iterator[str]:
    """Yield sentences of advice after the first size has failed.

    Args:
        unused: name of the file with the rows that have not tested; None: all of them have.
    """
    from sora_cli.search.certifiable import rows_for_drop  # scipy

    size, promise = evidence.candidates[0], evidence.promise
    name = "B" if evidence.command == "verify" else "the largest size"
    assert size.test is not None
    counts = size.test.labelled
    assert counts is not None
    tested, pool = evidence.rows[TEST].rows, evidence.rows[POOL].rows
    drop, differing = size.test.drop, (counts.differing - counts.neither) / tested
    rows = rows_for_drop(drop, differing, promise.max_drop, promise.confidence)
    if rows is None:
        yield (
            f"{name} loses {drop:.4f} on these rows, and {promise.max_drop:g} is "
            "promised: more rows of this kind do not help, but a larger promise (--max-drop) may"
        )
    else:
        labels = math.ceil(rows * (size.test.differing or 0) / tested)
        limit = f" (--labels {labels})" if labels > (promise.labels or 0) else ""
        yield (
            f"about {rows:,} test rows, of which {labels:,} take a label{limit}, certify {name} in "
            f"four of five draws, if as many of them are lost and won as of these {tested:,}"
        )
    larger = [one for one in evidence.screened if one.parameters > size.parameters]
    if larger:
        screening = evidence.rows[SCREENING].rows
        differ = round(larger[-1].screening.drop * screening)
        yield (
            f"the next larger size, {larger[-1].share:.1%} of the parameters, differs on {differ} "
            f"of {screening:,} screening rows; a search anew may begin with it"
        )
    if unused is None:
        yield (
            f"all {tested:,} rows have tested, and must not test again, as the outcome is known: "
            "give other rows (--unlabelled FILE)"
        )
        return
    more = "" if rows is None or rows <= pool - tested else ", fewer than that"
    yield (
        f"{pool - tested:,} of {pool:,} rows have not tested{more}: {unused} has them. Rows that "
        "have tested must not test again, as the outcome is known; each attempt has its own "
        f"{1 - promise.confidence:.0%} of a wrong certificate"
    )
