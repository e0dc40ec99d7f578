"""Dropout: its share, its scale, its seed."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from methods.dropout import Dropout, replace_dropouts


@pytest.mark.parametrize("p", [0.05, 0.1, 0.5, 0.9])
def test_share_and_scale(p: float) -> None:
    torch.manual_seed(0)
    x = torch.ones(1000, 1001)
    y = Dropout(p)(x)
    share = float((y == 0).double().mean())
    assert abs(share - p) < 5 * (p * (1 - p) / x.numel()) ** 0.5  # five standard deviations
    kept = y[y != 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - p)), rtol=2e-4, atol=0)


def test_the_mean_is_kept() -> None:
    """Scale and probability are rounded alike, so that the expectation is exact."""
    dropout = Dropout(0.3)
    level = round(0.3 * 2**16)
    assert dropout.scale(torch.device("cpu")) * (1 - level / 2**16) == pytest.approx(1, abs=1e-15)


def test_entries_are_independent_of_their_neighbours() -> None:
    torch.manual_seed(0)
    dropped = Dropout(0.5).draw(torch.empty(1 << 20)).double() - 0.5
    for lag in (1, 2, 3, 4, 5, 8, 64):
        correlation = float((dropped[lag:] * dropped[:-lag]).mean() / 0.25)
        assert abs(correlation) < 5e-3


def test_torchs_generator_decides() -> None:
    x, dropout = torch.ones(7, 9), Dropout(0.5)
    torch.manual_seed(3)
    first, second = dropout(x), dropout(x)
    torch.manual_seed(3)
    assert torch.equal(dropout(x), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3,), (5, 3), (2, 0, 4)])
def test_any_shape(shape: tuple[int, ...]) -> None:
    assert Dropout(0.5)(torch.ones(shape)).shape == shape


def test_evaluation_and_zero_are_the_identity() -> None:
    x = torch.ones(50)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0)(x) is x


@pytest.mark.parametrize("p", [-0.1, 1.0])
def test_no_probability(p: float) -> None:
    with pytest.raises(ValueError, match="probability"):
        Dropout(p)


def test_gradients_are_those_of_torchs_dropout() -> None:
    x = torch.randn(50, dtype=torch.float64, requires_grad=True)
    y = Dropout(0.5)(x)
    y.sum().backward()
    assert torch.equal(x.grad, (y != 0) * 2.0)
    assert isinstance(Dropout(0.5), nn.Module)


def test_a_models_own_dropouts_are_replaced() -> None:
    block = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.25), nn.Sequential(nn.Dropout(0.5)))
    block.append(nn.Dropout(0.1, inplace=True)).append(nn.AlphaDropout(0.1)).eval()
    before = block(torch.ones(2, 3))
    assert replace_dropouts(block) == 2
    assert torch.equal(block(torch.ones(2, 3)), before)
    kinds = [(type(m), m.p, m.training) for m in block.modules() if hasattr(m, "p")]
    ours = [(Dropout, 0.25, False), (Dropout, 0.5, False)]
    assert kinds == [*ours, (nn.Dropout, 0.1, False), (nn.AlphaDropout, 0.1, False)]


def test_tensors_without_data_have_masks_without_data() -> None:
    """As the prediction of a run's memory traces a model."""
    with FakeTensorMode():
        assert Dropout(0.5)(torch.ones(7, 9)).shape == (7, 9)
