"""Cross-fitting: the bound by two halves, its level, and the conclusions from both."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from sora_cli.report import BaseFacts
from sora_cli.search.certificate import Certificate, Final, Half, SizeTest
from sora_cli.search.halves import HALF_SHARES, HALVES, half_confidence
from sora_cli.search.row_set import half_name, part_of
from sora_cli.search.screening import Cuts, PlannedSize, merged_cuts, screen
from sora_cli.search.size import Size
from sora_cli.search.words import size_table
from sora_cli.tasks.row_scores import RowScores, row_scores
from tests.sora_cli.search.test_certificate import certificate
from tools.auto.crossfit import broken


def size_test(upper: float, **changes: Any) -> SizeTest:
    return SizeTest(**{"score": 0.8, "drop": 0.0, "upper": upper, "kept": False, **changes})


def cross_fit(*uppers: float, **changes: Any) -> Certificate:
    """A certificate of one size, with the bounds of both halves."""
    plain = certificate()
    rows = {**plain.rows, half_name(1): plain.rows["test"], half_name(2): plain.rows["test"]}
    halves = [
        Half(
            full=plain.full.model_copy(update={"test": 0.8 + upper}),
            candidates=[plain.candidates[0].model_copy(update={"test": size_test(upper)})],
        )
        for upper in uppers
    ]
    final = Final(**_size(30), max_params=45, digest="sha256:c", steps=9, reported={"v": 0.7})
    known = plain.model_dump() | {"halves": halves, "final": final, "rows": rows, **changes}
    return Certificate(**known | {"base": BaseFacts(path="M")})


def _size(parameters: int) -> dict[str, int]:
    return {"parameters": parameters, "components": 3, "largest_rank": 1, "served": parameters}


def test_the_error_is_shared_among_halves_and_sizes() -> None:
    errors = len(HALVES) * len(HALF_SHARES) * (1 - half_confidence(0.95))
    assert errors == pytest.approx(0.05)


def test_the_promise_is_kept_by_the_mean_of_both_bounds() -> None:
    found = cross_fit(0.001, 0.008)  # the promise is 0.005
    assert found.design == "cross-fit"
    assert found.certified
    test = found.written.test
    assert test is not None
    assert test.upper == pytest.approx(0.0045)
    assert found.full.test == pytest.approx(0.8045)
    assert found.adapter == "sha256:c"
    assert found.saved.startswith("3 of 16 components, 30 of 90 parameters")
    assert "the mean of 0.0010 and 0.0080" in found.statement
    assert "each trained on half of the rows" in found.statement
    assert "the written adapter was trained on all rows and was not itself tested" in found.scope
    assert not cross_fit(0.003, 0.008).certified
    assert "may be 0.0055 worse" in cross_fit(0.003, 0.008).statement


def test_what_the_file_says_of_both_halves_together_is_not_believed() -> None:
    stored = cross_fit(0.003, 0.008).model_dump(mode="json")
    stored["candidates"][0]["test"] |= {"upper": 0.001, "kept": True}
    stored |= {"design": "held out", "full": stored["full"] | {"test": 0.1}}
    assert Certificate.model_validate(stored) == cross_fit(0.003, 0.008)


def test_a_half_without_a_bound_gives_none() -> None:
    assert not cross_fit(0.001, math.nan).certified
    tests = [size_test(0.001), size_test(math.nan, refused="few rows differ", passed_over=True)]
    mean = SizeTest.mean(tests, 0.005)
    assert math.isnan(mean.upper)
    assert (mean.refused, mean.verdict) == ("few rows differ", "passed over")
    assert not mean.fails(0.005)
    tests[1].passed_over = False
    assert SizeTest.mean(tests, 0.005).fails(0.005)


@pytest.mark.parametrize(
    "changes",
    [{"final": None}, {"rows": certificate().rows}, {"halves": cross_fit(0.1, 0.1).halves[:1]}],
)
def test_a_part_of_a_certificate_is_none(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"half|two halves"):
        cross_fit(0.001, 0.001, **changes)


def test_an_older_certificate_is_held_out() -> None:
    stored = certificate().model_dump(mode="json")
    for key in ("design", "halves", "final"):
        del stored[key]
    assert Certificate.model_validate(stored) == certificate()
    assert certificate().design == "held out"
    assert part_of("half 1") == "reported half 1"


def test_the_table_has_both_halves_and_the_written_adapter() -> None:
    table = size_table(cross_fit(0.001, 0.008))
    assert [row[0] for row in table.rows] == [
        "full rank",
        "50.0%",
        "  half 1",
        "  half 2",
        "written",
    ]
    assert "mean of two halves" in str(table.title)
    assert table.rows[-1][-1] == "all rows, not tested"


def _scores(wrong: int) -> RowScores:
    return row_scores("accuracy", "right", np.arange(40) >= wrong)


def _cuts(*budgets: int, parameters: int) -> Cuts:
    planned = [PlannedSize(0.1, budget, {}) for budget in budgets]
    sizes = [Size(**_size(parameters)) for _ in budgets]
    return Cuts(Size(**_size(90)), _scores(4), planned, sizes, [_scores(b) for b in budgets])


def test_both_screenings_count_alike() -> None:
    merged = merged_cuts(_cuts(20, 12, 8, parameters=7), _cuts(20, 8, parameters=9))
    assert [planned.max_params for planned in merged.planned] == [20, 8]
    assert [size.parameters for size in merged.sizes] == [9, 9]
    assert len(merged.whole) == 80
    drops = [one.screening.drop for one in screen(merged, test_rows=99, confidence=0.95)]
    assert drops == pytest.approx([0.4, 0.1])


def test_no_coupling_of_the_halves_breaks_the_bound() -> None:
    """Couplings break the rule of one sample, and the choice of a size the rule of one size."""
    shares = {(halves, size): shares for halves, size, shares in broken(150, 1000)}
    limit = 0.05 + 2 * math.sqrt(0.05 * 0.95 / 1000)
    assert all(used <= limit for *_, used in shares.values())
    luckiest = f"the luckiest of {len(HALF_SHARES)}"
    assert shares["worst coupling", "fixed"][0] > 2 * limit
    assert shares["worst coupling", "fixed"][1] <= limit
    assert shares["the same outcome", luckiest][1] > limit
