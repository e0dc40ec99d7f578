"""Proximal operators of the gates, and the threshold that a budget asks for."""

from __future__ import annotations

import pytest
import torch

from methods.proximal import (
    budget_threshold,
    hard_threshold_,
    official_threshold_,
    soft_threshold_,
)

XI = 0.5  # exact in binary, and so are the gates below: the boundaries are hit
GATES = [-2.0, -1.0, -0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0, 2.0]
PAPER = [-1.5, -0.5, -0.25, 0, 0, 0, 0, 0, 0.25, 0.5, 1.5]
HARD = [-2.0, -1.0, -0.75, 0, 0, 0, 0, 0, 0.75, 1.0, 2.0]
OFFICIAL = [-1.5, -0.5, 0, -0.5, 0, 0, 0, 0.5, 0, 0.5, 1.5]  # |g| = xi stays; 2 xi is left at xi
OPERATORS = [soft_threshold_, hard_threshold_, official_threshold_]


@pytest.mark.parametrize(
    ("shrink", "expected"), list(zip(OPERATORS, [PAPER, HARD, OFFICIAL], strict=True))
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_thresholds(shrink: object, expected: list[float], dtype: torch.dtype) -> None:
    for xi in (XI, torch.tensor(XI, dtype=torch.float64)):
        values = torch.tensor(GATES, dtype=dtype)
        shrink([values], xi)
        assert values.tolist() == expected


@pytest.mark.parametrize("shrink", OPERATORS)
def test_threshold_zero_changes_nothing(shrink: object) -> None:
    values = torch.tensor(GATES)
    shrink([values], 0.0)
    assert values.tolist() == GATES


@pytest.mark.parametrize("shrink", [soft_threshold_, hard_threshold_])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_threshold_of_a_budget_is_the_smallest_that_keeps_it(
    shrink: object, dtype: torch.dtype
) -> None:
    drawn = torch.randn(20, generator=torch.Generator().manual_seed(0), dtype=dtype)
    drawn[:3] = 0
    for allowed in range(21):
        xi = budget_threshold(drawn, torch.tensor(allowed))
        left = drawn.clone()
        shrink([left], xi)
        assert left.count_nonzero() == min(allowed, 17)
        if xi > 0:  # the next smaller number leaves one gate more
            more = drawn.clone()
            shrink([more], torch.nextafter(xi, xi.new_zeros(())))
            assert more.count_nonzero() == allowed + 1


def test_equal_gates_are_kept_or_not_together() -> None:
    tied = torch.tensor([1.0, -1.0, 2.0, 1.0, 0.5])
    for allowed, xi in [(0, 2.0), (1, 1.0), (2, 1.0), (3, 1.0), (4, 0.5), (5, 0.0), (9, 0.0)]:
        assert budget_threshold(tied, torch.tensor(allowed)) == xi
    assert budget_threshold(tied, torch.tensor(-1)) == 2.0
    assert budget_threshold(tied[:0], torch.tensor(3)) == 0
