"""The tables of alphas and rates: who chooses, what is reported, and what a product explains."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

import pytest

from tools.alpha import (
    Grid,
    Scores,
    best,
    chosen_table,
    explained,
    explained_table,
    mean_table,
    means,
)

ALPHAS, RATES = (4.0, 16.0, 64.0, 256.0), (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)


def grid() -> Grid:
    """One task, whose scores depend on alpha x rate alone."""
    scores = {}
    for alpha, rate in product(ALPHAS, RATES):
        away = abs(alpha * rate - 0.016)
        scores[alpha, rate] = (90 - away, 80 - away)
    return {8: {"stsb": scores}}


def test_rows_held_out_choose_and_reported_rows_are_shown() -> None:
    scores = {(4.0, 1e-3): (90.0, 70.0), (4.0, 3e-3): (89.0, 80.0), (16.0, 1e-3): (91.0, 60.0)}
    assert best(scores) == (16.0, 1e-3)
    assert best(scores, 4.0) == (4.0, 1e-3)
    lines = chosen_table({8: {"stsb": scores}}).splitlines()
    assert lines[2] == "| r 8 | stsb | 70.00 (0.001) | 60.00 (0.001) | 60.00 (16, 0.001) |"
    assert lines[3] == "| r 8 | mean | 70.00 | 60.00 | 60.00 |"


def test_means_are_of_places_that_all_tasks_have() -> None:
    tasks: Mapping[str, Scores] = {
        "a": {(4.0, 1e-3): (90.0, 0.0), (4.0, 3e-3): (80.0, 0.0)},
        "b": {(4.0, 1e-3): (80.0, 0)},
    }
    assert means(tasks) == {(4.0, 1e-3): 85.0}
    assert mean_table(means(tasks)).splitlines()[2] == "| 4 | 85.0 |"


def test_a_score_of_the_product_is_explained_by_it() -> None:
    mean = means(grid()[8])
    right = explained(mean, lambda alpha, rate: alpha * rate)
    assert right > 0.95
    assert right > explained(mean, lambda alpha, rate: rate) + 0.2  # noqa: ARG005
    assert explained(mean, lambda alpha, rate: alpha) < 0.9  # noqa: ARG005
    assert explained_table(grid()).splitlines()[2].startswith(f"| r 8 | {100 * right:.0f} %")
    straight = {(1.0, rate): rate for rate in RATES}
    assert explained(straight, lambda _, rate: 10**rate) == pytest.approx(1)
