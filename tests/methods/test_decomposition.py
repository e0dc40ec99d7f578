"""Leading singular triples, exact and by random projection."""

from __future__ import annotations

import pytest
import torch

from methods.decomposition import leading_svd


def _matrix(rows: int, columns: int, values: torch.Tensor) -> torch.Tensor:
    """A matrix with these singular values."""
    g = torch.Generator().manual_seed(0)
    k = values.numel()
    u = torch.linalg.qr(torch.randn(rows, k, generator=g, dtype=torch.float64))[0]
    v = torch.linalg.qr(torch.randn(columns, k, generator=g, dtype=torch.float64))[0]
    return ((u * values) @ v.T).float()


@pytest.mark.parametrize("shape", [(40, 30), (600, 500)])  # small: exact; large: projected
def test_leading_values_of_a_decaying_spectrum(shape: tuple[int, int]) -> None:
    values = 0.8 ** torch.arange(30, dtype=torch.float64)
    matrix = _matrix(*shape, values)
    u, s, vt = leading_svd(matrix, 12)
    torch.testing.assert_close(s.double(), values[:12], rtol=1e-4, atol=0)
    torch.testing.assert_close(u.T @ u, torch.eye(12), rtol=0, atol=1e-5)
    missed = (matrix - (u * s) @ vt).double().square().sum()
    torch.testing.assert_close(missed, (values[12:] ** 2).sum(), rtol=1e-3, atol=0)


def test_a_projection_of_a_flat_spectrum_says_what_it_misses() -> None:
    matrix = torch.randn(400, 400, generator=torch.Generator().manual_seed(1))
    u, s, vt = leading_svd(matrix, 8)
    missed = (matrix - (u * s) @ vt).double().square().sum()
    left = matrix.double().square().sum() - s.double().square().sum()
    torch.testing.assert_close(missed, left, rtol=1e-5, atol=0)
    best = torch.linalg.svdvals(matrix)[:8]
    assert float(s.square().sum() / best.square().sum()) > 0.85


@pytest.mark.parametrize("shape", [(40, 30), (600, 500)])
def test_zeros_are_left_out(shape: tuple[int, int]) -> None:
    matrix = _matrix(*shape, torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64))
    assert leading_svd(matrix, 20)[1].numel() == 3
    assert leading_svd(torch.zeros(shape), 20)[1].numel() == 0


@pytest.mark.parametrize("shape", [(200, 150), (600, 500)])
def test_rounding_is_no_component(shape: tuple[int, int]) -> None:
    """The difference of two float32 weights has the rank of the update between them."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(2)) * 0.05
    update = _matrix(*shape, torch.ones(5, dtype=torch.float64))
    assert leading_svd((weight + update) - weight, shape[1])[1].numel() == 5
