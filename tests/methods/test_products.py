"""Products by oneDNN: the numbers of torch's own, and only where they are meant to be taken."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear

from methods import products
from methods.layer import LowRankLinear
from methods.products import add_product_, has_onednn, prefers_onednn, product
from methods.siblings import share_inputs
from methods.torch_internals import FakeTensorMode, onednn_linear
from tests.methods.support import generator

ROWS, WIDE, NARROW = 700, 400, 3  # 280,000 entries: enough for oneDNN


@pytest.fixture
def shapes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Let this processor count as one that oneDNN is better for; the products it was given."""
    if not has_onednn():
        pytest.skip("torch was built without oneDNN")
    seen: list[tuple[int, ...]] = []

    def counted(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        seen.append((x.shape[0], *weight.shape))
        return onednn_linear(x, weight, bias)

    monkeypatch.setattr(products, "prefers_onednn", lambda: True)
    monkeypatch.setattr(products, "onednn_linear", counted)
    return seen


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed))


def close(found: Tensor, wanted: Tensor) -> bool:
    """Tell whether float32 numbers are those of float64 but for rounding."""
    return bool((found.double() - wanted).norm() <= 1e-6 * wanted.norm())


@pytest.mark.parametrize(
    ("m", "n", "k"), [(ROWS, 150, WIDE), (NARROW, ROWS, WIDE), (NARROW, WIDE, ROWS)]
)
@pytest.mark.parametrize("turned", [False, True])
def test_a_product_is_torchs_own(
    shapes: list[tuple[int, ...]], m: int, n: int, k: int, turned: bool
) -> None:
    a, b, bias = numbers(m, k), numbers(n, k, seed=1), numbers(n, seed=2)
    wanted = linear(a.double(), b.double(), bias.double())
    if turned:
        a, b = a.t().contiguous().t(), b.t().contiguous().t()
    assert close(product(a, b, bias), wanted)
    into = numbers(m, n, seed=3)
    wanted = into.double() + linear(a.double(), b.double())
    assert add_product_(into, a, b) is into
    assert close(into, wanted)
    assert shapes == [(m, n, k)] * 2


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_numbers_are_left_to_torch(shapes: list[tuple[int, ...]], dtype: torch.dtype) -> None:
    a, b = numbers(ROWS, WIDE).to(dtype), numbers(NARROW, WIDE, seed=1).to(dtype)
    assert torch.equal(product(a, b), linear(a, b))
    assert not shapes


def test_small_products_and_fake_tensors_are_left_to_torch(shapes: list[tuple[int, ...]]) -> None:
    a, b = numbers(NARROW, WIDE), numbers(ROWS, WIDE, seed=1)
    assert torch.equal(product(a, b[:200]), linear(a, b[:200]))
    with FakeTensorMode() as mode:
        fake = product(mode.from_tensor(a), mode.from_tensor(b))
    assert fake.shape == (NARROW, ROWS)
    assert not shapes


def layers() -> list[LowRankLinear]:
    made = []
    for i in range(2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(i)
            base = nn.Linear(WIDE, WIDE)
        A, B = numbers(NARROW, WIDE, seed=2 + i), numbers(WIDE, NARROW, seed=4 + i)
        made.append(LowRankLinear(base, A / WIDE**0.5, B, scaling=0.5))
    return made


@pytest.mark.parametrize("rows", [ROWS, 300])  # the update goes into the weight; it is added
def test_values_and_gradients_of_layers_are_those_of_autograd(
    shapes: list[tuple[int, ...]], rows: int
) -> None:
    u, gy = numbers(4 * rows, WIDE), numbers(4 * rows, WIDE, seed=1) / WIDE

    def outcome(dtype: torch.dtype, *, fused: bool) -> list[Tensor]:
        pair = [layer.to(dtype) for layer in layers()]
        if fused:
            share_inputs({"0": pair[0], "1": pair[1]}, [["0", "1"]])
        start = u.to(dtype, copy=True).requires_grad_()
        x = gelu(start)
        ys = [layer(x) if fused else layer._composed(x) for layer in pair]
        loss = (ys[0] * gy + ys[1] * gy.flip(0)).sum()
        wanted = [p for layer in pair for _, p in layer.named_factors()]
        return [*ys, *torch.autograd.grad(loss, [start, *wanted])]

    found = outcome(torch.float32, fused=True)
    assert shapes
    shapes.clear()
    wanted = outcome(torch.float64, fused=False)
    assert not shapes
    for mine, true in zip(found, wanted, strict=True):
        assert (mine.double() - true).norm() <= 1e-5 * true.norm()


@pytest.mark.parametrize(("vendor", "prefers"), [("AuthenticAMD", True), ("GenuineIntel", False)])
def test_the_processor_is_asked(
    monkeypatch: pytest.MonkeyPatch, vendor: str, prefers: bool
) -> None:
    told = f"processor : 0\nvendor_id : {vendor}"
    monkeypatch.setattr(Path, "open", lambda *_, **__: io.StringIO(told))
    assert prefers_onednn.__wrapped__() is (prefers and has_onednn())
