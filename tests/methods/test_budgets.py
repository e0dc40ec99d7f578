"""Budgets over all layers: against every possible choice of ranks."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from methods.budgets import holding_energy, strongest, within_parameters

VALUES = {
    "a": torch.tensor([5.0, 2.0, 1.0], dtype=torch.float64),
    "b": torch.tensor([4.0, 3.0], dtype=torch.float64),
    "c": torch.tensor([0.5, 0.0, 0.0], dtype=torch.float64),
    "none": torch.zeros(0, dtype=torch.float64),
}
COST = {"a": 10, "b": 10, "c": 10, "none": 10}


def energy(ranks: dict[str, int], values: dict[str, Tensor] = VALUES) -> float:
    return float(sum(values[path][:rank].square().sum() for path, rank in ranks.items()))


def every_choice() -> list[dict[str, int]]:
    ranges = [range(s.numel() + 1) for s in VALUES.values()]
    return [dict(zip(VALUES, ranks, strict=True)) for ranks in product(*ranges)]


@pytest.mark.parametrize("count", range(9))
def test_the_strongest_hold_the_most_of_so_many(count: int) -> None:
    ranks = strongest(VALUES, count)
    assert sum(ranks.values()) == min(count, 6)  # zeros are never kept
    best = max(energy(r) for r in every_choice() if sum(r.values()) <= count)
    assert energy(ranks) == best


def test_the_strongest_by_what_a_number_of_them_is_worth() -> None:
    cost = {**COST, "a": 90}  # 5 / sqrt(90) = 0.53 is less than 3 / sqrt(10) = 0.95
    assert strongest(VALUES, 2, cost) == {"a": 0, "b": 2, "c": 0, "none": 0}
    cost = {**COST, "a": 20}  # 5 / sqrt(20) = 1.12 is more, though 5 / 20 is less than 3 / 10
    assert strongest(VALUES, 2, cost) == {"a": 1, "b": 1, "c": 0, "none": 0}


@pytest.mark.parametrize("share", [0.01, 0.3, 0.45, 0.46, 0.75, 0.9, 0.99, 1.0])
def test_the_fewest_that_hold_an_energy(share: float) -> None:
    ranks = holding_energy(VALUES, share)
    enough = [r for r in every_choice() if energy(r) >= share * 55.25]
    assert energy(ranks) >= share * 55.25
    assert sum(ranks.values()) == min(sum(r.values()) for r in enough)


def test_just_enough_is_enough() -> None:
    equal = {"a": torch.ones(4, dtype=torch.float64)}
    assert holding_energy(equal, 0.5) == {"a": 2}


def test_nothing_holds_nothing() -> None:
    zeros = {"a": torch.zeros(2, dtype=torch.float64)}
    assert holding_energy(zeros, 0.5) == {"a": 0}
    assert strongest(zeros, 1) == {"a": 0}
    assert within_parameters(zeros, {"a": 3}, 100) == {"a": 0}


@pytest.mark.parametrize("limit", [0, 9, 10, 25, 39, 40, 60, 1000])
def test_the_most_within_so_many_parameters(limit: int) -> None:
    ranks = within_parameters(VALUES, COST, limit)
    allowed = [r for r in every_choice() if 10 * sum(r.values()) <= limit]
    assert 10 * sum(ranks.values()) <= limit
    assert energy(ranks) == max(energy(r) for r in allowed)


def test_a_component_that_does_not_fit_makes_room_for_smaller_layers() -> None:
    cost = {"a": 30, "b": 12, "c": 2, "none": 1}
    assert within_parameters(VALUES, cost, 31) == {"a": 0, "b": 2, "c": 1, "none": 0}
    assert within_parameters(VALUES, cost, 56) == {"a": 1, "b": 2, "c": 1, "none": 0}
