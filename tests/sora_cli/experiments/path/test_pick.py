"""The choice among a path's stages."""

from __future__ import annotations

import pytest

from sora_cli.commands.pick import choose
from sora_cli.core.errors import SoraError
from tests.helpers_errors import refusal
from tests.sora_cli.experiments.path.support import made_report

SCORES, SIZES = [0.80, 0.82, 0.795, 0.70], [100, 80, 40, 5]


@pytest.mark.parametrize(("keep", "index"), [(1.0, 1), (0.99, 2), (0.9, 2), (0.85, 3), (0.88, 2)])
def test_the_smallest_that_keeps_a_share(keep: float, index: int) -> None:
    assert choose(made_report(SCORES, SIZES), keep=keep).index == index


@pytest.mark.parametrize(("limit", "index"), [(100, 1), (79, 2), (39, 3), (5, 3)])
def test_the_best_within_a_size(limit: int, index: int) -> None:
    assert choose(made_report(SCORES, SIZES), max_params=limit).index == index


@pytest.mark.parametrize(("metric", "index"), [(0.82, 1), (0.8, 1), (0.795, 2), (-1, 3)])
def test_the_smallest_that_is_good_enough(metric: float, index: int) -> None:
    assert choose(made_report(SCORES, SIZES), min_metric=metric).index == index


@pytest.mark.parametrize(("drop", "index"), [("0.006", 2), ("0.004", 1), ("0", 1), ("0.2", 3)])
def test_the_smallest_that_is_little_worse(drop: str, index: int) -> None:
    assert choose(made_report(SCORES, SIZES), max_drop=drop).index == index


def test_of_equal_sizes_the_better_one() -> None:
    assert choose(made_report([0.8, 0.8, 0.81], [9, 5, 5]), keep=0.9).index == 2
    assert choose(made_report([0.8, 0.8, 0.8], [9, 5, 7]), max_params=9).index == 1


def test_a_metric_that_is_better_when_smaller() -> None:
    report = made_report([1.0, 0.9, 1.05, 2.0], SIZES, greater_is_better=False)
    assert choose(report, keep=0.95).index == 2  # 1 / 0.95 = 1.0526
    assert choose(report, keep=1.0).index == 1
    assert choose(report, min_metric=1.2).index == 2
    assert choose(report, max_drop="0.06").index == 2
    assert choose(report, max_drop="0.04").index == 1
    assert choose(report, max_params=100).index == 1


def test_the_choice_is_on_its_own_split() -> None:
    report = made_report(SCORES, SIZES)
    for stage in report.stages:
        stage.metrics["validation"]["score"] = 0.1
    assert choose(report, keep=0.99).index == 2


@pytest.mark.parametrize(
    "wish",
    [
        {},
        {"keep": 0.9, "max_params": 3},
        {"keep": 0.0},
        {"keep": 1.5},
        {"min_metric": 0.9},
        {"max_drop": "0.01", "keep": 0.9},
        {"max_drop": "1pt"},
        {"max_params": 4},
    ],
    ids=str,
)
def test_wishes_that_can_not_come_true(
    wish: dict[str, float | str],
) -> None:
    with refusal():
        choose(made_report(SCORES, SIZES), **wish)  # type: ignore[arg-type]


def test_a_share_of_nothing_is_refused() -> None:
    with pytest.raises(SoraError, match="a share of it means nothing"):
        choose(made_report([0.0, 0.1], [2, 1]), keep=0.9)
