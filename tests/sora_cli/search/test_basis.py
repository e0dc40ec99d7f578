"""The choice of the rows that test a drop."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

import numpy as np
import pytest

from sora_cli.recipe.auto import Basis
from sora_cli.search.basis import chances_line, choose_basis
from sora_cli.search.binomial import allowed_rows, chance_by_answers
from sora_cli.search.certifiable import certifiable_drop, chance_by_labels
from sora_cli.search.paired import exact_bound
from sora_cli.search.promise import Promise
from tests.present import present


def promise(max_drop: float) -> Promise:
    return Promise(
        max_drop=max_drop,
        given=f"{max_drop:g}",
        confidence=0.95,
        metric="accuracy",
        greater_is_better=True,
        serve=None,
    )


def numbers(labelled: int, unlabelled: int) -> Mapping[Basis, int]:
    return {"labels": labelled, "answers": unlabelled - min(unlabelled // 4, 500)}


@pytest.mark.parametrize(
    ("labelled", "unlabelled", "max_drop", "expected"),
    [
        (5000, 300, 0.01, "labels"),  # many labels, few others
        (1650, 10_000, 0.01, "labels"),  # labels allow losses and gains to balance
        (20, 10_000, 0.01, "answers"),  # too few labels to certify this at all
        (152, 10_000, 0.02, "answers"),  # many answers against few labels
        (20, 100, 0.001, "labels"),  # none can: no reason to leave the usual test
        (5000, 300, math.nan, "labels"),  # the smallest drop
        (50, 10_000, math.nan, "answers"),
        (152, 2000, math.nan, "answers"),
    ],
)
def test_the_basis_in_clear_cases(
    labelled: int, unlabelled: int, max_drop: float, expected: str
) -> None:
    rows = numbers(labelled, unlabelled)
    assert choose_basis(promise(max_drop), rows) == expected
    told = chances_line(promise(max_drop), rows)
    assert f" ({labelled:,} rows), answers " in told
    assert f" ({rows['answers']:,} rows)" in told


def test_of_equally_good_ones_labels_are_taken() -> None:
    assert choose_basis(promise(0.3), numbers(5000, 40_000)) == "labels"


@pytest.mark.parametrize(("rows", "differing"), [(150, 0.025), (600, 0.01), (1500, 0.05)])
def test_the_chances_are_those_of_draws(rows: int, differing: float) -> None:
    rng = np.random.default_rng(0)
    lost, won, _ = rng.multinomial(rows, [differing / 2, differing / 2, 1 - differing], size=4000).T
    max_drop = certifiable_drop(rows, differing=differing)
    drawn = Counter(zip(lost[:600].tolist(), won[:600].tolist(), strict=True))
    passed = sum(n for pair, n in drawn.items() if exact_bound(*pair, rows, 0.95) <= max_drop)
    planned = chance_by_labels(max_drop, rows, differing, 0.95)
    assert planned == pytest.approx(passed / 600, abs=0.05)
    assert planned >= 0.78  # the drop that is certified four times in five
    share = 1.5 * differing + 3 / rows
    allowed = present(allowed_rows(share, rows, 0.95))
    planned = chance_by_answers(share, rows, differing, 0.95)
    assert planned == pytest.approx((lost + won <= allowed).mean(), abs=0.03)
    assert chance_by_answers(1 / rows, rows, differing, 0.95) == 0.0


def test_many_differing_rows_are_nearly_normal() -> None:
    drop = certifiable_drop(90_000)
    assert chance_by_labels(drop, 90_000, 0.025, 0.95) == pytest.approx(0.8, abs=1e-6)
