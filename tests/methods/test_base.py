"""LowRankLinear: formula, gradients of dead components, rank 0, precision; and AdapterMethod."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from methods.base import LowRankLinear, StepInfo, Summary, optimizer_groups
from methods.configs import LoraConfig, SoraConfig
from methods.errors import MethodError
from methods.registry import create, method_class
from tests.methods.support import generator, start


def layer(rank: int, *, gates: bool, scaling: float = 0.5, dropout: float = 0.0) -> LowRankLinear:
    """A layer (7 -> 5) whose update is not zero, float64."""
    g = generator()
    A, B, d = (
        torch.randn(*shape, generator=g, dtype=torch.float64)
        for shape in ((rank, 7), (5, rank), (rank,))
    )
    base = nn.Linear(7, 5, dtype=torch.float64)
    return LowRankLinear(base, A, B, d if gates else None, scaling=scaling, dropout=dropout)


def inputs(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(2, 3, 7, generator=generator(1), dtype=torch.float64).to(dtype)


def test_formula() -> None:
    adapted = layer(3, gates=True)
    update = 0.5 * adapted.B @ torch.diag(adapted.d) @ adapted.A  # (out, in)
    expected = adapted.base(inputs()) + inputs() @ update.T
    torch.testing.assert_close(adapted(inputs()), expected, rtol=0, atol=1e-14)


def test_base_is_frozen_and_the_rest_is_not() -> None:
    trainable = {n for n, p in layer(3, gates=True).named_parameters() if p.requires_grad}
    assert trainable == {"A", "B", "d"}


def test_dead_component_gets_a_gradient_on_its_gate_alone() -> None:
    adapted = layer(3, gates=True)
    adapted.d.data[1] = 0
    adapted(inputs()).square().sum().backward()
    assert adapted.d.grad[1] != 0
    assert not adapted.A.grad[1].any()
    assert not adapted.B.grad[:, 1].any()
    assert adapted.A.grad[0].any()


@pytest.mark.parametrize("gates", [False, True])
def test_rank_zero_is_the_base_layer(gates: bool) -> None:
    adapted = layer(0, gates=gates)
    x = inputs().requires_grad_()
    y = adapted(x)
    assert torch.equal(y, adapted.base(x))
    y.sum().backward()
    torch.testing.assert_close(x.grad[0, 0], adapted.base.weight.sum(dim=0))
    assert adapted.factors().rank == 0
    assert not adapted.factors().dense().any()


@pytest.mark.parametrize("name", ["lora", "adalora", "sora"])
def test_hooks_take_a_layer_of_rank_zero(name: str) -> None:
    """As the rest of a path leaves it, where all of a layer's components were removed."""
    options = {"l1": 0.1} if name == "sora" else {}
    run = start(create(name, **options))
    gone = run.layers["0"]
    gone.A, gone.B = nn.Parameter(gone.A[:0]), nn.Parameter(gone.B[:, :0])
    gone.d = None if gone.d is None else nn.Parameter(gone.d[:0])
    run.optimizer = torch.optim.SGD(
        run.method.param_groups(run.layers, lr=0.1, weight_decay=0.0), lr=0.1
    )
    run.method.begin(run.layers, total_steps=20)
    losses = run.train(range(20))
    assert losses[-1] < losses[0]
    assert run.method.summary(run.layers).total == run.layers["2"].rank


@pytest.mark.parametrize(
    ("groups", "fault"),
    [
        ([{"params": [], "lr": 0.1}], 'a group without a "name"'),
        ([{"name": "A", "lr": 0.1}, {"name": "A", "lr": 0.1}], "groups that share a name: A, A"),
        ([{"name": "A", "params": []}], 'a group without an "lr"'),
    ],
)
def test_faulty_groups_are_named(
    monkeypatch: pytest.MonkeyPatch, groups: list[dict[str, object]], fault: str
) -> None:
    method = create("lora")
    monkeypatch.setattr(method, "param_groups", lambda *_, **__: groups)
    with pytest.raises(MethodError, match=f"Lora.param_groups returns {fault}; a group is a dict"):
        optimizer_groups(method, {}, lr=0.1, weight_decay=0.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_output_keeps_the_bases_dtype_and_factors_stay_precise(dtype: torch.dtype) -> None:
    method = create("lora", r=2)
    adapted = method.wrap(nn.Linear(7, 5, dtype=dtype), generator=generator())
    assert adapted.A.dtype == adapted.B.dtype == torch.float32
    assert adapted(inputs(dtype)).dtype == dtype
    assert adapted.factors().B.dtype == torch.float32


@pytest.mark.parametrize("gates", [False, True])
def test_autocast_computes_in_bfloat16(gates: bool) -> None:
    adapted = layer(3, gates=gates).float()
    x = inputs(torch.float32)
    exact = adapted(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = adapted(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), exact, rtol=0.05, atol=0.1)
    y.float().square().sum().backward()
    assert adapted.A.grad.dtype == torch.float32
    assert torch.isfinite(adapted.A.grad).all()


def test_factors_are_detached_copies() -> None:
    adapted = layer(3, gates=True)
    factors = adapted.factors()
    before = factors.dense()
    assert not factors.A.requires_grad
    with torch.no_grad():
        adapted.A.zero_()
        adapted.B.zero_()
    assert torch.equal(factors.dense(), before)


def test_a_method_refuses_another_methods_configuration() -> None:
    with pytest.raises(TypeError, match="sora takes a SoraConfig"):
        method_class("sora")(LoraConfig())


def test_set_option_checks_its_value() -> None:
    method = create("sora", threshold=1e-3)
    method.set_option("threshold", 2e-3)
    assert method.config == SoraConfig(threshold=2e-3)
    with pytest.raises(MethodError, match=r"sora.threshold: .*greater than or equal to 0"):
        method.set_option("threshold", -1.0)
    with pytest.raises(MethodError, match="r_max cannot vary; options that can: threshold, l1"):
        method.set_option("r_max", 4)
    assert method.config == SoraConfig(threshold=2e-3)


def test_a_stateless_method_refuses_state() -> None:
    with pytest.raises(MethodError, match="lora keeps no state but was given"):
        create("lora").load_state_dict({"threshold": torch.tensor(1.0)})


def test_summary_without_gates_counts_every_component() -> None:
    run = start(create("lora", r=3))
    run.method.after_step(run.layers, StepInfo(0, 20, {"factors": 0.1}))
    assert run.method.summary(run.layers) == Summary(live=6, total=6)
    assert run.method.deliverable(run.layers)


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_shows_its_bases_weight_and_bias(bias: bool) -> None:
    """T5's feed-forward looks at the dtype of its layers' weights."""
    base = nn.Linear(3, 2, bias=bias)
    layer = LowRankLinear(base, torch.zeros(1, 3), torch.zeros(2, 1), scaling=1.0)
    assert layer.weight is base.weight
    assert layer.bias is base.bias
    assert {n for n, _ in layer.named_parameters()} >= {"A", "B", "base.weight"}
    assert "weight" not in layer.state_dict()
