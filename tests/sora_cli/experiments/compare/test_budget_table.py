"""The tables at equal size: who stands where, and each difference."""

from __future__ import annotations

from math import log
from typing import Any

import pytest

from sora_cli.core.errors import SoraError
from sora_cli.experiments.compare.budget_table import (
    budget_tables,
    groups_near_budgets,
    parse_budgets,
    percent,
)
from sora_cli.experiments.compare.cells import NONE
from sora_cli.experiments.compare.formats import render
from sora_cli.experiments.compare.sizes import Sizes, sizes_of
from sora_cli.experiments.compare.table import Tables
from tests.sora_cli.experiments.compare.arena import groups, label, rows_of, started


def tasks(rte: list[float], cola: list[float]) -> dict[str, list[float]]:
    return {"rte": rte, "cola": cola}


@pytest.fixture(scope="module")
def sizes() -> Sizes:
    found = groups(
        label("lora-r8", 100, tasks([0.80, 0.82], [0.50, 0.54])),
        label("lora-r4", 50, tasks([0.79, 0.81], [0.49, 0.53])),
        label("lora-r1", 12.5, tasks([0.76, 0.78], [0.46, 0.50])),
        label("cut-50", 50, tasks([0.80, 0.82], [0.50, 0.54]), method="cut"),
        label("cut-15", 15, tasks([0.79, 0.83], [0.49, 0.55]), method="cut"),
        label("cut-8", 8, tasks([0.77, 0.79], [0.43, 0.47]), method="cut"),
        label("sora-15", 14, tasks([0.70, 0.72], [0.40, 0.44]), method="sora"),
        label("adalora", 67, tasks([0.70, 0.72], [0.40, 0.44]), method="adalora"),
    )
    return sizes_of(found, "lora-r8")


@pytest.fixture(scope="module")
def table(sizes: Sizes) -> Tables:
    return budget_tables(sizes, (0.5, 0.15, 0.08))


def column(table: Tables, section: str | None, key: str, *, raw: bool = False) -> dict[str, Any]:
    rows = [row for row in rows_of(table) if row.section == section]
    return {row.label: (row.raw if raw else row.shown)[key] for row in rows}


def test_labels_stand_at_their_size_best_first(table: Tables) -> None:
    assert list(column(table, "50%", "n")) == ["lora-r8", "cut-50", "lora-r4"]
    assert list(column(table, "15%", "n")) == ["lora-r8", "cut-15", "lora-r1", "sora-15"]
    assert list(column(table, "8%", "n")) == ["lora-r8", "lora-r1", "cut-8"]
    assert set(column(table, "15%", "n").values()) == {"4"}


def test_differences_to_the_baseline_and_to_the_simple_method(table: Tables) -> None:
    assert column(table, "15%", "metric")["cut-15"] == "66.50"
    assert column(table, "15%", "difference") == {
        "lora-r8": NONE, "cut-15": "+0.00 [-1.00, +1.00] (4)",
        "lora-r1": "-4.00 [-4.00, -4.00] (4)", "sora-15": "-10.00 [-10.00, -10.00] (4)",
    }  # fmt: skip
    assert column(table, "15%", "simple_difference") == {
        "lora-r8": "+4.00 [+4.00, +4.00] (4)", "cut-15": "+4.00 [+3.00, +5.00] (4)",
        "lora-r1": NONE, "sora-15": "-6.00 [-6.00, -6.00] (4)",
    }  # fmt: skip
    assert column(table, "50%", "simple_difference", raw=True)["cut-50"] == pytest.approx(0.01)
    assert set(column(table, "8%", "simple", raw=True).values()) == {"lora-r1"}


def test_captions_say_what_is_compared(table: Tables) -> None:
    assert {name: found.title for name, found in table.parts.items()} == {
        "50%": "50% of lora-r8 (40% to 62.5%): mean over 2 tasks, x 100; simple: lora-r4 (50%)",
        "15%": "15% of lora-r8 (12% to 18.8%): mean over 2 tasks, x 100; simple: lora-r1 (12.5%)",
        "8%": "8% of lora-r8 (6.4% to 10%): mean over 2 tasks, x 100; simple: lora-r1 (12.5%)",
        None: "AURAC, all sizes from 12.5% to 50% of lora-r8: mean over 2 tasks, x 100; "
              "simple: lora",
    }  # fmt: skip
    notes = "\n".join(table.footnotes)
    assert "in no table, because no budget is near their size: adalora (67%)" in notes
    assert "because of fewer than 3 sizes: sora, adalora" in notes
    assert "counted without a check" in notes


def test_the_area_of_each_family(table: Tables) -> None:
    """By hand: the range is that of LoRA's ranks 1 to 4 and the cuts to 8, 15 and 50 %."""
    means = column(table, None, "metric", raw=True)
    assert list(means) == ["cut", "lora"]  # the best first
    assert means["lora"] == pytest.approx((0.625 + 0.655) / 2)
    assert column(table, None, "difference")["lora"] == "-2.50 [-2.50, -2.50] (4)"
    enters = 0.615 + 0.05 * log(12.5 / 8) / log(15 / 8)  # between the cuts to 8 and 15 %
    before, after = log(15 / 12.5), log(50 / 15)
    area = before * (enters + 0.665) / 2 + after * (0.665 + 0.665) / 2
    assert means["cut"] == pytest.approx(area / log(50 / 12.5))
    assert column(table, None, "simple_difference", raw=True)["cut"] == pytest.approx(
        means["cut"] - means["lora"]
    )
    assert column(table, None, "simple_difference")["lora"] == NONE
    assert column(table, None, "share") == {"lora": "12.5% to 100%", "cut": "8% to 50%"}


def test_as_data(table: Tables) -> None:
    lines = render(table, "csv").splitlines()
    assert lines[0].startswith("budget,label,n,share,share_low,share_high,parameters,metric,")
    assert sum(line.startswith("0.15,") for line in lines) == 4
    assert '"budget": "15%"' in render(table, "json")
    assert "**15% of lora-r8" in render(table, "markdown")


def test_shares_that_vary_are_a_range() -> None:
    runs = label("sora-15", 15, [0.5, 0.5], method="sora")
    runs[1].report.parameters.adapter_end = 170
    found = sizes_of(groups(label("lora-r8", 100, [0.5, 0.5]), runs), "lora-r8")
    table = budget_tables(found, (0.15,))
    assert column(table, "15%", "share") == {"lora-r8": "100%", "sora-15": "16% (15% to 17%)"}


def test_groups_of_the_budgets_asked_for(sizes: Sizes) -> None:
    shown = [(group.task, group.label) for group in groups_near_budgets(sizes, (0.08,))]
    assert shown == [("rte", "cut-8"), ("cola", "cut-8")]


def test_budgets_are_percentages() -> None:
    assert parse_budgets("70, 15%,7.5") == pytest.approx((0.7, 0.15, 0.075))
    assert [percent(share) for share in (0.15, 0.125, 1.0, 2.0)] == ["15%", "12.5%", "100%", "200%"]
    for text in ("", "a", "0", "-5", "nan", "inf", "15,15"):
        with pytest.raises(SoraError, match="budget"):
            parse_budgets(text)


def test_bytes_are_counted_where_adapters_are_rounded() -> None:
    """Runs that only round a LoRA of fixed rank are simple, too."""
    whole = label("lora-r8", 100, tasks([0.80, 0.82], [0.50, 0.54]))
    small = label("cut-15", 15, tasks([0.79, 0.83], [0.49, 0.55]), method="cut")
    rounded = started(label("cut-15-b4", 15, tasks([0.79, 0.82], [0.49, 0.55]), method="cut"))
    simple = started(label("lora-r1-b8", 12.5, tasks([0.77, 0.78], [0.47, 0.50])))
    for run in (*rounded, *simple):
        assert run.report.start is not None
        run.report.start.bits = 4
        run.report.parameters.adapter_bytes = run.parameters * 5 // 8
    of = sizes_of(groups(whole, small, rounded, simple), "lora-r8", unit="bytes")
    table = budget_tables(of, (0.15, 0.023))
    assert column(table, "15%", "label", raw=True).keys() == {"lora-r8", "cut-15", "lora-r1-b8"}
    assert column(table, "2.3%", "bytes") == {"lora-r8": "4,000", "cut-15-b4": "93",
                                              "lora-r1-b8": "78"}  # fmt: skip
    assert column(table, "2.3%", "simple", raw=True)["cut-15-b4"] == "lora-r1-b8"
    assert "parameters" not in "".join(table.footnotes)
