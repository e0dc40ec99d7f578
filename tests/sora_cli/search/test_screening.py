"""Which sizes are screened, which are trained, and what they cost where they are served."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sora_cli.search.any_metric import AnyMetric
from sora_cli.search.certifiable import certifiable_drop
from sora_cli.search.evidence import Screened
from sora_cli.search.few import few_rows_bound
from sora_cli.search.right_or_wrong import RightOrWrong
from sora_cli.search.screening import PlannedSize, measured, name_sizes, part_rows, planned_sizes
from sora_cli.search.size import Size, saving, size_of
from sora_cli.search.sizes import SHARES
from sora_cli.search.statistics import statistic_of
from sora_cli.tasks.row_scores import row_scores
from tests.sora_cli.experiments.auto.support import full, screened

COST = {"a": 10, "b": 20}


def test_rows_are_parted_by_the_seed_alone() -> None:
    screen, rest = part_rows(101, 7)
    assert sorted([*screen, *rest]) == list(range(101))
    assert len(screen) == 50
    assert (np.diff(screen) > 0).all()
    assert screen.tolist() == part_rows(101, 7)[0].tolist() != part_rows(101, 8)[0].tolist()
    assert [len(part) for part in part_rows(10, 0, screening=0.3)] == [3, 7]
    assert [len(part) for part in part_rows(2, 0, screening=0.01)] == [1, 1]


def test_sizes_fit_their_share() -> None:
    values = {path: torch.linspace(2, 1, 8, dtype=torch.float64) for path in COST}
    found = planned_sizes(values, COST, 240)
    assert tuple(planned.share for planned in found) == SHARES[:7]  # then: one component
    for planned in found:
        used = sum(rank * COST[path] for path, rank in planned.ranks.items())
        assert planned.share * 240 - 20 < used <= planned.max_params <= planned.share * 240


def test_equal_sizes_are_one() -> None:
    found = planned_sizes({"a": torch.tensor([1.0], dtype=torch.float64)}, {"a": 10}, 80)
    shares = [planned.share for planned in found]
    assert shares == [SHARES[0]]  # the others have one component as well
    assert found[0].ranks == {"a": 1}


@pytest.mark.parametrize(
    ("serve", "served"),
    [(None, 9 * 10 + 1 * 20), ("vllm", 16 * 30), ("llama.cpp", 9 * 30)],
)
def test_what_a_size_costs(serve: str | None, served: int) -> None:
    size = size_of({"a": 9, "b": 1}, COST, serve)  # type: ignore[arg-type]
    assert (size.parameters, size.components, size.largest_rank) == (110, 10, 9)
    assert size.served == served


def test_layers_without_components_are_not_padded() -> None:
    assert size_of({"a": 3, "b": 0}, COST, "llama.cpp").served == 30


@pytest.mark.parametrize(
    ("drops", "most", "named"),
    [
        ([0, 0, 0, 0, 0, 0.1, 0.2], 3, [2, 4, 6]),  # two sizes each way of the last that is good
        ([0, 0, 0, 0, 0, 0.1, 0.2], 2, [2, 4]),
        ([0, 0, 0, 0, 0, 0.1, 0.2], 1, [4]),
        ([0, 0.1, 0, 0, 0, 0, 0], 3, [0, 2, 4]),  # a size below one that fails is luck
        ([0.1, 0.2, 0.3], 3, [0, 2]),  # none is good: the largest is where it begins
        ([0, 0, 0], 3, [0, 2]),
        ([0.01, 0.01], 1, [1]),  # just within the loss
        ([0.0, math.nan, 0.0], 1, [0]),
    ],
)
def test_sizes_to_train(drops: list[float], most: int, named: list[int]) -> None:
    assert name_sizes(screened(drops), full(), 0.01, most, None, AnyMetric()) == named


def test_what_test_rows_can_certify_of_a_size_is_added_to_its_drop() -> None:
    sizes = screened([0, 0, 0, 0.004, 0.004, 0.1])
    for size, certifiable in zip(sizes, (0.001, 0.002, 0.004, 0.006, 0.007, 0.1), strict=True):
        size.certifiable = certifiable
    assert name_sizes(sizes, full(), 0.01, 1, None, AnyMetric()) == [3]
    assert name_sizes(sizes, full(), 0.0099, 1, None, AnyMetric()) == [2]
    assert name_sizes(sizes, full(), 0.01, 2, None, AnyMetric()) == [1, 3]
    assert name_sizes(sizes, full(), 0.01, 2, None, AnyMetric(), tested=False) == [
        4
    ]  # by its drop alone


def test_screening_says_what_test_rows_can_certify_where_nothing_else_does() -> None:
    rng = np.random.default_rng(0)
    whole = row_scores("f1", "mean", rng.random(400))
    small = row_scores("f1", "mean", whole.parts[:, 0] + 0.1 * rng.normal(size=400))
    size = Size(parameters=9, components=1, largest_rank=1, served=9)
    planned = PlannedSize(0.5, 9, {"a": 1})
    test = {"test_rows": 100, "confidence": 0.95}
    found = measured(planned, size, whole, small, **test)  # type: ignore[arg-type]
    assert found.certifiable == pytest.approx(2.486 * 0.1 / 10, rel=0.1)
    assert found.screening.drop == pytest.approx(whole.value - small.value)
    assert found.expected == pytest.approx(found.screening.drop * 20 / 21, abs=2e-4)


def test_sizes_that_hardly_differ_have_no_bound_and_are_not_named() -> None:
    sizes = screened([0, 0, 0, 0, 0])
    for size, differing in zip(sizes, (5, 29.9, 30, 60, 80), strict=True):
        size.differing = differing
    assert name_sizes(sizes, full(), 0.01, 1, None, AnyMetric()) == [4]
    assert name_sizes(sizes, full(), 0.01, 3, None, AnyMetric()) == [
        2,
        4,
    ]  # there is no smaller size
    sizes[3].screening.drop = 0.1
    assert name_sizes(sizes, full(), 0.01, 2, None, AnyMetric()) == [2, 4]
    assert name_sizes(sizes[:2], full(), 0.01, 2, None, AnyMetric()) == [
        0,
        1,
    ]  # they may differ on fewer
    for size in sizes[2:]:
        size.screening.drop = 0.1
    assert name_sizes(sizes, full(), 0.01, 1, None, AnyMetric()) == [
        1
    ]  # good, whatever can be shown of it
    sizes[0].certifiable, sizes[1].certifiable = 0.005, 0.02
    assert name_sizes(sizes, full(), 0.01, 1, None, AnyMetric()) == [0]


def test_few_rows_of_classes_are_not_believed_too_much() -> None:
    rng = np.random.default_rng(0)
    wanted = rng.integers(2, size=40)
    given = np.where(rng.random(40) < 0.2, 1 - wanted, wanted)
    whole = row_scores("mcc", "matthews_correlation", given, wanted)
    size = Size(parameters=9, components=1, largest_rank=1, served=9)
    planned = PlannedSize(0.07, 9, {"a": 1})
    test = {"test_rows": 320, "confidence": 0.95}

    def seen(changed: list[int]) -> Screened:
        other = given.copy()
        other[changed] = 1 - other[changed]
        small = row_scores("mcc", "matthews_correlation", other, wanted)
        return measured(planned, size, whole, small, **test)  # type: ignore[arg-type]

    nothing, some = seen([]), seen([0, 1])
    # beforehand a quarter of the rows differs, which counts as much as 20 of the 60 rows do
    assert nothing.differing == pytest.approx(320 * 0.25 / 3, abs=0.2)
    assert nothing.certifiable == few_rows_bound(whole, 31, 0.95, rows=320)  # 4 times in 5
    assert nothing.expected == 0
    assert some.differing == pytest.approx(320 * (0.25 / 3 + 0.05 * 2 / 3), abs=0.2)
    assert some.expected is not None
    # a row is worth about twice what it is to accuracy: 0.25 / 2 of them lost
    assert some.expected - 2 / 3 * some.screening.drop == pytest.approx(2 * 0.125 / 3, rel=0.25)


def screened_rows(rows: int, lost: list[int], *, test_rows: int) -> list[Screened]:
    """All planned sizes; each gets a number of rows wrong that full rank has right."""
    whole, size = np.ones(rows), Size(parameters=9, components=1, largest_rank=1, served=9)
    found = []
    for number, share in enumerate(SHARES):
        small = whole.copy()
        small[: lost[number]] = 0
        scores = [row_scores("accuracy", "right", values) for values in (whole, small)]
        planned = PlannedSize(share, 9, {"a": 1})
        found.append(measured(planned, size, *scores, test_rows=test_rows, confidence=0.95))
    return found


def test_of_few_rows_that_all_agree_the_smallest_size_is_not_believed() -> None:
    sizes = screened_rows(20, [0] * 11, test_rows=160)
    assert all(size.screening.drop == 0 for size in sizes)
    # half of what is expected beforehand: 1.25 points of the largest size, 8 times that at 8.75 %
    assert [size.expected for size in sizes[:3]] == pytest.approx(
        [0.00625, 0.00875, 0.0145833], rel=1e-4
    )
    for max_drop, most, named in [
        (0.05, 1, [1]),  # what 160 rows can be expected to certify is 4.1 points
        (0.05, 2, [1, 5]),
        (0.05, 3, [1, 5, 7]),
        (0.03, 2, [0, 4]),  # 2.5 % differing rows are too many for it: the largest is safest
        (0.03, 1, [0]),
    ]:
        assert name_sizes(sizes, full(), max_drop, most, None, RightOrWrong()) == named
    assert name_sizes(sizes, full(), 0.03, 2, None, RightOrWrong(), tested=False) == [4]


def test_of_many_rows_that_all_agree_the_smallest_size_is_believed() -> None:
    sizes = screened_rows(2000, [0] * 11, test_rows=6000)
    assert sizes[-1].expected == pytest.approx(0.0125 * 35 * 20 / 2020)
    assert name_sizes(sizes, full(), 0.02, 2, None, RightOrWrong()) == [10]


def test_the_safe_size_is_one_that_test_rows_can_be_expected_to_certify() -> None:
    lost = [0, 2, 4, 8, 12, 16, 30, 60, 90, 150, 200]  # of 1,000
    sizes = screened_rows(1000, lost, test_rows=3000)
    usual = certifiable_drop(3000, differing=0.025)
    assert [size.certifiable for size in sizes[:6]] == [usual] * 6  # never less: 2.5 % may differ
    assert sizes[7].certifiable == certifiable_drop(3000, differing=0.065)
    # 9.0 and 13 points in 1,000 are expected of 22 and 15 %; all that is certified is 7 more
    assert name_sizes(sizes, full(), 0.017, 2, None, RightOrWrong()) == [3, 4]
    assert name_sizes(sizes, full(), 0.017, 3, None, RightOrWrong()) == [3, 4, 6]
    assert name_sizes(sizes, full(), 0.025, 2, None, RightOrWrong()) == [
        5,
        7,
    ]  # safe and liked: one bolder


def test_where_no_size_is_good_enough_the_largest_is_tried() -> None:
    sizes = screened_rows(400, [60 + 10 * n for n in range(11)], test_rows=1200)
    assert name_sizes(sizes, full(), 0.02, 1, None, RightOrWrong()) == [0]
    assert name_sizes(sizes, full(), 0.02, 2, None, RightOrWrong()) == [0, 2]


@pytest.mark.parametrize(
    ("formula", "max_drop", "possible"),
    [
        ("right", 0.02, True),
        ("right", 0.001, False),
        ("mean", 0.001, True),  # not known beforehand
        ("same", 0.01, True),
        ("same", 0.0099, False),
    ],
)
def test_whether_a_test_could_pass(formula: str, max_drop: float, possible: bool) -> None:
    scores = row_scores("m", formula, np.ones(3))
    found = statistic_of(scores).method_on(300, 0.95)
    assert found.may_pass(max_drop) is possible


def test_of_sizes_that_cost_the_same_the_largest_is_trained() -> None:
    sizes = screened([0, 0, 0, 0, 0], served=[160, 160, 80, 80, 80])
    whole = full(served=160)
    assert name_sizes(sizes, whole, 0.01, 3, "vllm", AnyMetric()) == [
        2
    ]  # the first two cost what all does
    assert name_sizes(sizes, full(served=320), 0.01, 3, "vllm", AnyMetric()) == [0, 2]


def test_where_nothing_is_saved_parameters_decide() -> None:
    sizes = screened([0, 0, 0], served=[80, 80, 80])
    assert name_sizes(sizes, full(served=80), 0.01, 3, "vllm", AnyMetric()) == [0, 2]


def test_what_is_saved_is_said() -> None:
    whole = size_of({"a": 16, "b": 16}, COST, "vllm")
    small = size_of({"a": 8, "b": 1}, COST, "vllm")
    assert saving(small, whole, "vllm") == (
        "9 of 32 components, 100 of 480 parameters (20.8%); served by vllm: max_lora_rank 8, not "
        "16, 50% of the numbers"
    )
    large = size_of({"a": 16, "b": 1}, COST, "vllm")
    assert "nothing is saved where vllm serves it" in saving(large, whole, "vllm")
    padded = size_of({"a": 4, "b": 1}, COST, "llama.cpp")
    whole = size_of({"a": 16, "b": 16}, COST, "llama.cpp")
    assert saving(padded, whole, "llama.cpp").endswith(
        "padded to rank 4, not 16, 25% of the numbers"
    )
