"""What is measured of a stage."""

from __future__ import annotations

import math

import pytest
import torch

from methods.factors import LowRankFactors
from sora_cli.experiments.path.stages import energy_lost, total_norm


def _orthogonal(*sizes: float) -> LowRankFactors:
    """Terms at right angles to each other, with those norms."""
    n = len(sizes)
    return LowRankFactors(torch.eye(n, 6), torch.diag(torch.tensor(sizes)))


def test_norm_over_all_modules() -> None:
    assert total_norm({"a": _orthogonal(3.0, 4.0), "b": _orthogonal(12.0)}) == pytest.approx(13)


def test_energy_of_what_died_since() -> None:
    factors = {"a": _orthogonal(3.0, 4.0), "b": _orthogonal(12.0, 0.0)}
    before = {"a": [0, 1], "b": [0]}
    assert energy_lost(factors, before, before) == 0
    assert energy_lost(factors, before, {"a": [1], "b": [0]}) == pytest.approx(9 / 169)
    assert energy_lost(factors, before, {"a": [], "b": []}) == pytest.approx(1)
    came_back = {"a": [0, 1], "b": [0, 1]}
    assert energy_lost(factors, before, came_back) == 0


def test_dead_terms_count_as_one_matrix() -> None:
    same = LowRankFactors(torch.ones(3, 2), torch.ones(2, 3))  # three equal terms of norm 2
    expected = 16 / 36
    assert energy_lost({"a": same}, {"a": [0, 1, 2]}, {"a": [2]}) == pytest.approx(expected)


def test_no_update_has_no_energy_to_lose() -> None:
    zero = LowRankFactors(torch.ones(1, 2), torch.zeros(2, 1))
    assert energy_lost({"a": zero}, {"a": []}, {"a": []}) == 0
    assert not math.isnan(total_norm({"a": zero}))
