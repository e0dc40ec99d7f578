"""Which tasks count, how large a label is, and which simple method is the strongest of a size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import pytest

from sora_cli.core.errors import SoraError
from sora_cli.experiments.compare.runs import Run, choose_metric
from sora_cli.experiments.compare.sizes import Sizes, family_of, nearest, sizes_of
from tests.sora_cli.experiments.compare.arena import groups, label, started

BASE = label("lora-r8", 100, [0.80, 0.82])


def sizes(*labels: Sequence[Run], min_gain: float = 0) -> Sizes:
    return sizes_of(groups(*labels), "lora-r8", min_gain=min_gain)


def strongest(found: Sizes, budget: float) -> str | None:
    simple = found.strongest_simple(budget)
    return None if simple is None else simple.label


@pytest.mark.parametrize(
    ("name", "family"),
    [("cut-15", "cut"), ("cut-r16-15", "cut-r16"), ("lora-r8", "lora"), ("lora r=8", "lora"),
     ("sora threshold=1e-05", "sora"), ("prune_7.5%", "prune"), ("adalora", "adalora"),
     ("seq2seq", "seq2seq"), ("cut-and-heal", "cut-and-heal")],
)  # fmt: skip
def test_families(name: str, family: str) -> None:
    assert family_of(name) == family


def test_the_nearest_budget_by_ratio() -> None:
    budgets = (0.7, 0.5, 0.15)
    assert nearest(0.60, budgets) == 0.7  # 1.167 times away, of 0.5 it is 1.2 times
    assert nearest(0.59, budgets) == 0.5
    assert [nearest(share, budgets) for share in (0.12, 0.1875)] == [0.15, 0.15]
    assert [nearest(share, budgets) for share in (0.119, 0.189, 0.9)] == [None, None, None]


def test_shares_are_means_over_tasks_of_means_over_seeds() -> None:
    small = label("sora-30", 20, {"rte": [0.8, 0.8]}) + label("sora-30", 50, {"cola": [0.5]})
    small[1].report.parameters.adapter_end = 300
    both = {"rte": [0.8, 0.82], "cola": [0.5]}
    found = sizes(label("lora-r8", 100, both), small)
    sora = next(one for one in found.labels if one.label == "sora-30")
    assert sora.share == pytest.approx((0.25 + 0.5) / 2)
    assert sora.reach == (0.2, 0.5)


def test_a_label_of_some_tasks_only_is_left_out() -> None:
    both = {"rte": [0.8], "cola": [0.5]}
    found = sizes(label("lora-r8", 100, both), label("cut-15", 15, [0.8]))
    assert [one.label for one in found.labels] == ["lora-r8"]
    assert any("they lack some of these tasks" in note and "cut-15" in note
               for note in found.notes)  # fmt: skip


def test_a_task_counts_where_the_baseline_is_above_the_head() -> None:
    head = {"rte": [0.53], "sst2": [0.70], "cola": [0.05]}
    weak = {"rte": [0.40], "sst2": [0.40], "cola": [0.00]}
    lora = {"rte": [0.579], "sst2": [0.75], "cola": [0.11], "mnli": [0.5]}
    found = sizes(label("lora-r8", 100, lora), label("head", 0, head, method="head", ranks={}),
                  label("weak", 0, weak, method="head", ranks={}), min_gain=5)  # fmt: skip
    assert found.tasks == ("sst2", "cola", "mnli")
    assert "rte (+4.90)" in next(note for note in found.notes if "left out" in note)
    assert "5 points above head" in next(note for note in found.notes if "left out" in note)
    assert "mnli" in next(note for note in found.notes if "without a check" in note)
    with pytest.raises(SoraError, match="no task counts"):
        sizes(label("lora-r8", 100, {"rte": [0.5]}), label("head", 0, [0.5], ranks={}), min_gain=5)


def test_simple_is_a_fixed_rank_from_its_own_start() -> None:
    somebodys = label("mine", 10, [0.9, 0.9])
    for run in somebodys:
        cast("dict[str, Any]", run.settings)["method.name"] = "mine"
    found = sizes(
        BASE, label("lora-r1", 12.5, [0.7, 0.7]), label("sora-30", 12, [0.9, 0.9], method="sora"),
        started(label("prune-15", 12.5, [0.9, 0.9])), somebodys,
        label("bitfit", 10, [0.9, 0.9], method="bitfit"),
    )  # fmt: skip
    assert [one.label for one in found.labels if one.is_simple] == ["lora-r8", "lora-r1"]


def test_the_strongest_simple_of_a_budget() -> None:
    found = sizes(BASE, label("lora-r1", 12.5, [0.79, 0.79]), label("lora-r2", 25, [0.78, 0.79]),
                  label("lora-r4", 50, [0.795, 0.80]))  # fmt: skip
    assert strongest(found, 0.5) == "lora-r4"  # exactly as large
    assert strongest(found, 0.3) == "lora-r1"  # the best with at most so many, not the largest
    assert strongest(found, 0.08) == "lora-r1"  # none is so small: the next larger
    assert strongest(found, 1.0) == "lora-r8"


def test_the_strongest_is_found_by_common_seeds() -> None:
    """A label that has the easy seed alone is not better for that."""
    found = sizes(label("lora-r8", 100, [0.9, 0.5]), label("lora-r1", 12, [0.85]),
                  label("lora-r2", 25, [0.89, 0.49]))  # fmt: skip
    assert strongest(found, 0.3) == "lora-r2"


def test_of_a_loss_the_smallest_is_the_strongest() -> None:
    """Losses of generated reports are 1 - metric."""
    runs = groups(BASE, label("lora-r1", 12.5, [0.6, 0.6]), label("lora-r2", 25, [0.7, 0.7]))
    found = sizes_of(choose_metric(runs, "loss"), "lora-r8")
    assert not found.greater_is_better
    assert strongest(found, 0.5) == "lora-r2"
    assert any("without a check" in note for note in found.notes)


@pytest.mark.parametrize(
    ("baseline", "said"),
    [("lora-r9", "no group is called"), ("head", "has no parameters beside the head")],
)
def test_baselines_that_are_none(baseline: str, said: str) -> None:
    with pytest.raises(SoraError, match=said):
        sizes_of(groups(BASE, label("head", 0, [0.5], method="head")), baseline)
