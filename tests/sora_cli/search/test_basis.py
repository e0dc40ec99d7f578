"""The choice of the rows that test a drop, and the error of two tests together."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest

from sora_cli.recipe.auto import Basis
from sora_cli.search.agreement import allowed_rows, chance_by_answers, share_bound
from sora_cli.search.basis import certifiable_on, chance, chances_line, choose_basis
from sora_cli.search.certifiable import certifiable_drop, chance_by_labels
from sora_cli.search.paired import exact_bound
from sora_cli.search.promise import Promise
from sora_cli.tasks.row_scores import answer_scores, row_scores

ROWS = row_scores("accuracy", "right", np.ones(8))


def promise(max_drop: float, basis: Basis = "labels") -> Promise:
    return Promise(
        basis=basis,
        max_drop=max_drop,
        given=f"{max_drop:g}",
        confidence=0.95,
        metric="accuracy",
        greater_is_better=True,
        serve=None,
    )


def numbers(labelled: int, unlabelled: int) -> Mapping[Basis, tuple[int, ...]]:
    screening = min(unlabelled // 4, 500)
    return {
        "labels": (labelled,),
        "answers": (unlabelled - screening,),
        "both": (labelled, unlabelled),
    }


@pytest.mark.parametrize(
    ("labelled", "unlabelled", "max_drop", "expected"),
    [
        (5000, 300, 0.01, "labels"),  # many labels, few others
        (1650, 10_000, 0.01, "labels"),  # labels allow losses and gains to balance
        (20, 10_000, 0.01, "answers"),  # too few labels to certify this at all
        (152, 10_000, 0.02, "both"),  # each certifies sizes that the other does not
        (20, 100, 0.001, "labels"),  # none can: no reason to leave the usual test
        (5000, 300, math.nan, "labels"),  # the smallest drop
        (50, 10_000, math.nan, "answers"),
        (152, 2000, math.nan, "both"),
    ],
)
def test_the_basis_in_clear_cases(
    labelled: int, unlabelled: int, max_drop: float, expected: str
) -> None:
    rows = numbers(labelled, unlabelled)
    assert choose_basis(promise(max_drop), rows) == expected
    told = chances_line(promise(max_drop), rows)
    assert f" ({labelled:,} rows), answers " in told
    assert f" ({labelled:,} and {unlabelled:,} rows)" in told


def test_equally_good_ones_are_taken_in_order() -> None:
    rows = numbers(5000, 40_000)
    assert choose_basis(promise(0.3), rows) == "labels"
    assert choose_basis(promise(0.3), {b: rows[b] for b in ("answers", "both")}) == "answers"


@pytest.mark.parametrize(("rows", "differing"), [(150, 0.025), (600, 0.01), (1500, 0.05)])
def test_the_chances_are_those_of_draws(rows: int, differing: float) -> None:
    rng = np.random.default_rng(0)
    lost, won, _ = rng.multinomial(rows, [differing / 2, differing / 2, 1 - differing], size=4000).T
    max_drop = certifiable_drop(rows, differing=differing)
    passed = [
        exact_bound(int(a), int(b), rows, 0.95) <= max_drop
        for a, b in zip(lost[:600], won[:600], strict=True)
    ]
    planned = chance_by_labels(max_drop, rows, differing, 0.95)
    assert planned == pytest.approx(np.mean(passed), abs=0.05)
    assert planned >= 0.78  # the drop that is certified four times in five
    share = 1.5 * differing + 3 / rows
    allowed = allowed_rows(share, rows, 0.95)
    assert allowed is not None
    planned = chance_by_answers(share, rows, differing, 0.95)
    assert planned == pytest.approx((lost + won <= allowed).mean(), abs=0.03)
    assert chance_by_answers(1 / rows, rows, differing, 0.95) == 0.0


def test_many_differing_rows_are_nearly_normal() -> None:
    drop = certifiable_drop(90_000)
    assert chance_by_labels(drop, 90_000, 0.025, 0.95) == pytest.approx(0.8, abs=1e-6)


def test_what_both_can_certify() -> None:
    labels, answers = (152, 10_000)
    found = certifiable_on(promise(0.02, "both"), (labels, answers), ROWS)
    each = promise(0.02, "both").parts()
    assert [part.basis for part in each] == ["labels", "answers"]
    assert [part.confidence for part in each] == [pytest.approx(0.975)] * 2
    assert found.best_case == pytest.approx(share_bound(0, answers, 0.975))
    assert found.bound.exact
    assert found.bound.method.startswith("the smaller of two, each at half the error: exact for")
    known = zip(each, (labels, answers), (ROWS, answer_scores([])), strict=True)
    alone = [certifiable_on(part, (n,), scores) for part, n, scores in known]
    least = min(one.bound.smallest_drop or 1 for one in alone)
    assert found.bound.smallest_drop is not None
    assert found.bound.smallest_drop <= least + 1e-9
    at = promise(found.bound.smallest_drop, "both")
    assert chance(at, (labels, answers)) > 0.6  # a mean over sizes that differ more and less
    assert certifiable_on(promise(0.01), (labels,), ROWS).bound.method.startswith("exact for right")


def test_the_error_of_both_whatever_their_dependence() -> None:
    """Every differing row is lost: then the drop is the share that differs, and both may err."""
    rng, drop, labelled, answered, draws = np.random.default_rng(1), 0.03, 250, 900, 20_000
    each = promise(drop, "both").parts()[0].confidence
    differs = rng.random((draws, answered)) < drop
    answers, shared = differs.sum(axis=1), differs[:, :labelled].sum(axis=1)
    apart = rng.binomial(labelled, drop, size=draws)
    # the luckiest draws of one meet the least lucky of the other
    order = np.argsort(answers)
    opposed = np.empty(draws, dtype=int)
    opposed[order] = np.sort(apart)[::-1]
    allowed = allowed_rows(drop, answered, each)
    assert allowed is not None
    bounds = {int(n): exact_bound(int(n), 0, labelled, each) for n in range(labelled // 4)}
    by_answers = answers <= allowed
    limit = 0.05 + 2 * math.sqrt(0.05 * 0.95 / draws)
    wrong = {}
    for name, lost in (("apart", apart), ("shared", shared), ("opposed", opposed)):
        by_labels = np.array([bounds[int(n)] <= drop for n in lost])
        assert by_labels.mean() <= 0.025 + 2 * math.sqrt(0.025 * 0.975 / draws)
        wrong[name] = (by_labels | by_answers).mean()
        assert wrong[name] <= limit, name
    assert wrong["opposed"] == max(wrong.values())  # nearly the sum of both errors
