"""Turning into the singular basis: the same update, balanced factors, moments that fit them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from methods.basis import singular_basis, turn
from methods.errors import MethodError
from methods.layer import LowRankLinear

SHAPES = [(12, 10, 4), (3, 10, 5), (10, 3, 5), (5, 6, 1)]  # out, in, r; also r above one of them


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def made(shape: tuple[int, int, int], dtype: torch.dtype = torch.float64) -> LowRankLinear:
    out, n_in, r = shape
    base = nn.Linear(n_in, out, dtype=dtype)
    A, B = drawn(r, n_in).to(dtype), drawn(out, r, seed=1).to(dtype)
    return LowRankLinear(base, A, B, scaling=0.7)


def turned(
    layer: LowRankLinear, state: dict[Tensor, dict[str, object]], rank: int | None = None
) -> None:
    """Turn a layer, with all its components if no rank is given."""
    basis = singular_basis(layer)
    turn(layer, basis, len(basis.S) if rank is None else rank, state)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_update_stays_and_its_factors_are_balanced_and_ordered(
    shape: tuple[int, int, int],
) -> None:
    layer = made(shape)
    before = layer.factors().dense()
    basis = singular_basis(layer)
    turned(layer, {})
    torch.testing.assert_close(layer.factors().dense(), before, rtol=0, atol=1e-12)
    dense = torch.linalg.svdvals(before / layer.scaling)
    k = min(shape)
    torch.testing.assert_close(basis.S[:k], dense[:k], rtol=1e-12, atol=0)
    assert basis.S[k:].tolist() == [0.0] * (shape[2] - k)
    A, B = layer.A.detach(), layer.B.detach()
    torch.testing.assert_close(A @ A.T, torch.diag(basis.S), rtol=0, atol=1e-12)
    torch.testing.assert_close(B.T @ B, torch.diag(basis.S), rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_first_moments_are_those_of_gradients_in_the_new_basis(
    shape: tuple[int, int, int],
) -> None:
    """Sums of gradients, which are linear in the update's: exact."""
    layer = made(shape)
    total = drawn(shape[0], shape[1], seed=2)  # a moment of the gradient of dW
    a, b = layer.A.detach(), layer.B.detach()
    state = {layer.A: {"exp_avg": b.T @ total}, layer.B: {"exp_avg": total @ a.T}}
    turned(layer, state, rank=2)
    a, b = layer.A.detach(), layer.B.detach()
    assert (a != 0).any(dim=1).sum() == min(2, *shape)
    close = {"rtol": 0, "atol": 1e-12}
    torch.testing.assert_close(state[layer.A]["exp_avg"], b.T @ total, **close)
    torch.testing.assert_close(state[layer.B]["exp_avg"], total @ a.T, **close)


def test_second_moments_turn_with_the_squared_entries() -> None:
    layer = made((12, 10, 4))
    a, b = layer.A.detach().clone(), layer.B.detach().clone()
    v_a, v_b = drawn(4, 10, seed=3).square(), drawn(12, 4, seed=4).square()
    state = {layer.A: {"exp_avg_sq": v_a.clone()}, layer.B: {"exp_avg_sq": v_b.clone()}}
    basis = singular_basis(layer)
    left = torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=torch.float64)
    turned(layer, state, rank=3)
    t = torch.linalg.lstsq(a.T, basis.A.T).solution.T  # A' = T A, from the factors alone
    torch.testing.assert_close(basis.B, b @ torch.linalg.inv(t), rtol=0, atol=1e-12)
    of_a = torch.linalg.inv(t).T.square() @ v_a * left[:, None]
    of_b = v_b @ t.T.square() * left
    torch.testing.assert_close(state[layer.A]["exp_avg_sq"], of_a, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(state[layer.B]["exp_avg_sq"], of_b, rtol=1e-10, atol=1e-12)


def adam_state(layer: LowRankLinear) -> dict[Tensor, dict[str, Tensor]]:
    names = ("exp_avg", "exp_avg_sq", "unknown")
    return {
        p: {"step": torch.tensor(7.0), **{name: torch.ones_like(p).detach() for name in names}}
        for p in (layer.A, layer.B)
    }


def test_what_becomes_of_an_optimisers_state() -> None:
    layer = made((12, 10, 4))
    state = adam_state(layer)
    turned(layer, state, rank=2)
    for p, kind in ((layer.A, "A"), (layer.B, "B")):
        assert state[p]["step"] == 7
        for name in ("exp_avg", "exp_avg_sq", "unknown"):
            rows = state[p][name] if kind == "A" else state[p][name].T
            assert not rows[2:].any()  # of dead components
            assert bool(rows[:2].any()) == (name != "unknown")


def test_a_coded_moment_is_refused() -> None:
    layer = made((12, 10, 4))
    state = {layer.A: {"state1": torch.zeros(4, 10, dtype=torch.uint8)}}
    with pytest.raises(MethodError, match="'state1' is stored as integer codes"):
        turned(layer, state)


def test_dead_components_stay_dead() -> None:
    """What rounding leaves of a second turn is no direction, whatever is kept."""
    layer = made((12, 10, 4))
    basis = singular_basis(layer)
    turned(layer, {}, rank=2)
    again = singular_basis(layer)
    assert again.S[2:].tolist() == [0.0, 0.0]
    torch.testing.assert_close(again.S[:2], basis.S[:2], rtol=1e-12, atol=0)
    turned(layer, {})
    assert not layer.A[2:].any()
    assert not layer.B[:, 2:].any()
    layer.A.data, layer.B.data = layer.A.data.flip(0), layer.B.data.flip(1)
    layer.A.data[2:] += drawn(2, 10)  # the two alive are trained on
    assert singular_basis(layer).S.count_nonzero() == 2
    for p in (layer.A, layer.B):
        p.data.zero_()
    assert not singular_basis(layer).S.any()


def test_factors_of_less_precision_are_turned_in_double() -> None:
    layer = made((12, 10, 4), torch.float32)
    before = layer.factors().dense()
    turned(layer, {})
    assert layer.A.dtype == torch.float32
    torch.testing.assert_close(layer.factors().dense(), before, rtol=0, atol=1e-5)


def test_a_layer_without_components() -> None:
    layer = made((5, 6, 1))
    layer.A.data, layer.B.data = layer.A.data[:0], layer.B.data[:, :0]
    assert singular_basis(layer).S.shape == (0,)
    turned(layer, {})


def test_gates_belong_to_their_basis() -> None:
    base = nn.Linear(4, 3)
    layer = LowRankLinear(base, torch.ones(2, 4), torch.ones(3, 2), torch.ones(2), scaling=1.0)
    with pytest.raises(MethodError, match="cannot change its basis"):
        singular_basis(layer)
