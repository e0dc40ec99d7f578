"""The picture of a comparison at equal size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sora_cli.experiments.compare.plot_sizes import Point, draw_sizes, family_lines
from sora_cli.experiments.compare.plots import plot_sizes
from sora_cli.experiments.compare.sizes import Sizes, sizes_of
from tests.sora_cli.experiments.compare.arena import groups, label

CUTS = {50: 0.85, 30: 0.84, 15: 0.83, 8: 0.81}


@pytest.fixture(scope="module")
def sizes() -> Sizes:
    found = groups(
        label("lora-r8", 100, [0.80, 0.90]),
        label("lora-r16", 200, [0.81, 0.91]),
        label("lora-r1", 12.5, [0.78, 0.86]),
        label("huge", 900, [0.9, 0.9], method="full"),
        label("adalora", 60, [0.7, 0.8], method="adalora"),
        *(label(f"cut-{size}", size, [m - 0.05, m + 0.05], method="cut")
          for size, m in CUTS.items()),
        *(label(f"sora-{size}", size, [m - 0.15, m], method="sora") for size, m in CUTS.items()),
    )  # fmt: skip
    return sizes_of(found, "lora-r8")


def drawn(sizes: Sizes) -> Any:
    (axes,) = draw_sizes(sizes, (0.5, 0.15)).axes
    return axes


def test_points_are_paired_differences(sizes: Sizes) -> None:
    lines = family_lines(sizes)
    assert set(lines) == {"lora", "adalora", "cut", "sora"}
    assert lines["lora"][0] == Point(12.5, pytest.approx(-3), pytest.approx(-4), pytest.approx(-2))
    assert [point.x for point in lines["lora"]] == [12.5, 100, 200]
    assert lines["lora"][1] == Point(100, 0, 0, 0)
    assert [point.x for point in lines["cut"]] == pytest.approx([8, 15, 30, 50])


def test_a_line_and_a_band_for_each_family(sizes: Sizes) -> None:
    axes = drawn(sizes)
    lines = [
        line for line in axes.lines if len(line.get_xdata()) > 1 and line.get_linestyle() != "None"
    ]
    heights = [list(line.get_ydata()) for line in lines]
    assert [0, 0] in heights
    assert pytest.approx([-4, -2, -1, 0]) in heights
    bands = [c for c in axes.collections if hasattr(c, "get_paths") and len(c.get_paths()[0]) > 5]
    assert len(bands) == 3
    assert axes.get_xscale() == "log"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["15", "50", "100", "200"]


def test_families_are_named_and_names_do_not_overlap(sizes: Sizes) -> None:
    axes = drawn(sizes)
    assert sorted(text.get_text() for text in axes.texts) == ["adalora", "cut", "lora", "sora"]
    boxes = [text.get_window_extent() for text in axes.texts]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    colours = {text.get_text(): text.get_color() for text in axes.texts}
    assert len(set(colours.values())) == 4


def test_one_that_learned_nothing_does_not_flatten_the_others() -> None:
    found = groups(
        label("lora-r8", 100, [0.80, 0.90]),
        *(label(f"cut-{size}", size, [m - 0.05, m + 0.05], method="cut")
          for size, m in CUTS.items()),
        label("sora-4", 4, [0.1, 0.1], method="sora"),
    )  # fmt: skip
    axes = drawn(sizes_of(found, "lora-r8"))
    assert -20 < axes.get_ylim()[0] < -4
    assert "outside of the picture: 1" in axes.get_title(loc="right")


def test_files(sizes: Sizes, tmp_path: Path) -> None:
    names = [path.name for path in plot_sizes(sizes, (0.5, 0.15), tmp_path / "a.svg")]
    assert names == ["a.svg"]
