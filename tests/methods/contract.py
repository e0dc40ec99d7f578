"""What every adapter method owes its callers, as checks that take a method factory.

`contract_cases()` names them; `check(make)` runs one. A third-party method is held to the same:

    @pytest.mark.parametrize("check", contract_cases())
    def test_contract(check):
        check(lambda **options: MyMethod(MyConfig(**options)))
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from methods.base import AdapterMethod
from methods.errors import MethodError
from methods.inject import inject
from tests.methods.support import LR, Run, generator, regression_data, small_net, start

MethodFactory = Callable[..., AdapterMethod]
"""Makes a fresh method from options that every configuration has (targets, alpha, dropout)."""

Check = Callable[[MethodFactory], None]

DTYPES = (torch.float32, torch.bfloat16, torch.float64)


def contract_cases() -> list[Any]:
    """All checks, as parameters for pytest."""
    checks: list[Check] = [
        output_is_bit_equal_at_injection,
        dropout_leaves_the_base_path_alone,
        same_seed_same_factors,
        the_global_generator_is_not_used,
        groups_hold_every_adapter_parameter_once,
        penalty_is_none_or_a_scalar_of_the_adapters,
        training_learns_and_leaves_the_base_alone,
        factors_are_the_layers_effect,
        dropping_zero_terms_changes_nothing,
        a_run_resumes_bit_equal,
        summary_counts_components,
        only_variable_options_vary,
    ]
    return [pytest.param(check, id=check.__name__) for check in checks]


def output_is_bit_equal_at_injection(make: MethodFactory) -> None:
    for dtype in DTYPES:
        x, _ = regression_data(dtype)
        net = small_net(dtype)
        before = net(x)
        inject(net, make(), generator=generator())
        assert net(x).dtype == dtype
        assert torch.equal(net(x), before), dtype


def dropout_leaves_the_base_path_alone(make: MethodFactory) -> None:
    x, _ = regression_data()
    run = start(make(dropout=0.5))
    run.net.train()
    assert torch.equal(run.net(x), small_net()(x))  # the update is zero, whatever is dropped

    run.train(range(10))
    assert not torch.equal(run.net(x), run.net(x))  # now it is not, and inputs are dropped
    run.net.eval()
    assert torch.equal(run.net(x), run.net(x))


def same_seed_same_factors(make: MethodFactory) -> None:
    first, again, other = (start(make(), seed=seed).layers["0"].state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def the_global_generator_is_not_used(make: MethodFactory) -> None:
    net = small_net()
    before = torch.get_rng_state()
    inject(net, make(), generator=generator())
    assert torch.equal(torch.get_rng_state(), before)


def groups_hold_every_adapter_parameter_once(make: MethodFactory) -> None:
    method = make()
    net = small_net()
    layers = inject(net, method, generator=generator())
    groups = method.param_groups(layers, lr=LR, weight_decay=0.01)
    grouped = [id(p) for group in groups for p in group["params"]]
    trainable = [id(p) for p in net.parameters() if p.requires_grad]
    assert sorted(grouped) == sorted(trainable)
    assert trainable
    names = [group["name"] for group in groups]
    assert len(set(names)) == len(names)


def penalty_is_none_or_a_scalar_of_the_adapters(make: MethodFactory) -> None:
    run = start(make())
    penalty = run.method.penalty(run.layers)
    if penalty is None:
        return
    assert penalty.shape == ()
    assert torch.isfinite(penalty)
    assert penalty >= 0
    penalty.backward()
    for layer in run.layers.values():
        assert layer.base.weight.grad is None
    assert any(p.grad is not None for p in run.net.parameters())


def training_learns_and_leaves_the_base_alone(make: MethodFactory) -> None:
    for dtype in DTYPES:
        run = start(make(), dtype=dtype)
        losses = run.train(range(20))
        assert losses[-1] < losses[0], dtype
        for path, linear in linears(small_net(dtype)).items():
            base = run.layers[path].base
            assert torch.equal(base.weight, linear.weight), (dtype, path)
            assert torch.equal(base.bias, linear.bias), (dtype, path)


def factors_are_the_layers_effect(make: MethodFactory) -> None:
    run = trained(make)
    for path, layer in run.layers.items():
        x = torch.randn(5, layer.A.shape[1], generator=generator(3), dtype=torch.float64)
        dense = run.method.factors(layer).dense()
        effect = layer(x) - layer.base(x)
        assert effect.abs().max() > 1e-6, path
        assert (effect - x @ dense.T).abs().max() <= 1e-12, path


def dropping_zero_terms_changes_nothing(make: MethodFactory) -> None:
    run = trained(make)
    for path, layer in run.layers.items():
        if layer.d is not None:
            layer.d.data[:2] = 0
        factors = run.method.factors(layer)
        kept = factors.drop_zeros()
        assert layer.d is None or kept.rank <= factors.rank - 2, path
        assert (kept.dense() - factors.dense()).abs().max() <= 1e-15, path


def a_run_resumes_bit_equal(make: MethodFactory) -> None:
    straight = start(make())
    losses = straight.train(range(20))

    halted = start(make())
    first_half = halted.train(range(10))
    state = copy.deepcopy(
        (
            {path: layer.state_dict() for path, layer in halted.layers.items()},
            halted.optimizer.state_dict(),
            halted.method.state_dict(),
        )
    )
    resumed = start(make(), seed=99)
    for path, layer in resumed.layers.items():
        layer.load_state_dict(state[0][path])
    resumed.optimizer.load_state_dict(state[1])
    resumed.method.load_state_dict(state[2])
    second_half = resumed.train(range(10, 20))

    assert first_half + second_half == losses
    for path, layer in straight.layers.items():
        again = resumed.layers[path].state_dict()
        for name, tensor in layer.state_dict().items():
            assert torch.equal(again[name], tensor), (path, name)
    assert resumed.method.summary(resumed.layers) == straight.method.summary(straight.layers)


def summary_counts_components(make: MethodFactory) -> None:
    run = trained(make)
    summary = run.method.summary(run.layers)
    assert summary.total == sum(layer.rank for layer in run.layers.values())
    factors = [run.method.factors(layer) for layer in run.layers.values()]
    assert summary.live == sum(f.drop_zeros().rank for f in factors)
    assert summary.live == summary.total or run.method.adapts_rank


def only_variable_options_vary(make: MethodFactory) -> None:
    method = make()
    with pytest.raises(MethodError, match="alpha may not vary"):
        method.set_option("alpha", 1.0)
    for option in method.variable_options:
        value = getattr(method.config, option)
        method.set_option(option, value)
        assert getattr(method.config, option) == value


def trained(make: MethodFactory) -> Run:
    run = start(make())
    run.train(range(20))
    return run


def linears(net: nn.Module) -> dict[str, nn.Linear]:
    return {path: m for path, m in net.named_modules() if isinstance(m, nn.Linear)}
