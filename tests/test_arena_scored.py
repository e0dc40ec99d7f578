"""The plug-in of other scores: it keeps the contract, and a score is what it says."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch

from methods import registry
from methods.basis import singular_basis
from methods.contract import CHECKS as IN_A_LOOP
from methods.contract import Check
from methods.contract.net import start
from methods.layer import LowRankLinear
from sora_cli.recipe.library import recipes_dir
from sora_cli.recipe.plugins import load_code
from tests.methods.support import generator
from tests.test_arena_nested import IN_A_TRAINER


@pytest.fixture(scope="module")
def code() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_REGISTERED", {})
        yield load_code(recipes_dir() / "sweeps" / "arena" / "scored.py")


def made(code: ModuleType, **options: Any) -> Any:
    return code.Scored(code.ScoredConfig(**options))


@pytest.mark.parametrize("score", ["activation", "fisher"])  # with sums of inputs, and without
@pytest.mark.parametrize("check", [*IN_A_LOOP, *IN_A_TRAINER], ids=lambda check: check.__name__)
def test_contract(code: ModuleType, score: str, check: Check) -> None:
    check(lambda **options: made(code, **{"score": score, "seen": 3, **options}))


def test_singular_values_cut_as_cut_does(code: ModuleType) -> None:
    options = {"r_max": 4, "target_r": 1.5, "cut_at": 0.5}
    ours = start(made(code, score="singular", **options))
    cut = start(registry.create("cut", **options))
    for run in (ours, cut):
        run.train(range(20))
    for path, layer in ours.layers.items():
        assert torch.equal(layer.B @ layer.A, cut.layers[path].B @ cut.layers[path].A)
    assert ours.method.summary(ours.layers).live == cut.method.summary(cut.layers).live < 12


def _layer() -> LowRankLinear:
    g = generator()
    linear = torch.nn.Linear(12, 9, bias=False, dtype=torch.float64)
    A, B = torch.randn(5, 12, generator=g).double(), torch.randn(9, 5, generator=g).double()
    return LowRankLinear(linear, A, B, scaling=2.0)


def test_the_weighted_basis_loses_least_on_the_inputs(code: ModuleType) -> None:
    layer, g = _layer(), generator()
    x = (torch.randn(200, 12, generator=g) * torch.logspace(0, -2, 12)).double()
    h = x @ layer.A.T
    basis, values = code.weighted_basis(layer, h.T @ h)
    update = layer.B @ layer.A
    assert torch.allclose(basis.B @ basis.A, update, rtol=1e-9)
    singular = torch.linalg.svdvals(x @ update.T)[:5]
    assert torch.allclose(values, singular, rtol=1e-9)
    plain = singular_basis(layer)
    for rank in (1, 2, 4):
        lost = [float((x @ (update - b.B[:, :rank] @ b.A[:rank]).T).norm()) for b in (basis, plain)]
        assert lost[0] == pytest.approx(float(singular[rank:].norm()), rel=1e-9)
        assert lost[0] < lost[1]
    # gradients of both factors, turned, are those of the turned factors
    gradient = torch.randn(9, 12, generator=g).double()
    turned_a = basis.turned("A", layer.B.T @ gradient, 1)
    turned_b = basis.turned("B", gradient @ layer.A.T, 1)
    assert torch.allclose(turned_a, basis.B.T @ gradient, rtol=1e-9)
    assert torch.allclose(turned_b, gradient @ basis.A.T, rtol=1e-9)


def test_a_gradient_scores_what_a_component_changes(code: ModuleType) -> None:
    layer = _layer()
    gradient = torch.randn(9, 12, generator=generator()).double()
    state = {
        layer.A: {"exp_avg": layer.B.T @ gradient, "exp_avg_sq": torch.ones_like(layer.A)},
        layer.B: {"exp_avg": gradient @ layer.A.T, "exp_avg_sq": torch.ones_like(layer.B)},
    }
    basis, values = made(code, score="gradient")._scored("", layer, state)
    changes = torch.einsum("or,ri,oi->r", basis.B, basis.A, gradient).abs() * 2
    assert torch.allclose(values.square(), changes, rtol=1e-9)
    assert (values.diff() <= 0).all()
    basis, values = made(code, score="fisher")._scored("", layer, state)
    assert torch.allclose(basis.B @ basis.A, layer.B @ layer.A, rtol=1e-9)
    assert (values.diff() <= 0).all()
