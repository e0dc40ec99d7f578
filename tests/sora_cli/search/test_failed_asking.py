"""The numbers of rows and labels that would have certified a size."""

from __future__ import annotations

import pytest
from scipy.stats import multinomial

from sora_cli.search.asked_labels import AskedLabels
from sora_cli.search.certifiable import rows_for_drop
from sora_cli.search.paired import exact_bound
from sora_cli.search.statistic import Labelled
from tests.sora_cli.search.test_asked_labels import bound_by, promise


def rows_wanted(counts: Labelled, rows: int, max_drop: float) -> int | None:
    """As many rows as a test with these counts asks for."""
    given = {"labelled": counts, "score": 1 - counts.differing / rows}
    found = bound_by([0]).model_copy(update=given)
    test = AskedLabels().followed(found, 1.0, rows, promise(max_drop))
    return rows_for_drop(test.drop, (counts.differing - counts.neither) / rows, max_drop, 0.95)


@pytest.mark.parametrize(("lost", "won", "max_drop"), [(9, 4, 0.02), (4, 3, 0.01)])
def test_so_many_rows_certify_in_four_of_five_draws(lost: int, won: int, max_drop: float) -> None:
    counts = Labelled(lost=lost, won=won, neither=0, missing=0)
    rows = rows_wanted(counts, 600, max_drop)
    assert rows is not None
    shares = [lost / 600, won / 600, 1 - (lost + won) / 600]
    drawn = multinomial.rvs(rows, shares, size=200, random_state=0)
    passed = [exact_bound(int(n), int(m), rows, 0.95) <= max_drop for n, m, _ in drawn]
    # exact bounds are wider than normal ones where few rows differ
    assert 0.65 <= sum(passed) / len(passed) <= 0.9


def test_no_number_helps_a_size_that_breaks_the_promise() -> None:
    counts = Labelled(lost=9, won=3, neither=0, missing=0)
    assert rows_wanted(counts, 600, 0.01) is None
    assert rows_wanted(counts, 600, 0.02) is not None
    # what has no label counts as lost
    unknown = counts.model_copy(update={"missing": 6})
    assert rows_wanted(unknown, 600, 0.02) is None
