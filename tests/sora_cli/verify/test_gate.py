"""The two bounds of a gate: how often B is certified, or shown to be worse, by chance."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import beta

from sora_cli.search.asked_labels import AskedLabels
from sora_cli.search.statistic import Bound
from sora_cli.search.statistics import drop_bound, statistic_of
from sora_cli.tasks.row_scores import RowScores, answer_scores, asked_scores, row_scores
from tests.present import present

SURE, DRAWS = 0.95, 2000
_AIR = 2 * np.sqrt(0.05 * 0.95 / DRAWS)


def lower_of(full: RowScores, small: RowScores) -> tuple[Bound, float]:
    test = drop_bound(full, small, SURE)
    lower = present(
        statistic_of(full).lower(test, len(full), SURE, lambda: drop_bound(small, full, SURE))
    )
    return test, lower


def asked(lost: int, won: int, missing: int, rows: int) -> tuple[RowScores, RowScores]:
    """Answers of A and B, where labels say who is right but for the missing ones."""
    answers = np.zeros((2, rows))
    answers[1, : lost + won + missing] = 1
    a, b = (asked_scores([str(x) for x in each]) for each in answers)
    for scores in (a, b):
        scores.parts[:lost, 1] = a.parts[0, 0]
        scores.parts[lost : lost + won, 1] = b.parts[0, 0]
    return a, b


@pytest.mark.long
@pytest.mark.parametrize(
    ("p_lost", "p_won", "labelled"), [(0.05, 0.04, 1.0), (0.011, 0.001, 0.6), (0.3, 0, 1.0)]
)
def test_at_a_drop_equal_to_the_promise_both_errors_are_rare(
    p_lost: float, p_won: float, labelled: float
) -> None:
    """Beside least favourable pairs: the drop is the promise, also with labels left out."""
    rows, drop, rng = 300, p_lost - p_won, np.random.default_rng(3)
    draws = rng.multinomial(rows, [p_lost, p_won, 1 - p_lost - p_won], size=DRAWS)
    known = rng.binomial(draws[:, :2], labelled)
    outcomes = np.c_[known, draws[:, :2].sum(axis=1) - known.sum(axis=1)]
    counts, times = np.unique(outcomes, axis=0, return_counts=True)
    wrong = np.zeros((2, len(counts)), dtype=bool)
    for number, (lost, won, missing) in enumerate(counts.tolist()):
        test, lower = lower_of(*asked(lost, won, missing, rows))
        assert lower <= test.upper
        wrong[:, number] = test.upper <= drop - 1e-9, lower > drop
    certified, worse = wrong @ times / DRAWS
    assert certified <= 0.05 + _AIR
    assert worse <= 0.05 + _AIR


def test_a_row_without_a_label_counts_for_neither_verdict() -> None:
    test, lower = lower_of(*asked(6, 4, 0, 100))
    wider, deeper = lower_of(*asked(3, 2, 5, 100))
    assert wider.upper > test.upper
    assert deeper < lower
    assert isinstance(statistic_of(asked(1, 1, 1, 9)[0]), AskedLabels)


def test_of_scores_it_is_the_bound_of_the_other_direction() -> None:
    right = np.ones(200)
    less = right.copy()
    less[:30] = 0
    a, b = (row_scores("accuracy", "right", each) for each in (right, less))
    test, lower = lower_of(a, b)
    assert lower == pytest.approx(-drop_bound(b, a, SURE).upper)
    assert 0.1 < lower < test.drop < test.upper < 0.2
    assert test.model_copy(update={"lower": lower}).breaks(0.1)
    assert not test.model_copy(update={"lower": lower}).breaks(0.12)
    assert not test.breaks(-1)  # without a lower bound nothing is shown


def test_of_answers_it_is_the_share_that_differs_at_least() -> None:
    a = answer_scores([0] * 100)
    b = answer_scores([1] * 12 + [0] * 88)
    _, lower = lower_of(a, b)
    assert lower == pytest.approx(beta.ppf(0.05, 12, 89))
