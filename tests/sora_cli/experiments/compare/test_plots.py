"""Pictures of a comparison: which are written, and what is in their panels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from sora_cli.core.errors import SoraError
from sora_cli.core.figures import new_figure, plain, short_number
from sora_cli.experiments.compare.finding import find_runs
from sora_cli.experiments.compare.grouping import group_runs
from sora_cli.experiments.compare.plot_curves import draw_curves, find_ablations
from sora_cli.experiments.compare.plot_labels import Label, place_labels
from sora_cli.experiments.compare.plot_points import draw_points, pareto_front
from sora_cli.experiments.compare.plot_ranks import MeanRanks, draw_rank_maps, rank_text
from sora_cli.experiments.compare.plot_style import Scale, Spread
from sora_cli.experiments.compare.plots import plot_comparison
from sora_cli.experiments.compare.runs import Group, Run
from tests.helpers_reports import KINDS, report_of, write_study
from tests.present import present


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Sequence[Group]:
    return group_runs(find_runs([write_study(tmp_path_factory.mktemp("study"))]).runs).groups


def groups(*about: dict[str, Any]) -> Sequence[Group]:
    runs = [Run.of(Path(f"runs/{i}"), report_of(**words)) for i, words in enumerate(about)]
    return group_runs(runs).groups


def texts(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.texts]


def titles(figure: Figure) -> list[str]:
    return [axes.get_title(loc="left") for axes in figure.axes if axes.get_visible()]


def ends(axes: Any) -> Any:
    """Where error bars begin and end, [bar][end][x or y]."""
    return [s for c in axes.collections for s in c.get_segments()]


def test_three_pictures(study: Sequence[Group], tmp_path: Path) -> None:
    written = plot_comparison(study[:4], tmp_path / "all.svg")
    assert [path.name for path in written] == ["all.svg", "all-ranks.svg", "all-curves.svg"]
    assert all(path.read_text(encoding="utf-8").rstrip().endswith("</svg>") for path in written)


def test_only_what_there_is_to_draw(tmp_path: Path) -> None:
    written = plot_comparison(groups({"method": "lora"}), tmp_path / "one.png")
    assert written == [tmp_path / "one.png"]
    assert written[0].read_bytes().startswith(b"\x89PNG")


def test_no_such_kind_of_picture(study: Sequence[Group], tmp_path: Path) -> None:
    with pytest.raises(SoraError, match=r"no picture can be written as \.doc"):
        plot_comparison(study[:1], tmp_path / "a.doc")


def test_a_panel_per_task_with_every_group_named(study: Sequence[Group]) -> None:
    figure = draw_points(study)
    assert titles(figure) == list(dict.fromkeys(group.task for group in study))
    for axes in figure.axes:
        members = [group for group in study if group.task == axes.get_title(loc="left")]
        assert sorted(texts(axes)) == sorted(group.label for group in members)
        assert axes.get_title(loc="right") == ""


def test_points_and_bars_are_mean_and_deviation() -> None:
    figure = draw_points(groups(*({"method": "lora", "seed": s, "metric": m}
                                  for s, m in enumerate((0.70, 0.80, 0.90)))))  # fmt: skip
    (axes,) = figure.axes
    (low, high) = next(bar for bar in ends(axes) if bar[0][0] == bar[1][0])
    assert (low[1], high[1]) == pytest.approx((70, 90))
    assert axes.lines[0].get_ydata() == pytest.approx([80])
    assert axes.get_ylabel() == "accuracy x 100"


def test_head_only_has_its_place_left_of_a_logarithmic_axis() -> None:
    figure = draw_points(groups(
        {"method": "lora", "ranks": {}, "metric": 0.5, "settings": {"method.r": 2}},
        {"method": "lora", "start": 1, "metric": 0.6, "settings": {"method.r": 1}},
        {"method": "lora", "start": 64, "metric": 0.7, "settings": {"method.r": 64}},
    ))  # fmt: skip
    (axes,) = figure.axes
    assert axes.get_xscale() == "log"
    places = sorted(line.get_xdata()[0] for line in axes.lines if len(line.get_xdata()) == 1)
    assert axes.get_xlim()[0] < places[0] < places[1] / 2
    names = dict(zip(axes.get_xticks(), axes.xaxis.get_major_formatter().format_ticks(
        axes.get_xticks()), strict=True))  # fmt: skip
    assert names[places[0]] == "0"
    assert all(name != "0" for place, name in names.items() if place != places[0])


@pytest.mark.parametrize("start", [3, 8, 10])
def test_the_axis_goes_on_to_a_tick_beyond_the_largest(start: int) -> None:
    figure = draw_points(groups({"method": "lora", "start": start},
                                {"method": "sora", "start": start, "ranks": 2}))  # fmt: skip
    (axes,) = figure.axes
    assert axes.get_xscale() == "linear"
    largest = max(x for line in axes.lines for x in line.get_xdata() if len(line.get_xdata()) == 1)
    right = axes.get_xlim()[1]
    assert 1.05 * largest < right == axes.get_xticks()[-1] < 1.7 * largest


def test_a_run_without_a_score_is_no_point() -> None:
    figure = draw_points(groups({"method": "lora", "metric": math.nan}, {"method": "sora"}))
    assert len(texts(figure.axes[0])) == 1
    draw_points(groups({"method": "lora", "metric": math.nan}))


@pytest.mark.parametrize(("better", "front"), [(True, [3, 0, 2]), (False, [3, 1])])
def test_pareto_front(better: bool, front: list[int]) -> None:
    points = [(10, 0.7), (10, 0.5), (20, 0.8), (0, 0.6), (30, 0.8)]
    assert pareto_front(points, greater_is_better=better) == front


def test_labels_never_cover_one_another() -> None:
    figure = new_figure(4, 3, solved=False)
    axes = figure.add_subplot()
    points = [(x, y) for x in (0.3, 0.32, 0.5) for y in (0.4, 0.42, 0.6)]
    axes.plot(*zip(*points, strict=True), "o")
    missing = place_labels(figure, axes, [Label(x, y, f"a name {x} {y}") for x, y in points])
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) + missing == len(points)
    assert len(boxes) > 5
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:i])
        assert axes.get_window_extent().x0 <= box.x0


def test_labels_that_find_no_place_are_counted() -> None:
    figure = new_figure(2, 2, solved=False)
    axes = figure.add_subplot()
    labels = [Label(0.5, 0.5, "a name that is wide")] * 60
    missing = place_labels(figure, axes, labels)
    assert 0 < missing == 60 - len(axes.texts)


def test_foreign_text_is_no_formula(tmp_path: Path) -> None:
    label = "$\\frac{1$ <b>&\x1b[0m $"
    made = groups({"method": "lora", "label": label, "metric": 0.5, "task": "$a$"})
    path = plot_comparison(made, tmp_path / "a.png")[0]
    assert path.stat().st_size > 0
    shown = draw_points(made).axes[0].texts[0].get_text()
    assert shown == plain(label)
    assert not Text(parse_math=True)._preprocess_math(shown)[1]
    assert len(plain("x" * 100, 30)) == 30


def test_mean_ranks_over_seeds(study: Sequence[Group]) -> None:
    (group,) = groups(*({"method": "sora", "seed": s, "ranks": dict.fromkeys(KINDS, r)}
                        for s, r in enumerate((2, 3))))  # fmt: skip
    ranks = present(MeanRanks.of(group))
    assert set(ranks.live.values()) == {2.5}
    assert ranks.largest == 8
    assert ranks.kept == Spread(pytest.approx(2.5 / 8), pytest.approx(math.sqrt(0.5) / 8))
    assert MeanRanks.of(next(g for g in study if g.method == "lora")) is None


def test_a_heat_map_for_every_group_whose_ranks_changed(study: Sequence[Group]) -> None:
    figure = draw_rank_maps(study)
    changed = [group for group in study if group.method == "sora"]
    maps = [axes for axes in figure.axes if axes.images and axes.get_title(loc="left")]
    assert len(maps) == len(changed) == 4
    for axes, group in zip(maps, changed, strict=True):
        assert axes.get_title(loc="left").startswith(f"{group.task}: {group.label}\n")
        assert axes.images[0].get_array().shape == (6, 6)
        assert len(axes.texts) == 36
    assert draw_rank_maps([group for group in study if group.method == "lora"]) is None


def test_ranks_in_cells() -> None:
    assert [rank_text(x) for x in (0, 0.03, 1 / 3, 2.0, 12.4)] == ["0", "<.1", "0.3", "2", "12"]


def test_ablations_are_what_differs_in_one_number_alone() -> None:
    made = groups(*(
        {"method": "sora", "label": f"{t} {r}", "settings": {"method.threshold": t,
                                                             "method.r_max": r}}
        for t in (1e-4, 1e-3, 1e-2) for r in (4, 8) if (t, r) != (1e-2, 8)
    ), {"method": "lora", "settings": {"method.r": 4, "method.alpha": 4}},
       {"method": "lora", "settings": {"method.r": 8, "method.alpha": 8}})  # fmt: skip
    found = {ablation.key: ablation for ablation in find_ablations(made)}
    assert set(found) == {"method.threshold", "method.r_max"}  # r and alpha change together
    curves = {c.name: list(c.points) for c in found["method.threshold"].curves}
    assert curves == {"r_max 4": [1e-4, 1e-3, 1e-2], "r_max 8": [1e-4, 1e-3]}
    assert [list(c.points) for c in found["method.r_max"].curves] == [[4, 8], [4, 8]]


def test_metric_and_parameters_are_twin_panels(study: Sequence[Group]) -> None:
    figure = draw_curves(study)
    found = find_ablations(study)
    assert len(figure.axes) == 2 * len(found) > 0
    for ablation, left, right in zip(found, figure.axes[::2], figure.axes[1::2], strict=True):
        assert left.get_title(loc="left") == f"{ablation.task}, {ablation.method}"
        assert left.get_xlabel() == right.get_xlabel() == ablation.key
        assert right.get_ylabel() == "parameters kept"
        points = ablation.curves[0].points.values()
        means = [100 * sum(group.metrics) / len(group.metrics) for group in points]
        assert left.lines[0].get_ydata() == pytest.approx(means)
    assert draw_curves(study[:1]) is None


def test_scales() -> None:
    assert not Scale.of([1, 9]).log
    wide = Scale.of([0, 10, 1000])
    assert wide.log
    assert wide.at(0) < 10 == wide.at(10)
    assert Scale.of([5, 9], from_zero=True).low == 0
    assert Scale.of([]).high == 0
    assert not Scale.of([-5, 1, 100]).log


def test_numbers_on_axes() -> None:
    shown = [short_number(x) for x in (0, 0.001, 12, 1500, 331776, 2.2e7)]
    assert shown == ["0", "0.001", "12", "1.5k", "332k", "22M"]
