"""Updates in blocks of rows: the numbers of the dense formula, however the rows are cut."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from methods.updates import Hadamard, Kronecker, Product, Replaced, Rescaled, Stacked, Update

OUT, IN, R = 12, 10, 3


def _random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


PRODUCT = Product(_random(R, IN), _random(OUT, R), 1.5)
HADAMARD = Hadamard(_random(R, IN), _random(OUT, R), _random(2, IN), _random(OUT, 2), 0.7)
KRONECKER = {
    "whole": Kronecker(_random(4, 2), None, _random(3, 5), None, 0.7),
    "wide": Kronecker(_random(2, 5), None, _random(6, 2), None, 0.7),
    "products": Kronecker(_random(4, 2), _random(2, 2), _random(3, 2), _random(2, 5), 0.7),
}
DENSE: dict[str, tuple[Update, Tensor]] = {
    "product": (PRODUCT, PRODUCT.B @ PRODUCT.A * 1.5),
    "hadamard": (HADAMARD, (HADAMARD.B1 @ HADAMARD.A1) * (HADAMARD.B2 @ HADAMARD.A2) * 0.7),
    **{
        f"kronecker-{name}": (k, torch.kron(_whole(k.L1, k.R1), _whole(k.L2, k.R2)) * 0.7)
        for name, k in KRONECKER.items()
        for _whole in [lambda left, right: left if right is None else left @ right]
    },
}


def _by_rows(update: Update, weight: Tensor, step: int, *, transposed: bool) -> Tensor:
    """Apply an update to a stored weight, some rows at a time."""
    parts = []
    for start in range(0, len(weight), step):
        rows = (start, min(start + step, len(weight)))
        base = weight[slice(*rows)]
        total, memory = torch.empty_like(base), torch.empty(base.numel())
        change = update.add(base, rows, memory, total, transposed=transposed)
        torch.testing.assert_close(change, total - base, rtol=1e-4, atol=1e-6)
        parts.append(total)
    return torch.cat(parts)


@pytest.mark.parametrize("step", [1, 5, 100])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("name", DENSE)
def test_rows_are_those_of_the_dense_update(name: str, transposed: bool, step: int) -> None:
    update, dense = DENSE[name]
    weight = _random(IN, OUT) if transposed else _random(OUT, IN)
    wanted = weight + (dense.T if transposed else dense)
    torch.testing.assert_close(_by_rows(update, weight, step, transposed=transposed), wanted)


@pytest.mark.parametrize("update", [HADAMARD, *KRONECKER.values()])
def test_factors_are_the_same_update(update: Hadamard | Kronecker) -> None:
    dense = next(dense for other, dense in DENSE.values() if other is update)
    torch.testing.assert_close(update.factors().dense().float(), dense)
    assert update.factors().rank <= 3 * 2 or update is KRONECKER["wide"]


@pytest.mark.parametrize("step", [1, 5, 100])
@pytest.mark.parametrize("transposed", [False, True])
def test_rescaled_to_the_magnitudes(transposed: bool, step: int) -> None:
    magnitude = _random(OUT).abs() + 0.5
    update, weight = Rescaled(PRODUCT, magnitude), _random(OUT, IN)
    moved = weight + DENSE["product"][1]
    wanted = moved / moved.norm(dim=1, keepdim=True) * magnitude[:, None]
    stored = weight
    if transposed:
        assert update.needs_norms(transposed=True)
        update = update.with_norms(moved.double().square().sum(1))
        stored, wanted = weight.T.contiguous(), wanted.T
    assert not update.needs_norms(transposed=transposed)
    found = _by_rows(update, stored, step, transposed=transposed)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("step", [1, 5, 100])
def test_rows_that_are_replaced(step: int) -> None:
    indices, weight = torch.tensor([7, 0, 6]), _random(OUT, IN)
    values = _random(3, IN)
    wanted = weight.index_copy(0, indices, values)
    found = _by_rows(Replaced(indices, values), weight, step, transposed=True)
    assert torch.equal(found, wanted)


def test_the_squared_norm_of_a_product() -> None:
    dense = DENSE["product"][1]
    assert PRODUCT.squared() == pytest.approx(float(dense.double().square().sum()), rel=1e-5)
    assert HADAMARD.squared() is None


@pytest.mark.parametrize("transposed", [False, True])
def test_stacked_experts_give_any_rows(transposed: bool) -> None:
    experts = tuple(Product(_random(2, 5) + e, _random(3, 2) - e, 0.7) for e in range(4))
    each = [expert.B @ expert.A * 0.7 for expert in experts]
    whole = torch.cat([delta.T if transposed else delta for delta in each])
    stacked = Stacked(experts)
    for rows in ((0, len(whole)), (1, 2), (2, 9), (4, len(whole))):
        memory = torch.empty(whole.numel())
        change = stacked.delta(rows, memory, transposed=transposed)
        torch.testing.assert_close(change, whole[slice(*rows)])
    part = experts[0].part((1, 3), transposed=transposed)
    memory = torch.empty(whole.numel())
    change = part.delta((0, 2), memory, transposed=transposed)
    torch.testing.assert_close(change, whole[1:3])
    assert stacked.squared() == pytest.approx(float(whole.square().sum()), rel=1e-5)
