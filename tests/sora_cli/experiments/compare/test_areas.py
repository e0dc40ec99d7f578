"""The area under the curve of metric against log(parameters)."""

from __future__ import annotations

import pytest

from sora_cli.experiments.compare.areas import Areas, areas_of, aurac
from sora_cli.experiments.compare.sizes import sizes_of
from tests.sora_cli.experiments.compare.arena import groups, label

CURVE = [(8, 1.0), (1, 0.2), (2, 0.6)]


def test_trapezoids_over_the_logarithm() -> None:
    """Of log2(8) = 3 units one has the mean 0.4 and two have 0.8: 2 / 3."""
    assert aurac(CURVE, 1, 8) == pytest.approx((0.4 + 2 * 0.8) / 3)


def test_cut_to_a_range() -> None:
    """Half way, by the logarithm, from 2 to 8 the line is at 0.8."""
    assert aurac(CURVE, 2, 4) == pytest.approx(0.7)
    assert aurac(CURVE, 4, 8) == pytest.approx(0.9)


def test_it_reads_as_a_metric_and_has_no_unit_of_size() -> None:
    assert aurac([(3, 0.7), (30, 0.7), (300, 0.7)], 3, 300) == pytest.approx(0.7)
    larger = [(1000 * size, metric) for size, metric in CURVE]
    assert aurac(larger, 1000, 8000) == pytest.approx(aurac(CURVE, 1, 8))


def test_equal_sizes_are_averaged() -> None:
    twice = [(1, 0.2), (2, 0.5), (2, 0.7), (8, 1.0)]
    assert aurac(twice, 1, 8) == pytest.approx(aurac(CURVE, 1, 8))


def family(name: str, scores: dict[int, list[float]]) -> list[object]:
    return [run for size, of in scores.items() for run in label(f"{name}-{size}", size, of)]


def found(*families: list[object], base: list[float] | None = None) -> Areas:
    known = label("base", 100, base or [0.5, 0.6])
    return areas_of(sizes_of(groups(known, *families), "base", min_gain=0))  # type: ignore[arg-type]


def test_families_over_the_range_that_all_have() -> None:
    areas = found(
        family("a", {10: [0.2, 0.3], 20: [0.6, 0.7], 80: [1.0, 1.0]}),
        family("b", {20: [0.5, 0.5], 40: [0.5, 0.7], 160: [0.5, 0.7]}),
    )
    assert (areas.low, areas.high) == (0.2, 0.8)
    one, two = areas.areas
    assert (one.family, two.family) == ("a", "b")
    assert one.reach == pytest.approx((0.1, 0.8))
    assert one.scores["rte"] == {0: pytest.approx(0.8), 1: pytest.approx(0.85)}
    assert two.scores["rte"] == {0: pytest.approx(0.5), 1: pytest.approx((0.6 + 0.7) / 2)}
    assert areas.left_out == ("base",)


def test_two_sizes_are_no_curve_and_narrow_nothing() -> None:
    three = family("a", {10: [0.2], 20: [0.6], 80: [1.0]})
    areas = found(three, family("b", {8: [0.5], 15: [0.5]}))
    assert [area.family for area in areas.areas] == ["a"]
    assert (areas.low, areas.high) == (0.1, 0.8)
    assert areas.left_out == ("base", "b")


def test_seeds_that_not_all_sizes_have_do_not_count() -> None:
    areas = found(family("a", {10: [0.2, 0.3], 20: [0.6], 80: [1.0, 1.0]}))
    assert list(areas.areas[0].scores["rte"]) == [0]


def test_no_common_range() -> None:
    areas = found(family("a", {1: [0.2], 2: [0.6], 3: [1.0]}),
                  family("b", {30: [0.2], 40: [0.6], 50: [1.0]}))  # fmt: skip
    assert areas.areas == ()
    assert found().areas == ()


def test_a_run_without_parameters_has_no_place_on_a_logarithm() -> None:
    dead = label("a-5", 5, [0.1, 0.1])
    dead[1].report.parameters.adapter_end = 0
    areas = found([*dead, *family("a", {10: [0.2, 0.2], 20: [0.6, 0.6], 80: [1.0, 1.0]})])
    assert areas.low == 0.1
