"""The fused layer against plain autograd: values, gradients, what it keeps, who may use it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear, silu
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

from methods import fused
from methods.kept import keep
from methods.layer import LowRankLinear
from tests.methods.support import generator

N_IN, N_OUT, RANK = 6, 5, 3
TOKENS = 4
MANY, FEW = 7, 1  # sequences: the update goes into the weight; the branch is added


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64).to(dtype)


def make(
    *, gates: bool = True, dropout: float = 0.0, bias: bool = True, conv: bool = False
) -> LowRankLinear:
    """A layer with an update that is not zero, one of its gates at zero; float64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        base = Conv1D(N_OUT, N_IN) if conv else nn.Linear(N_IN, N_OUT, bias=bias)
    d = numbers(RANK, seed=3) if gates else None
    if d is not None:
        d[1] = 0
    A, B = numbers(RANK, N_IN, seed=1), numbers(N_OUT, RANK, seed=2)
    return LowRankLinear(base.double(), A, B, d, scaling=0.7, dropout=dropout)


def reference(layer: LowRankLinear, x: Tensor, dropped: Tensor | None = None) -> Tensor:
    """base(x) + scaling B (d * (A dropout(x))), as the formula has it."""
    inside = x
    if dropped is not None:
        inside = torch.where(dropped, 0, x) * layer.dropout.scale(x.device)
    h = linear(inside.to(layer.A.dtype), layer.A)
    h = layer.scaling * (h if layer.d is None else h * layer.d)
    y: Tensor = layer.base(x)
    return y + linear(h, layer.B).to(y.dtype)


def gradients(layer: LowRankLinear, loss: Tensor, x: Tensor) -> dict[str, Tensor]:
    wanted = dict(layer.named_factors())
    found = torch.autograd.grad(loss, [x, *wanted.values()])
    return dict(zip(["x", *wanted], found, strict=True))


LAYERS: dict[str, dict[str, Any]] = {
    "gates": {},
    "no gates": {"gates": False},
    "no bias": {"bias": False},
    "Conv1D": {"conv": True},
    "dropout": {"dropout": 0.4},
    "Conv1D, dropout": {"conv": True, "dropout": 0.4, "gates": False},
}


@pytest.mark.parametrize("rows", [MANY, FEW])
@pytest.mark.parametrize("name", LAYERS)
def test_gradients_by_finite_differences(name: str, rows: int) -> None:
    layer = make(**LAYERS[name])
    x = numbers(rows, TOKENS, N_IN, seed=4).requires_grad_()

    def run(x: Tensor, *factors: Tensor) -> Tensor:
        names = dict(layer.named_factors())
        torch.manual_seed(7)  # the same mask each time
        state = dict(zip(names, factors, strict=True))
        out: Tensor = torch.func.functional_call(layer, state, (x,))
        return out

    factors = [p.detach().clone().requires_grad_() for _, p in layer.named_factors()]
    assert torch.autograd.gradcheck(run, (x, *factors))


@pytest.mark.parametrize("rows", [MANY, FEW])
@pytest.mark.parametrize("name", LAYERS)
def test_equals_the_formula_under_autograd(name: str, rows: int) -> None:
    layer = make(**LAYERS[name])
    x = numbers(rows, TOKENS, N_IN, seed=4).requires_grad_()
    dropped = None
    if layer.dropout.active:
        torch.manual_seed(7)
        dropped = layer.dropout.draw(x)
        assert 0 < dropped.sum() < dropped.numel()
    torch.manual_seed(7)
    y, expected = layer(x), reference(layer, x, dropped)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-14)
    weight = numbers(*y.shape, seed=5)
    ours = gradients(layer, (y * weight).sum(), x)
    plain = gradients(layer, (expected * weight).sum(), x)
    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-13)
    with torch.no_grad():
        torch.testing.assert_close(layer.eval()(x), reference(layer, x), rtol=0, atol=1e-14)


def test_both_ways_of_adding_the_update_are_used() -> None:
    """The cases above cover both: many rows go through the weight, few do not."""
    layer = make()
    for rows, used in ((MANY, True), (FEW, False)):
        assert fused._merges(rows * TOKENS, layer.weight, layer.B, None) is used


@pytest.mark.parametrize("shape", [(N_IN,), (0, N_IN), (2, 0, N_IN), (2, 1, 3, N_IN)])
def test_any_leading_shape(shape: tuple[int, ...]) -> None:
    layer = make()
    x = numbers(*shape, seed=4).requires_grad_()
    y, expected = layer(x), reference(layer, x)
    assert y.shape == expected.shape
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-14)
    ours = gradients(layer, y.square().sum(), x)
    plain = gradients(layer, expected.square().sum(), x)
    torch.testing.assert_close(ours, plain, rtol=1e-13, atol=1e-13)


def test_inputs_and_gradients_that_are_not_contiguous() -> None:
    layer = make()
    x = numbers(7, N_IN, 4, seed=4).requires_grad_()
    turned = x.permute(2, 0, 1)
    weight = numbers(4, N_OUT, 7, seed=5).transpose(1, 2)
    ours = gradients(layer, (layer(turned) * weight).sum(), x)
    plain = gradients(layer, (reference(layer, turned) * weight).sum(), x)
    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-13)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("produce", [gelu, torch.tanh])
def test_no_components(produce: Callable[[Tensor], Tensor], dropout: float) -> None:
    full = make(dropout=dropout)
    assert full.d is not None
    parts = (full.A.data[:0], full.B.data[:, :0], full.d.data[:0])
    layer = LowRankLinear(full.base, *parts, scaling=0.7, dropout=dropout)
    u = numbers(MANY, TOKENS, N_IN, seed=4).requires_grad_()
    y, expected = layer(produce(u)), full.base(produce(u))
    assert torch.equal(y, expected)
    ours = gradients(layer, y.square().sum(), u)
    torch.testing.assert_close(ours["x"], torch.autograd.grad(expected.square().sum(), u)[0])
    assert [ours[n].shape for n in "ABd"] == [p.shape for _, p in layer.named_factors()]


# ---- what is kept instead of the input


def layer_norm(u: Tensor) -> Tensor:
    norm = nn.LayerNorm(N_IN).double().requires_grad_(False)
    norm.weight.copy_(numbers(N_IN, seed=8))
    norm.bias.copy_(numbers(N_IN, seed=9))
    out: Tensor = norm(u)
    return out


def rms_norm(u: Tensor) -> Tensor:
    """As transformers' Llama writes it."""
    inner = u.to(torch.float64) * torch.rsqrt(u.pow(2).mean(-1, keepdim=True) + 1e-6)
    return numbers(N_IN, seed=8) * inner.to(u.dtype)


PRODUCERS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": gelu,
    "gelu, tanh": lambda u: gelu(u, approximate="tanh"),
    "swiglu": lambda u: silu(u) * (2 * u),
    "layer norm": layer_norm,
    "layer norm, plain": lambda u: nn.functional.layer_norm(u + 3, (N_IN,)),
    "rms norm": rms_norm,
    "rms norm, plain": lambda u: u * torch.rsqrt(u.pow(2).mean(-1, keepdim=True)),
}
OTHERS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "a sum": lambda u: u + 1,
    "times a number": lambda u: 3 * u,
    "times a vector": lambda u: numbers(N_IN, seed=8) * u,
    "times a vector, after a product": lambda u: numbers(N_IN, seed=8) * (u * u),
    "layer norm of two dimensions": lambda u: nn.functional.layer_norm(u, u.shape[-2:]),
    "broadcast": lambda u: u * u[:, :1],
    "a view": lambda u: gelu(u).view(-1, TOKENS, N_IN),
}


@pytest.mark.parametrize("rows", [MANY, FEW])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("name", [*PRODUCERS, *OTHERS])
def test_gradients_behind_what_made_the_input(name: str, dropout: float, rows: int) -> None:
    produce = {**PRODUCERS, **OTHERS}[name]
    layer = make(dropout=dropout)
    u = numbers(rows, TOKENS, N_IN, seed=4).requires_grad_()
    x = produce(u)
    torch.manual_seed(7)
    dropped = layer.dropout.draw(x) if dropout else None
    torch.manual_seed(7)
    ours = gradients(layer, layer(x).square().sum(), u)
    plain = gradients(layer, reference(layer, produce(u), dropped).square().sum(), u)
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", PRODUCERS)
def test_what_the_producer_keeps_is_not_kept_again(name: str) -> None:
    u = numbers(7, TOKENS, N_IN, seed=4).requires_grad_()
    x = PRODUCERS[name](u)
    _, tensors = keep(x)
    assert all(t is None or t.data_ptr() != x.data_ptr() for t in tensors)
    assert not any(t is not None and t.requires_grad for t in tensors)


@pytest.mark.parametrize("name", OTHERS)
def test_other_inputs_are_kept_themselves(name: str) -> None:
    x = OTHERS[name](numbers(7, TOKENS, N_IN, seed=4).requires_grad_())
    assert keep(x)[1][0] is x


def test_many_rows_are_computed_again_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("methods.kept._BLOCK", 3 * N_IN)
    test_gradients_behind_what_made_the_input("gelu", 0.0, MANY)
    test_gradients_behind_what_made_the_input("swiglu", 0.0, MANY)


def test_an_input_changed_before_the_backward_pass_is_an_error() -> None:
    layer = make()
    u = numbers(7, TOKENS, N_IN).requires_grad_()
    for producer in (gelu, torch.tanh):
        kept = u * 1
        x = producer(kept)
        loss = layer(x).sum()
        (kept if producer is gelu else x).data.mul_(2)  # unseen: .data has its own version counter
        with torch.no_grad():
            (kept if producer is gelu else x).mul_(2)
        with pytest.raises(RuntimeError, match="inplace"):
            loss.backward()


# ---- precision


@pytest.mark.parametrize("rows", [MANY, FEW])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_autocast(dtype: torch.dtype, dropout: float, rows: int) -> None:
    layer = make(dropout=dropout).float()
    x = numbers(rows, TOKENS, N_IN, seed=4, dtype=torch.float32).requires_grad_()
    torch.manual_seed(7)
    dropped = layer.dropout.draw(x) if dropout else None
    plain = gradients(layer, reference(layer, layer_norm32(x), dropped).square().sum(), x)
    torch.manual_seed(7)
    with torch.autocast("cpu", dtype=dtype):
        y = layer(layer_norm32(x))
    assert y.dtype == dtype
    ours = gradients(layer, y.float().square().sum(), x)
    for name, expected in plain.items():
        assert ours[name].dtype == torch.float32
        scale = float(expected.abs().max())
        torch.testing.assert_close(ours[name], expected, rtol=0, atol=0.02 * scale)


def layer_norm32(x: Tensor) -> Tensor:
    return nn.functional.layer_norm(x, (N_IN,))


def test_autocast_leaves_double_precision_alone() -> None:
    layer, x = make(), numbers(7, TOKENS, N_IN)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, expected = layer(x), reference(layer, x)
    assert y.dtype == expected.dtype == torch.float64
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-14)


def test_a_backward_pass_inside_autocast_keeps_its_precision() -> None:
    layer = make().float()
    x = numbers(7, TOKENS, N_IN, dtype=torch.float32).requires_grad_()
    outside = gradients(layer, layer(x).square().sum(), x)
    loss = layer(x).square().sum()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = gradients(layer, loss, x)
    torch.testing.assert_close(inside, outside, rtol=0, atol=0)


@pytest.mark.parametrize("rows", [MANY, FEW])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_weights_have_precise_factors(dtype: torch.dtype, rows: int) -> None:
    """Small updates are not lost: the branch is computed in float32 and added."""
    layer = make()
    layer.base.to(dtype)
    for _, p in layer.named_factors():
        p.data = p.data.float()
    x = numbers(rows, TOKENS, N_IN, seed=4).to(dtype).requires_grad_()
    y, expected = layer(x), reference(layer, x)
    assert y.dtype == dtype
    torch.testing.assert_close(y, expected, rtol=0.02, atol=0.02)
    ours = gradients(layer, y.float().square().sum(), x)
    plain = gradients(layer, expected.float().square().sum(), x)
    for name in plain:
        assert ours[name].dtype == plain[name].dtype
        scale = float(plain[name].abs().max())
        torch.testing.assert_close(ours[name], plain[name], rtol=0, atol=0.02 * scale)


# ---- where it is used


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("name", ["gelu", "layer norm", "tanh"])
def test_gradient_checkpointing(name: str, dropout: float, reentrant: bool) -> None:
    produce = {**PRODUCERS, **OTHERS}[name]
    layer = make(dropout=dropout)
    u = numbers(7, TOKENS, N_IN, seed=4).requires_grad_()

    def run(u: Tensor) -> Tensor:
        out: Tensor = layer(produce(u))
        return out

    results = []
    for wrapped in (run, lambda u: checkpoint(run, u, use_reentrant=reentrant)):
        torch.manual_seed(7)
        u.grad = None
        layer.zero_grad()
        wrapped(u).square().sum().backward()
        results.append({"u": u.grad, **{n: p.grad for n, p in layer.named_factors()}})
    torch.testing.assert_close(results[1], results[0], rtol=1e-13, atol=1e-14)


def test_tensors_kept_elsewhere() -> None:
    layer = make()
    u = numbers(7, TOKENS, N_IN, seed=4).requires_grad_()
    plain = gradients(layer, layer(gelu(u)).square().sum(), u)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t):
        loss = layer(gelu(u)).square().sum()
    torch.testing.assert_close(gradients(layer, loss, u), plain, rtol=0, atol=1e-14)


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def hooked(base: nn.Module) -> nn.Module:
    base.register_forward_hook(lambda _module, _args, output: 2 * output)
    return base


def replaced(base: nn.Module) -> nn.Module:
    inner = base.forward
    base.forward = lambda x: 2 * inner(x)
    return base


@pytest.mark.parametrize("change", [lambda _: Doubled(N_IN, N_OUT).double(), hooked, replaced])
def test_bases_that_do_more_than_a_product(change: Callable[[nn.Module], nn.Module]) -> None:
    layer = make()
    base = change(layer.base)
    layer = LowRankLinear(base, layer.A.data, layer.B.data, layer.d.data, scaling=layer.scaling)
    x = numbers(7, TOKENS, N_IN, seed=4).requires_grad_()
    expected = base(x) + x @ layer.factors().dense().T
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-13)
    ours = gradients(layer, layer(x).square().sum(), x)
    plain = gradients(layer, reference(layer, x).square().sum(), x)
    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-12)


def test_a_base_that_somebody_thawed_gets_its_gradient() -> None:
    layer = make()
    layer.base.weight.requires_grad_(True)
    x = numbers(7, TOKENS, N_IN)
    layer(x).square().sum().backward()
    other = copy.deepcopy(layer)
    other.zero_grad()
    reference(other, x).square().sum().backward()
    torch.testing.assert_close(layer.base.weight.grad, other.base.weight.grad, rtol=0, atol=1e-12)


def test_frozen_factors_get_no_gradient() -> None:
    layer = make()
    layer.A.requires_grad_(False)
    x = numbers(7, TOKENS, N_IN).requires_grad_()
    layer(x).square().sum().backward()
    assert layer.A.grad is None
    assert layer.B.grad is not None
