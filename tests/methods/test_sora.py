"""SoRA: the threshold, the gates' start and own group, the penalty, what it counts and keeps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from methods.base import StepInfo
from methods.errors import MethodError
from methods.registry import create
from tests.methods.support import LR, Run, start

XI = 0.5  # exact in binary, and so are the gates below: the boundaries are hit


def sora(**options: object) -> Run:
    """A run of 20 steps over two layers of 4 components."""
    return start(create("sora", **{"r_max": 4, **options}))


def give_gradients(run: Run) -> None:
    for layer in run.layers.values():
        for _, p in layer.named_factors():
            p.grad = torch.zeros_like(p)


def after_step(run: Run, step: int = 0, *, gate_lr: float = LR) -> None:
    give_gradients(run)
    run.method.after_step(run.layers, StepInfo(step, 20, {"factors": LR, "gates": gate_lr}))


def set_gates(run: Run, values: list[float]) -> None:
    for layer in run.layers.values():
        layer.d.data = torch.tensor(values, dtype=torch.float64)


def gates(run: Run) -> Tensor:
    return torch.cat([layer.d.detach() for layer in run.layers.values()])


@pytest.mark.parametrize(
    ("prox", "expected"), [("paper", [0, 0, 0.25, 1.5]), ("official", [0, 0.5, 0, 1.5])]
)
def test_after_step_thresholds_every_gate(prox: str, expected: list[float]) -> None:
    run = sora(threshold=XI, prox=prox)
    set_gates(run, [0.25, 0.5, 0.75, 2.0])
    after_step(run)
    assert gates(run).tolist() == 2 * expected


def test_threshold_may_follow_the_gates_learning_rate() -> None:
    run = sora(threshold=4.0, threshold_times_lr=True)
    set_gates(run, [2.0] * 4)
    after_step(run, gate_lr=0.125)
    assert gates(run).tolist() == [1.5] * 8
    after_step(run, 1, gate_lr=0.0)  # the end of a linear decay
    assert gates(run).tolist() == [1.5] * 8


def test_gates_start_normal_and_scaling_is_of_r_max() -> None:
    run = sora(r_max=2000, alpha=30)
    assert run.layers["0"].scaling == 30 / 2000
    assert gates(run).mean().item() == pytest.approx(0, abs=0.05)
    assert gates(run).std().item() == pytest.approx(1, abs=0.05)


def test_gates_may_start_at_one_with_the_same_factors() -> None:
    normal, ones = sora(), sora(gate_init="ones")
    assert gates(ones).tolist() == [1.0] * 8
    for path, layer in ones.layers.items():
        assert torch.equal(layer.A, normal.layers[path].A)
        assert layer.scaling == normal.layers[path].scaling


def test_l1_is_the_mean_over_all_gates() -> None:
    run = sora(l1=0.1)
    set_gates(run, [1.0, -2.0, 0.0, 0.5])
    run.layers["0"].d.data[0] = 5.0
    penalty = run.method.penalty(run.layers)
    assert penalty.item() == pytest.approx(0.1 * (7.5 + 3.5) / 8, rel=1e-12)
    assert sora().method.penalty(run.layers) is None


def test_l1_of_no_gates_is_nothing() -> None:
    run = sora(l1=0.1)
    for layer in run.layers.values():
        layer.d = torch.nn.Parameter(layer.d[:0].detach())
    assert run.method.penalty(run.layers) == 0


def test_gates_have_their_own_group() -> None:
    run = sora(gate_lr=0.5, gate_eps=1e-20, betas=(0.8, 0.95))
    factors, own = run.optimizer.param_groups
    assert (factors["name"], factors["lr"], factors["weight_decay"]) == ("factors", LR, 0.01)
    assert (factors["eps"], factors["betas"]) == (1e-8, (0.9, 0.999))  # the optimiser's
    assert (own["name"], own["lr"], own["weight_decay"]) == ("gates", 0.5, 0.0)
    assert (own["eps"], own["betas"]) == (1e-20, (0.8, 0.95))
    assert [id(p) for p in own["params"]] == [id(layer.d) for layer in run.layers.values()]


def test_gates_take_the_optimisers_rate_and_betas_by_default() -> None:
    run = start(create("sora"), betas=(0.7, 0.9))
    own = run.optimizer.param_groups[1]
    assert (own["lr"], own["betas"]) == (LR, (0.7, 0.9))


def test_all_gates_dead_is_an_event() -> None:
    run = sora(threshold=100.0)
    after_step(run)
    summary = run.method.summary(run.layers)
    assert (summary.live, summary.total) == (0, 8)
    assert summary.events == ("every gate is zero: the adapter does nothing; lower the threshold",)


def test_revivals_are_counted() -> None:
    run = sora(threshold=XI)
    set_gates(run, [0.25, 0.25, 2.0, 2.0])
    after_step(run, 0)  # two gates of each layer die: not a revival
    assert run.method.summary(run.layers).events == ()
    run.layers["0"].d.data[0] = 1.0
    after_step(run, 1)
    after_step(run, 2)  # it dies again
    run.layers["0"].d.data[:2] = 1.0
    after_step(run, 3)
    assert run.method.summary(run.layers).events == ("3 times a gate at zero came back",)


def test_a_gate_comes_back_by_its_gradient() -> None:
    run = sora(threshold=1e-3)
    run.train(range(5))
    run.layers["2"].d.data[0] = 0.0
    run.method.set_option("threshold", 0.0)
    run.train([5])
    assert run.layers["2"].d[0] != 0


def test_state_round_trip() -> None:
    run = sora(threshold=XI)
    set_gates(run, [0.25, 0.25, 2.0, 2.0])
    after_step(run, 0)
    run.layers["0"].d.data[0] = 1.0
    after_step(run, 1)
    run.method.set_option("threshold", 0.7)
    run.method.set_option("l1", 0.01)

    other = create("sora", r_max=4)
    other.load_state_dict(run.method.state_dict())
    assert other.details(run.layers) == run.method.details(run.layers)
    assert (other.config.threshold, other.config.l1) == (0.7, 0.01)
    assert other.summary(run.layers) == run.method.summary(run.layers)
    run.layers["2"].d.data[0] = 1.0  # it was dead before the state was saved
    other.after_step(run.layers, StepInfo(2, 20, {"gates": LR}))
    assert other.summary(run.layers).events == ("2 times a gate at zero came back",)


def test_state_before_the_first_step() -> None:
    run = sora()
    state = run.method.state_dict()
    run.method = create("sora", r_max=4)
    run.method.load_state_dict(state)
    after_step(run)
    assert run.method.summary(run.layers).events == ()


def test_the_step_each_component_last_died() -> None:
    run = sora(threshold=XI)
    set_gates(run, [0.25, 0.25, 2.0, 4.0])
    after_step(run, 0)
    assert run.method.details(run.layers) == {
        "revivals": 0,
        "last_died": {path: [0, 0, None, None] for path in run.layers},
    }
    run.layers["0"].d.data[0] = 2.0
    run.layers["0"].d.data[2] = 0.1
    after_step(run, 1)
    run.layers["0"].d.data[0] = 0.1
    after_step(run, 2)
    assert run.method.details(run.layers) == {
        "revivals": 1,
        "last_died": {"0": [2, 0, 1, None], "2": [0, 0, None, None]},
    }


def test_a_new_stage_forgets_the_lives_of_the_last_one() -> None:
    run = sora(threshold=XI)
    set_gates(run, [0.25, 0.25, 2.0, 4.0])
    after_step(run, 0)
    run.layers["0"].d.data[0] = 2.0
    after_step(run, 1)
    run.method.begin(run.layers, total_steps=20)
    assert run.method.summary(run.layers).events == ()
    run.layers["2"].d.data[:2] = 2.0  # dead when the stage began
    after_step(run, 0)
    assert run.method.details(run.layers) == {
        "revivals": 2,
        "last_died": {path: [None] * 4 for path in run.layers},
    }


@pytest.mark.parametrize("kind", ["A", "B", "d"])
def test_a_layer_without_a_gradient_is_named(kind: str) -> None:
    """Its gates would shrink at every step; with l1 they have a gradient even if it is unused."""
    run = sora(threshold=XI)
    set_gates(run, [2.0] * 4)
    give_gradients(run)
    getattr(run.layers["2"], kind).grad = None
    message = rf"sora: 2\.{kind} has no gradient .* out of the targets"
    with pytest.raises(MethodError, match=message):
        run.method.after_step(run.layers, StepInfo(0, 20, {"gates": LR}))
    assert gates(run).tolist() == [2.0] * 8


def test_frozen_gates_stay_as_they_are() -> None:
    run = sora(threshold=XI)
    set_gates(run, [0.25, 0.5, 0.75, 2.0])
    for layer in run.layers.values():
        layer.d.requires_grad_(False)
        after_step(run)
    assert run.layers["0"].d.tolist() == [0.25, 0.5, 0.75, 2.0]
    assert run.layers["2"].d.tolist() == [0.0, 0.0, 0.25, 1.5]
    assert run.method.summary(run.layers).live == 6
    groups = run.method.param_groups(run.layers, lr=LR, weight_decay=0.0)
    assert [len(group["params"]) for group in groups] == [4, 0]


def test_training_with_a_frozen_gate() -> None:
    run = sora(threshold=0.05)
    run.layers["0"].d.requires_grad_(False)
    frozen = run.layers["0"].d.clone()
    run.train(range(10))
    assert torch.equal(run.layers["0"].d, frozen)
    assert not torch.equal(run.layers["2"].d, frozen)
