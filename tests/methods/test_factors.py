"""Algebra on factors, against the dense update in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from methods.factors import (
    LowRankFactors,
    entropy_rank,
    rank_for_energy,
)
from tests.methods.support import generator

SHAPES = [(4, 20, 15), (1, 8, 9), (12, 10, 6), (12, 6, 10), (6, 6, 6)]  # r, in, out


def random_factors(
    rank: int, n_in: int, n_out: int, dtype: torch.dtype = torch.float64
) -> LowRankFactors:
    g = generator()
    A = torch.randn(rank, n_in, generator=g, dtype=torch.float64)
    return LowRankFactors(
        A.to(dtype), torch.randn(n_out, rank, generator=g, dtype=torch.float64).to(dtype)
    )


def dense_singular_values(factors: LowRankFactors) -> Tensor:
    return torch.linalg.svdvals(factors.B.double() @ factors.A.double())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_singular_values(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    factors = random_factors(*shape, dtype)
    values = factors.singular_values()
    assert values.dtype == torch.float64
    assert values.shape == (min(shape),)
    expected = dense_singular_values(factors)[: min(shape)]
    torch.testing.assert_close(values, expected, rtol=1e-10, atol=0)
    assert factors.norm() == pytest.approx(torch.linalg.norm(factors.dense()).item(), rel=1e-10)


@pytest.mark.parametrize("shape", SHAPES)
def test_truncation_is_optimal(shape: tuple[int, int, int]) -> None:
    """Eckart-Young: the error is the norm of the singular values left out."""
    factors = random_factors(*shape)
    expected = dense_singular_values(factors)
    for rank in range(min(shape) + 1):
        cut = factors.truncate(rank)
        assert cut.rank == rank
        error = torch.linalg.norm(cut.dense() - factors.dense())
        torch.testing.assert_close(
            error, torch.linalg.norm(expected[rank:]), rtol=1e-10, atol=1e-12
        )


def test_truncation_shares_the_singular_values_and_keeps_the_dtype() -> None:
    cut = random_factors(4, 20, 15, torch.float32).truncate(2)
    assert cut.A.dtype == cut.B.dtype == torch.float32
    torch.testing.assert_close(cut.A.norm(dim=1), cut.B.norm(dim=0))


def test_truncation_to_more_than_there_is_changes_nothing() -> None:
    factors = random_factors(4, 20, 15)
    cut = factors.truncate(100)
    assert cut.rank == 4
    torch.testing.assert_close(cut.dense(), factors.dense(), rtol=0, atol=1e-13)
    with pytest.raises(ValueError, match="at least 0, not -1"):
        factors.truncate(-1)


def test_drop_zeros_is_lossless() -> None:
    factors = random_factors(6, 20, 15)
    factors.A[1] = 0
    factors.B[:, 4] = 0
    kept = factors.drop_zeros()
    alive = [0, 2, 3, 5]
    assert torch.equal(kept.A, factors.A[alive])
    assert torch.equal(kept.B, factors.B[:, alive])
    torch.testing.assert_close(kept.dense(), factors.dense(), rtol=0, atol=1e-14)
    assert kept.parameters == 4 * (20 + 15)


def test_where_nothing_is_zero_nothing_is_copied() -> None:
    factors = random_factors(6, 20, 15)
    assert factors.drop_zeros() is factors
    assert factors.select(torch.ones(6, dtype=torch.bool)) is factors


def test_rank_zero() -> None:
    factors = random_factors(0, 7, 5)
    assert factors.singular_values().shape == (0,)
    assert factors.norm() == 0
    assert factors.parameters == 0
    assert factors.truncate(3).rank == factors.drop_zeros().rank == 0
    assert torch.equal(factors.dense(), torch.zeros(5, 7, dtype=torch.float64))


def test_all_terms_zero() -> None:
    factors = LowRankFactors(torch.ones(3, 7), torch.zeros(5, 3))
    assert factors.norm() == 0
    assert factors.drop_zeros().rank == 0
    assert not factors.truncate(2).dense().any()


def test_factors_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"A \(3, 7\) must be \(r, in\) and B \(5, 2\)"):
        LowRankFactors(torch.zeros(3, 7), torch.zeros(5, 2))


@pytest.mark.parametrize(
    ("values", "energy", "rank"),
    [
        ([2.0, 1.0], 0.8, 1),  # exactly the share of the first: 4 of 5
        ([2.0, 1.0], 0.81, 2),
        ([2.0, 1.0], 1.0, 2),
        ([2.0, 1.0, 0.0], 1.0, 2),
        ([1.0, 1e-9], 1.0, 2),  # a share of 1 is everything, however small
        ([3.0, 0.0], 1e-9, 1),
        ([0.0, 0.0], 0.9, 0),
        ([], 0.9, 0),
        ([1.0] * 10, 0.95, 10),
        ([1.0] * 10, 0.45, 5),
    ],
)
def test_rank_for_energy(values: list[float], energy: float, rank: int) -> None:
    assert rank_for_energy(torch.tensor(values, dtype=torch.float64), energy) == rank


@pytest.mark.parametrize("energy", [0.0, -0.1, 1.1, float("nan")])
def test_energy_is_a_share(energy: float) -> None:
    with pytest.raises(ValueError, match="energy is a share above 0 and up to 1"):
        rank_for_energy(torch.ones(3), energy)


def test_terms_one_by_one() -> None:
    factors = random_factors(5, 8, 7)
    terms = [factors.select(torch.arange(5) == i) for i in range(5)]
    torch.testing.assert_close(sum(term.dense() for term in terms), factors.dense())
    norms = torch.tensor([term.norm() for term in terms], dtype=torch.float64)
    torch.testing.assert_close(factors.component_norms(), norms, rtol=1e-12, atol=0)


def test_live_terms() -> None:
    factors = random_factors(4, 8, 7)
    factors.A[1] = 0
    factors.B[:, 3] = 0
    assert factors.live_components().tolist() == [True, False, True, False]
    assert factors.drop_zeros().rank == 2


@pytest.mark.parametrize("shape", SHAPES)
def test_svd(shape: tuple[int, int, int]) -> None:
    factors = random_factors(*shape, torch.float32)
    u, s, vt = factors.svd()
    k = min(shape)
    torch.testing.assert_close((u * s) @ vt, factors.dense(), rtol=0, atol=1e-12)
    torch.testing.assert_close(u.T @ u, torch.eye(k, dtype=torch.float64))
    torch.testing.assert_close(vt @ vt.T, torch.eye(k, dtype=torch.float64))
    torch.testing.assert_close(s, factors.singular_values())


@pytest.mark.parametrize("kind", ["graded", "dependent", "nearly dependent", "equal"])
def test_columns_that_depend_on_each_other(kind: str) -> None:
    """Cholesky squares their condition: beyond a limit the factors are decomposed by QR."""
    factors = random_factors(6, 300, 200)
    if kind == "graded":
        factors.B.mul_(10.0 ** -torch.arange(0, 12, 2))
    elif kind == "dependent":
        factors.B[:, 3] = factors.B[:, 0] + 2 * factors.B[:, 1]
    elif kind == "nearly dependent":
        factors.A[2] = factors.A[1] + 1e-7 * factors.A[2]
    else:
        factors.A[:] = factors.A[:1].clone()
    found = factors.decompose()
    assert (found.turns is not None) == (kind == "graded")
    torch.testing.assert_close(found.values, factors.singular_values(), rtol=1e-10, atol=1e-12)
    dense = dense_singular_values(factors)
    torch.testing.assert_close(found.values, dense[:6], rtol=1e-10, atol=1e-12 * float(dense[0]))
    for rank in (0, 2, 4, 6):
        lost = torch.linalg.norm(found.truncate(factors, rank).dense() - factors.dense())
        expected = torch.linalg.norm(dense[rank:])
        torch.testing.assert_close(lost, expected, rtol=1e-6, atol=1e-12 * float(dense[0]))


def test_inner_product_and_difference() -> None:
    one, other = random_factors(4, 20, 15), random_factors(7, 20, 15)
    other = LowRankFactors(other.A.flip(0), other.B)
    expected = float((one.dense() * other.dense()).sum())
    assert one.inner(other) == pytest.approx(expected, rel=1e-12)
    assert one.inner(one) == pytest.approx(one.norm() ** 2, rel=1e-12)
    difference = one.minus(other)
    assert difference.rank == 11
    torch.testing.assert_close(difference.dense(), one.dense() - other.dense())
    assert one.minus(one).norm() <= 1e-13 * one.norm()
    nothing = random_factors(0, 20, 15)
    assert one.inner(nothing) == 0
    assert one.minus(nothing).norm() == pytest.approx(one.norm())


def test_nan_is_not_dead() -> None:
    factors = LowRankFactors(torch.ones(2, 3), torch.ones(4, 2))
    factors.A[0] = 0
    factors.A[0, 1] = math.nan
    assert factors.live_components().all()


@pytest.mark.parametrize(
    ("values", "rank"),
    [
        ([3.0, 3.0, 3.0], 3.0),  # equal: the rank itself
        ([5.0], 1.0),
        ([1.0, 0.0], 1.0),
        ([2.0, 1.0], math.exp(math.log(3) - 2 / 3 * math.log(2))),  # shares 2/3 and 1/3
        ([0.0, 0.0], 0.0),
        ([], 0.0),
    ],
)
def test_entropy_rank(values: list[float], rank: float) -> None:
    tensor = torch.tensor(values, dtype=torch.float64)
    assert entropy_rank(tensor) == pytest.approx(rank)
    assert entropy_rank(1e-6 * tensor) == pytest.approx(rank)
