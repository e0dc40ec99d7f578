"""The contract of adapter methods as checks, for a method's own tests.

    import pytest
    from methods.contract import CHECKS

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    def test_contract(check):
        check(lambda **options: MyMethod(MyConfig(**options)))

A check takes a factory that makes a fresh method from options that every configuration has
(targets, alpha, dropout). It raises AssertionError with a message that describes the fault. These
checks use a small net and a plain loop; `sora_cli.verify.contract` checks with a transformers
Trainer, adapter files and merging. Baselines (`methods.baselines`) have no factors, so they have
checks of their own: `BASELINE_CHECKS`.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import torch

from methods.base import AdapterMethod, LowRankLinear
from methods.contract.baselines import (
    adapting_layers_is_refused,
    choosing_changes_nothing,
    groups_hold_every_chosen_parameter_once,
    only_what_was_chosen_is_trained,
)
from methods.contract.net import (
    LR,
    STEPS,
    MethodFactory,
    base_output,
    first_difference,
    generator,
    largest_difference,
    layer_inputs,
    regression_data,
    small_net,
    start,
    trained,
)
from methods.contract.runs import (
    a_finished_adapter_is_a_start_or_refused,
    a_missing_gradient_is_named,
    a_run_resumes_bit_equal,
    beginning_again_changes_nothing,
    components_keep_their_order,
    layers_of_rank_zero_work,
    training_learns_and_leaves_the_base_alone,
)
from methods.errors import MethodError
from methods.inject import inject, replace

__all__ = ["BASELINE_CHECKS", "CHECKS", "Check", "MethodFactory"]

Check = Callable[[MethodFactory], None]

_DTYPES = (torch.float32, torch.bfloat16, torch.float64)
_ROUNDING = 1e-12  # of float64 sums of a dozen terms near 1


def output_is_bit_equal_at_injection(make: MethodFactory) -> None:
    """Check that the update starts at exactly 0, in every dtype, in training and in evaluation."""
    for dtype in _DTYPES:
        x, _ = regression_data(dtype)
        net = small_net(dtype)
        before = net(x)
        inject(net, make(), generator=generator())
        for mode in (True, False):
            after = net.train(mode)(x)
            assert after.dtype == dtype, f"the output of a {dtype} model is {after.dtype}"
            assert torch.equal(after, before), f"the output in {dtype} changed at injection"


def dropout_is_on_the_adapters_input_only(make: MethodFactory) -> None:
    """Check that dropout acts on the update's input, not on the base layer's input or output."""
    x, _ = regression_data()
    run = start(make(dropout=0.5))
    run.net.train()
    assert torch.equal(run.net(x), small_net()(x)), "dropout reaches the base layer"

    run.train(range(10))
    for path, layer in run.layers.items():
        x = layer_inputs(layer)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            output = layer(x)
            torch.manual_seed(5)
            dropped = layer.dropout(x)
        assert not torch.equal(dropped, x), f"'{path}' drops nothing at dropout 0.5"
        expected = base_output(layer, x) + dropped @ run.method.factors(layer).dense().T
        off = largest_difference(output, expected)
        assert off <= _ROUNDING, f"'{path}' is off by {off:.1e} from an update of dropped inputs"
        layer.eval()
        assert torch.equal(layer(x), layer(x)), f"'{path}' is random in evaluation"


def same_seed_same_factors(make: MethodFactory) -> None:
    """Check that the generator given to `wrap`, and nothing else, decides the initial factors."""
    first, again, other = (start(make(), seed=seed).net.state_dict() for seed in (1, 1, 2))
    changed = first_difference(first, again)
    assert changed is None, f"one seed gave two different '{changed}'"
    assert first_difference(first, other) is not None, "two seeds gave the same factors"


def the_global_generator_is_not_used(make: MethodFactory) -> None:
    """Check that injection draws only from the given generator, not from torch's global one."""
    net = small_net()
    before = torch.get_rng_state()
    inject(net, make(), generator=generator())
    assert torch.equal(torch.get_rng_state(), before), "wrap drew from torch's global generator"


def groups_hold_every_adapter_parameter_once(make: MethodFactory) -> None:
    """Check that each trained parameter is in exactly one group, and group names are unique."""
    method = make()
    net = small_net()
    layers = inject(net, method, generator=generator())
    groups = method.param_groups(layers, lr=LR, weight_decay=0.01)
    grouped = [id(p) for group in groups for p in group["params"]]
    trainable = {id(p): name for name, p in net.named_parameters() if p.requires_grad}
    assert trainable, "nothing is trained"
    for key, name in trainable.items():
        assert grouped.count(key) == 1, f"'{name}' is in {grouped.count(key)} groups, not in one"
    assert len(grouped) == len(trainable), "a group holds a parameter that is not trained"
    names = [group.get("name") for group in groups]
    assert None not in names, "a group has no name"
    assert len(set(names)) == len(names), f"groups share a name: {names}"


def penalty_is_none_or_a_scalar_of_the_adapters(make: MethodFactory) -> None:
    """Check that a penalty is a finite scalar, not negative, and depends on the adapters alone."""
    run = start(make())
    penalty = run.method.penalty(run.layers)
    if penalty is None:
        return
    assert penalty.shape == (), f"the penalty has shape {tuple(penalty.shape)}, it must be a scalar"
    assert torch.isfinite(penalty), f"the penalty is {penalty.item()}"
    assert penalty >= 0, f"the penalty is negative: {penalty.item()}"
    assert penalty.requires_grad, "the penalty does not depend on any parameter"
    penalty.backward()  # type: ignore[no-untyped-call]
    moved = [p for p in run.net.parameters() if p.grad is not None]
    assert moved, "the penalty does not depend on the adapters' parameters"
    adapters = {id(p) for layer in run.layers.values() for p in (layer.A, layer.B, layer.d)}
    assert all(id(p) in adapters for p in moved), "the penalty has a gradient on the base model"


def penalty_changes_nothing(make: MethodFactory) -> None:
    """Check that `penalty` changes no state: it is called for every micro-batch."""
    x, _ = regression_data()
    run = start(make())
    for steps in (range(0), range(10)):
        run.train(steps)
        for mode in (True, False):
            run.net.train(mode)
            before, output = run.state(), run.net(x)
            run.method.penalty(run.layers)
            changed = first_difference(before, run.state())
            assert changed is None, f"calling penalty changed '{changed}'"
            assert torch.equal(run.net(x), output), "calling penalty changed the output"
        run.net.train()


def evaluation_is_the_base_plus_the_factors(make: MethodFactory) -> None:
    """Check that a layer in evaluation returns W x + b + dW x: no penalty, no dropout."""
    run = trained(make, dropout=0.5)
    run.net.eval()
    plain = small_net()
    for path, layer in run.layers.items():
        x = layer_inputs(layer)
        dense = run.method.factors(layer).dense()
        off = largest_difference(layer(x), base_output(layer, x) + x @ dense.T)
        assert off <= _ROUNDING, f"'{path}' is off by {off:.1e} from its base and its factors"
        plain.get_parameter(f"{path}.weight").data += dense
    x, _ = regression_data()
    off = largest_difference(run.net(x), plain(x))
    assert off <= _ROUNDING, f"the net is off by {off:.1e} from its base and its factors"


def factors_are_the_layers_effect(make: MethodFactory) -> None:
    """Check that `factors` equals the layer's effect in training, gates and scaling included."""
    run = trained(make)
    largest = 0.0
    for path, layer in run.layers.items():
        x = layer_inputs(layer)
        effect = layer(x) - base_output(layer, x)
        largest = max(largest, float(effect.detach().abs().max()))
        off = largest_difference(effect, x @ run.method.factors(layer).dense().T)
        assert off <= _ROUNDING, f"the factors of '{path}' are off by {off:.1e} from its effect"
    assert largest > 1e-6, "training left every layer without an effect"


def outputs_may_be_changed_in_place(make: MethodFactory) -> None:
    """Check that a model may change a layer's output in place, as Longformer scales its queries.

    A view made inside an autograd function could not be changed in place.
    """
    run = trained(make)
    for path, layer in run.layers.items():
        factors = {kind: p for kind, p in layer.named_factors() if p.requires_grad}
        for rows in ((5,), (2, 5), (2, 2, 5)):
            x = torch.randn(*rows, layer.A.shape[1], generator=generator(3), dtype=torch.float64)
            wanted = [x.requires_grad_(), *factors.values()]
            apart = layer(x) / 3
            expected = torch.autograd.grad(apart.square().sum(), wanted)
            try:
                y = layer(x)
                y /= 3
                gradients = torch.autograd.grad(y.square().sum(), wanted)
            except RuntimeError as error:
                raise AssertionError(f"'{path}' on {rows} rows: {error}") from error
            assert torch.equal(y, apart), f"'{path}': a change in place gives another output"
            for name, one, other in zip(["x", *factors], gradients, expected, strict=True):
                off = largest_difference(one, other)
                assert off <= _ROUNDING, f"'{path}' changed in place: gradient of {name} is wrong"


def dropping_zero_components_changes_nothing(make: MethodFactory) -> None:
    """Check that components that are exactly zero can be left out: same dW, same outputs."""
    run = trained(make)
    x, _ = regression_data()
    for path, layer in run.layers.items():
        killed = _kill_components(layer)
        factors = run.method.factors(layer)
        kept = factors.drop_zeros()
        left = factors.rank - kept.rank
        assert left >= killed, f"'{path}' has {killed} dead components, its factors drop {left}"
        off = largest_difference(kept.dense(), factors.dense())
        assert off <= 1e-15, f"dW of '{path}' is off by {off:.1e} without its zero components"
        full = run.net(x)
        replace(run.net, path, LowRankLinear(layer.base, kept.A, kept.B, scaling=1.0))
        off = largest_difference(run.net(x), full)
        assert off <= _ROUNDING, f"'{path}' is off by {off:.1e} without its zero components"


def summary_counts_components(make: MethodFactory) -> None:
    """Check that `summary` counts live components, and that only `adapts_rank` lets any die."""
    run = trained(make)
    summary = run.method.summary(run.layers)
    total = sum(layer.rank for layer in run.layers.values())
    assert summary.total == total, f"summary counts {summary.total} components, not {total}"
    live = sum(run.method.factors(layer).drop_zeros().rank for layer in run.layers.values())
    assert summary.live == live, f"summary counts {summary.live} live components, not {live}"
    alive = int(run.method.alive(run.layers))
    assert alive == live, f"alive counts {alive} live components, not {live}"
    adapts = run.method.config.adapts_rank
    assert live == total or adapts, "components died, but adapts_rank is False"
    json.dumps(run.method.details(run.layers))  # raises TypeError on what is not plain data


def a_plan_covers_the_run_and_changes_nothing(make: MethodFactory) -> None:
    """Check that the phases of `plan` add up to the run, and that `plan` changes nothing."""
    run = start(make())
    before = run.state()
    groups = run.optimizer.param_groups
    rates = {group["name"]: [LR] * STEPS for group in groups}
    plan = run.method.plan(run.layers, total_steps=STEPS, learning_rates=rates)
    steps = sum(count for _, count in plan.phases)
    assert steps == STEPS, f"the phases of the plan add up to {steps} steps, not {STEPS}"
    changed = first_difference(before, run.state())
    assert changed is None, f"calling plan changed '{changed}'"


def only_variable_options_vary(make: MethodFactory) -> None:
    """Check that `set_option` changes variable options only; its error lists the variable ones."""
    method = make()
    fixed = [n for n in type(method.config).model_fields if n not in method.config.variable_options]
    for option in (*fixed, "no_such_option"):
        error = _refusal(method, option, getattr(method.config, option, 1.0))
        assert error, f"'{option}' is not in variable_options but was changed"
        for word in (option, *(method.config.variable_options or ("nothing",))):
            assert word in error, f"the error on '{option}' does not name {word}: {error}"
    for option in method.config.variable_options:
        value = getattr(method.config, option)
        method.set_option(option, value)
        error = _refusal(method, option, {"no": "value"})
        assert error, f"'{option}' took a mapping as its value"
        assert option in error, f"the error on a value of '{option}' does not name it: {error}"
        assert getattr(method.config, option) == value, f"'{option}' is not what it was set to"


CHECKS: tuple[Check, ...] = (
    output_is_bit_equal_at_injection,
    dropout_is_on_the_adapters_input_only,
    same_seed_same_factors,
    the_global_generator_is_not_used,
    groups_hold_every_adapter_parameter_once,
    penalty_is_none_or_a_scalar_of_the_adapters,
    penalty_changes_nothing,
    evaluation_is_the_base_plus_the_factors,
    training_learns_and_leaves_the_base_alone,
    factors_are_the_layers_effect,
    outputs_may_be_changed_in_place,
    a_missing_gradient_is_named,
    components_keep_their_order,
    dropping_zero_components_changes_nothing,
    layers_of_rank_zero_work,
    a_finished_adapter_is_a_start_or_refused,
    a_run_resumes_bit_equal,
    beginning_again_changes_nothing,
    summary_counts_components,
    a_plan_covers_the_run_and_changes_nothing,
    only_variable_options_vary,
)
"""All checks of a low-rank method; a failing check raises AssertionError."""

BASELINE_CHECKS: tuple[Check, ...] = (
    choosing_changes_nothing,
    only_what_was_chosen_is_trained,
    groups_hold_every_chosen_parameter_once,
    adapting_layers_is_refused,
    penalty_changes_nothing,
    a_run_resumes_bit_equal,
    beginning_again_changes_nothing,
    summary_counts_components,
    a_plan_covers_the_run_and_changes_nothing,
    only_variable_options_vary,
)
"""All checks of a baseline; it has no factors to check."""


def _kill_components(layer: LowRankLinear) -> int:
    """Zero the first component and, with gates, the last; return the number of zeroed ones."""
    dead = {0}
    layer.B.data[:, 0] = 0
    if layer.d is not None:
        dead.add(layer.rank - 1)
        layer.d.data[-1] = 0
    return len(dead)


def _refusal(method: AdapterMethod, option: str, value: object) -> str:
    """Return the message with which `set_option` refuses a value; empty if it accepts it."""
    try:
        method.set_option(option, value)
    except MethodError as error:
        return str(error)
    return ""
