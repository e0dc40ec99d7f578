"""TIES and DARE against their papers' formulas, number by number."""

from __future__ import annotations

import pytest
import torch

from methods.combining import dare, ties, trimmed


def test_trimmed_keeps_the_largest() -> None:
    update = torch.tensor([[3.0, -1.0], [0.5, -4.0]])
    assert trimmed(update, 0.5).tolist() == [[3.0, 0.0], [0.0, -4.0]]
    assert trimmed(update, 1.0) is update
    assert trimmed(update, 0.01).tolist() == [[0.0, 0.0], [0.0, -4.0]]


def test_ties_elects_and_takes_the_disjoint_mean() -> None:
    """Two agree against a stronger one: the sum decides (the paper, figure 2)."""
    a = torch.tensor([[4.0, 1.0, -1.0, 2.0]])
    b = torch.tensor([[2.0, -3.0, -2.0, -2.0]])
    c = torch.tensor([[-1.0, 1.0, 0.0, 3.0]])
    weights = [1 / 3] * 3
    merged = ties([a, b, c], weights, 1.0)
    torch.testing.assert_close(merged, torch.tensor([[3.0, -3.0, -1.5, 2.5]]))
    # twice the weights: the paper's lambda is 2
    torch.testing.assert_close(ties([a, b, c], [2 / 3] * 3, 1.0), 2 * merged)


def test_ties_trims_first() -> None:
    a, b = torch.tensor([[1.0, 5.0]]), torch.tensor([[-2.0, 1.0]])
    torch.testing.assert_close(ties([a, b], [0.5, 0.5], 0.5), torch.tensor([[-2.0, 5.0]]))


def test_opposite_numbers_give_zero() -> None:
    a = torch.tensor([[1.0, 2.0]])
    assert ties([a, -a], [0.5, 0.5], 1.0).tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("density", [0.25, 0.9])
def test_dare_drops_that_share_and_keeps_the_mean(density: float) -> None:
    update = torch.ones(200, 200)
    dropped = dare(update, density, torch.Generator().manual_seed(0))
    assert set(dropped.unique().tolist()) == {0.0, float(torch.tensor(1.0) / density)}
    share = float(dropped.count_nonzero()) / update.numel()
    assert abs(share - density) < 0.01
    assert abs(float(dropped.mean()) - 1) < 0.05
    again = dare(update, density, torch.Generator().manual_seed(0))
    assert torch.equal(again, dropped)
