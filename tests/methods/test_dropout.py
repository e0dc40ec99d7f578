"""Dropout: its share, its scale, its seed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from methods.dropout import Dropout, replace_dropouts, zero_, zeroed


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


def test_gradients_by_finite_differences_to_second_order() -> None:
    x = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    dropout = Dropout(0.4)

    def run(x: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(7)  # the same mask each time
        y: torch.Tensor = dropout(x.square())
        return y

    assert 0 < (run(x) == 0).sum() < x.numel()
    assert torch.autograd.gradcheck(run, (x,))
    assert torch.autograd.gradgradcheck(run, (x,))


def test_the_output_may_be_changed_in_place() -> None:
    """Longformer does that."""
    x = torch.ones(50, requires_grad=True)
    y = Dropout(0.5)(x)
    kept = y.detach() != 0
    y += 1
    y.sum().backward()
    assert torch.equal(x.grad, kept * 2.0)


DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dropped_entries_are_zero_and_no_other_bit_changes(dtype: torch.dtype) -> None:
    x = torch.randn(40, 30).to(dtype).t()  # not contiguous
    x[::3, 0], x[1::3, 0], x[2::3, 0] = torch.inf, torch.nan, -0.0
    dropped = Dropout(0.5).draw(x)
    before, expected = x.clone(), x.masked_fill(dropped, 0)
    found = zeroed(x, dropped)
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
    assert torch.equal(found.view(whole), expected.view(whole))
    assert torch.equal(x.view(whole), before.view(whole))
    assert zero_(x, dropped) is x
    assert torch.equal(x.view(whole), expected.view(whole))


def test_a_mask_compares_the_generators_bits() -> None:
    """A resumed run and a later version draw what the earlier one drew."""
    x, dropout = torch.empty(5, 7), Dropout(0.3)
    torch.manual_seed(3)
    dropped = dropout.draw(x)
    torch.manual_seed(3)
    words = np.random.SFC64(int(torch.empty((), dtype=torch.int64).random_())).random_raw(9)
    bits = words.view(np.int16)[:35].reshape(5, 7).astype(int) + 2**15
    assert dropped.dtype == torch.bool
    assert torch.equal(dropped, torch.from_numpy(bits < round(0.3 * 2**16)))


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
