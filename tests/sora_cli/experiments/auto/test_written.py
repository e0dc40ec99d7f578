"""Which size is written, and the picture of it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from methods.base import LowRankLinear
from methods.factors import LowRankFactors
from sora_cli.experiments.auto import plot
from sora_cli.experiments.auto.cuts import replaced_factors
from sora_cli.experiments.auto.plan import placed, plan_auto
from sora_cli.experiments.auto.plot import plot_curve
from sora_cli.experiments.auto.tables import full_layers
from sora_cli.recipe.load import load_recipe
from sora_cli.report import Ranks, RunReport
from sora_cli.search.evidence import Candidate, choose, failed
from sora_cli.search.record import AutoRecord
from sora_cli.search.row_set import RowSet
from sora_cli.search.statistic import Bound
from sora_cli.search.words import size_table, untrained_line
from tests.present import present
from tests.sora_cli.experiments.auto.support import auto_recipe, full, screened
from tests.sora_cli.search.test_certificate import certificate


def candidate(number: int, kept: bool | None, *, upper: float = 0.004) -> Candidate:
    test = Bound(score=0.8, drop=0.001, upper=upper, kept=bool(kept))
    return Candidate(
        parameters=512 >> number,
        components=10,
        largest_rank=2,
        served=512 >> number,
        max_params=512 >> number,
        directory=f"sizes/{number + 1}",
        digest="sha256:b",
        heal_steps=5,
        test=None if kept is None else test,
        reported={},
    )


@pytest.mark.parametrize(
    ("kept", "chosen", "ended"),
    [
        ([True, True, True], 2, None),
        ([True, True, False], 1, 2),
        ([True, False], 0, 1),
        ([False], 0, 0),  # nothing is certified: the largest is written
        ([None], 0, None),  # the rows could not certify anything
    ],
)
def test_what_is_written(kept: list[bool | None], chosen: int, ended: int | None) -> None:
    candidates = [candidate(i, value) for i, value in enumerate(kept)]
    assert choose(candidates) == chosen
    assert failed(candidates) == ended


def test_a_size_that_hardly_differs_ends_nothing() -> None:
    record = AutoRecord(name="r", recipe={})
    record.screened = [size.model_copy(update={"named": True}) for size in screened([0, 0, 0])]
    first, second = candidate(0, False), candidate(1, False)
    assert first.test is not None
    first.test.passed_over = True
    record.add(first)
    assert len(record.waiting()) == 2
    record.add(second)
    assert (record.waiting(), failed(record.candidates)) == ([], 1)
    record.candidates = [first, candidate(1, True)]
    assert (choose(record.candidates), failed(record.candidates)) == (1, None)


def test_layers_that_keep_all_are_named() -> None:
    report = RunReport(name="r", recipe={})
    report.ranks = {"a": Ranks(start=8, end=8), "b": Ranks(start=8, end=7)}
    said = present(full_layers(report))
    assert "1 layer keeps all 8 components (a)" in said
    assert said.endswith("auto.r_max=16")
    report.ranks["a"].end = 3
    assert full_layers(report) is None


def test_keys_that_are_found(tmp_path: Path) -> None:
    plan = plan_auto(load_recipe(str(auto_recipe(tmp_path)), []))
    assert placed(plan.loaded, plan).recipe.output.derived == ["method.max_params"]


@pytest.mark.parametrize("upper", [0.004, math.nan])
def test_the_curve_and_the_table(tmp_path: Path, upper: float) -> None:
    found = certificate()
    found.full = full()
    found.screened = screened([0.0, 0.002, 0.3])
    found.candidates = [candidate(0, True), candidate(1, False, upper=upper)]
    found.rows = {
        name: RowSet(split=name, rows=90, digest="d")
        for name in ("screening", "test", "validation")
    }
    plot_curve(found, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 10_000
    table = size_table(found)
    rows = [table.shown(row) for row in table.rows]
    assert [row[-1] for row in rows] == ["", "passed, written", "failed"]
    assert [row[0] for row in rows] == ["full rank", "51.2%", "25.6%"]
    assert untrained_line(found) == "1 other size was scored before healing, and not trained: 12.8%"
    found.screened = found.screened[:2]
    assert untrained_line(found) is None


def test_the_whole_legend_is_in_the_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, drawn = certificate(), []
    monkeypatch.setattr(plot, "save_figure", lambda figure, _: drawn.append(figure))
    passed = found.candidates[0]
    assert passed.test is not None
    test = passed.test.model_copy(update={"kept": False})
    found.candidates.append(passed.model_copy(update={"parameters": 18, "test": test}))
    found.rows = {name: row.model_copy(update={"rows": 98765}) for name, row in found.rows.items()}
    plot_curve(found, tmp_path / "curve.png")
    (figure,) = drawn
    figure.draw_without_rendering()
    (legend,) = figure.legends
    box, axes = legend.get_window_extent(), figure.axes[0].get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.x1
    assert 0 <= box.y0 < box.y1 < axes.y0
    assert axes.height > 0.5 * figure.bbox.height


def test_other_factors_are_held_for_a_while() -> None:
    base = torch.nn.Linear(6, 5)
    a, b = torch.randn(4, 6), torch.randn(5, 4)
    layer = LowRankLinear(base, a, b, scaling=0.5)
    small = LowRankFactors(a[:2], 0.5 * b[:, :2])
    x = torch.randn(3, 6)
    before = layer(x)
    with replaced_factors({"l": layer}, {"l": small}):
        expected = base(x) + x @ small.dense().float().T
        torch.testing.assert_close(layer(x), expected)
        assert layer.A.shape == (4, 6)
    assert torch.equal(layer(x), before)
