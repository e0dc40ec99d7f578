"""SoRA with a budget: xi of every step, what is left, its state, and what does not go with it."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from methods.base import StepInfo
from methods.configs import SoraConfig
from methods.contract.net import STEPS
from methods.errors import MethodError
from methods.registry import create
from tests.methods.support import LR, Run, start

SHRINKS = ["soft", "hard"]


def sora(**options: object) -> Run:
    """A run of STEPS steps over two layers of 4 components, of which 3 in all are to be left."""
    return start(create("sora", **{"r_max": 4, "target_r": 1.5, **options}))


def gates(run: Run) -> Tensor:
    return torch.cat([layer.d.detach() for layer in run.layers.values()])


def set_gates(run: Run, values: list[float]) -> None:
    """Gates of both layers, one after the other."""
    for layer, part in zip(run.layers.values(), torch.tensor(values).split(4), strict=True):
        layer.d.data = part.to(layer.d)


def after_step(run: Run, step: int) -> None:
    for layer in run.layers.values():
        for _, p in layer.named_factors():
            p.grad = torch.zeros_like(p)
    run.method.after_step(run.layers, StepInfo(step, STEPS, {"factors": LR, "gates": LR}))


GATES = [0.25, -0.5, 0.75, -1.0, 1.25, -1.5, 1.75, -2.0]


@pytest.mark.parametrize(
    ("shrink", "left"),
    [("soft", [0] * 5 + [-0.25, 0.5, -0.75]), ("hard", [0] * 5 + [-1.5, 1.75, -2.0])],
)
def test_the_next_gate_after_the_budget_is_the_threshold(shrink: str, left: list[float]) -> None:
    run = sora(shrink=shrink)
    set_gates(run, GATES)
    after_step(run, STEPS - 1)
    assert gates(run).tolist() == left
    assert run.method.details(run.layers)["xi"] == [0.0] * (STEPS - 1) + [1.25]


def test_before_the_budget_falls_nothing_is_thresholded() -> None:
    run = sora(t_init=4)
    set_gates(run, GATES)
    for step in range(5):
        after_step(run, step)
    assert gates(run).tolist() == GATES
    after_step(run, 5)
    assert gates(run).count_nonzero() < 8


@pytest.mark.parametrize("shrink", SHRINKS)
@pytest.mark.parametrize("gate_init", ["normal", "ones"])
def test_the_budget_is_kept_at_every_step(shrink: str, gate_init: str) -> None:
    run = sora(shrink=shrink, gate_init=gate_init, gate_lr=0.05)
    schedule = run.method._budget_schedule(run.layers, STEPS)
    alive = []
    for step in range(STEPS):
        run.train([step])
        alive.append(int(gates(run).count_nonzero()))
        assert alive[-1] <= schedule.budget(step)
    assert alive[0] == 8
    assert alive[-1] == 3
    summary = run.method.summary(run.layers)
    assert summary.events[0] == "budget of 3 components met: 3 left"
    details = run.method.details(run.layers)
    assert len(details["xi"]) == STEPS
    assert details["xi_sum"] == pytest.approx(sum(details["xi"]))
    assert details["xi"][: schedule.initial_steps] == [0.0] * schedule.initial_steps


def test_the_budget_falls_between_its_two_ends() -> None:
    schedule = sora(t_init=0.1, t_final=0.2).method._budget_schedule(sora().layers, 100)
    budgets = [schedule.budget(step) for step in range(100)]
    assert budgets[:11] == [8] * 11
    assert budgets[81:] == [3] * 19
    assert all(one >= other for one, other in pairwise(budgets))
    assert budgets[45] == int(3 + 5 * 0.5**3)  # half of the way


def test_a_gate_that_comes_back_takes_anothers_place() -> None:
    run = sora(shrink="hard")
    set_gates(run, GATES)
    after_step(run, STEPS - 2)
    run.layers["0"].d.data[0] = 3.0
    after_step(run, STEPS - 1)
    assert gates(run).tolist() == [3.0, 0, 0, 0, 0, 0, 1.75, -2.0]
    assert run.method.summary(run.layers).events == (
        "budget of 3 components met: 3 left",
        "1 times a gate at zero came back",
    )


def test_ties_leave_fewer() -> None:
    run = sora(shrink="soft")
    set_gates(run, [1.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 2.0])
    after_step(run, STEPS - 1)
    assert gates(run).tolist() == [0.0] * 7 + [1.0]
    assert run.method.deliverable(run.layers)
    assert run.method.summary(run.layers).events == ("budget of 3 components met: 1 left",)


def test_only_a_met_budget_is_deliverable() -> None:
    run = sora()
    assert not run.method.deliverable(run.layers)
    assert run.method.summary(run.layers).events == ("budget of 3 components MISSED: 8 left",)
    set_gates(run, [1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0])
    assert not run.method.deliverable(run.layers)
    set_gates(run, [1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    assert run.method.deliverable(run.layers)
    assert not create("sora", target_r=1).deliverable(run.layers)  # not begun
    assert create("sora").deliverable(run.layers)  # a threshold promises nothing


def test_nothing_is_left_of_a_budget_of_nothing() -> None:
    run = sora(target_r=0)
    after_step(run, STEPS - 1)
    said = run.method.summary(run.layers).events
    assert said[-1] == "every gate is zero: the adapter does nothing; raise target_r"


def test_frozen_gates_take_their_part_of_the_budget() -> None:
    run = sora(shrink="hard")
    set_gates(run, [0.0, 5.0, 0.0, 0.25, 1.25, -1.5, 1.75, -2.0])
    run.layers["0"].d.requires_grad_(False)
    after_step(run, STEPS - 1)
    assert gates(run).tolist() == [0.0, 5.0, 0.0, 0.25, 0, 0, 0, -2.0]
    run.layers["2"].d.requires_grad_(False)
    after_step(run, STEPS - 1)
    assert gates(run).count_nonzero() == 3


def test_a_later_stage_starts_its_budget_at_what_is_left() -> None:
    run = sora(shrink="hard")
    run.train(range(STEPS))
    run.method.set_option("target_r", 0.5)
    run.method.begin(run.layers, total_steps=STEPS)
    assert run.method.details(run.layers)["xi"] == [0.0] * STEPS
    for step in range(STEPS):
        run.train([step])
        assert gates(run).count_nonzero() <= 3  # from the first step on
    assert gates(run).count_nonzero() == 1
    assert run.method.config.target_r == 0.5


def test_a_stage_resumes_with_the_budget_it_began_with() -> None:
    whole, halted = (sora(shrink="hard") for _ in range(2))
    for run in (whole, halted):
        set_gates(run, [0.0, 0.0, 1.0, -1.0, 1.25, -1.5, 1.75, -2.0])
        run.method.begin(run.layers, total_steps=STEPS)  # 6 are left of the stage before
    whole.train(range(STEPS))
    halted.train(range(5))
    assert gates(halted).count_nonzero() == 4  # a budget that began with these would be another
    state = halted.method.state_dict()
    halted.method = create("sora", r_max=4, target_r=2, shrink="hard")
    halted.method.load_state_dict(state)
    halted.method.begin(halted.layers, total_steps=STEPS)
    halted.method.load_state_dict(state)
    assert halted.method.config == whole.method.config
    halted.train(range(5, STEPS))
    assert torch.equal(gates(halted), gates(whole))
    assert halted.method.details(halted.layers) == whole.method.details(whole.layers)


def test_removed_components_count_as_dead() -> None:
    run = sora(shrink="hard")
    set_gates(run, [0.0, 0.0, 1.0, -1.0, 1.25, -1.5, 1.75, -2.0])
    after_step(run, STEPS - 2)
    keep = {path: layer.d.detach().ne(0) for path, layer in run.layers.items()}
    for layer in run.layers.values():
        layer.d.data = layer.d.data[layer.d.data != 0]
        layer.A.data, layer.B.data = layer.A.data[: layer.rank], layer.B.data[:, : layer.rank]
    run.method.removed(keep)
    assert gates(run).numel() == 3
    run.layers["2"].d.data[0] = 0.125
    after_step(run, STEPS - 1)
    assert gates(run).tolist() == [0.125, 1.75, -2.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_r": 1, "threshold": 1e-3}, "both set the number of gates"),
        ({"threshold": None}, "give one of the two"),
        ({"target_r": None, "threshold": None}, "give one of the two"),
        ({"target_r": 9}, "target_r 9 is above r_max 8"),
        ({"target_r": 1, "prox": "official"}, "use paper"),
        ({"target_r": 1, "threshold_times_lr": True}, "threshold_times_lr needs a threshold"),
        ({"shrink": "hard"}, "needs a budget"),
        ({"target_r": -1}, "greater than or equal to 0"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SoraConfig(**options)


def test_a_configuration_written_out_in_full_is_the_same_one() -> None:
    for config in (SoraConfig(), SoraConfig(target_r=1.2), SoraConfig(target_r=None)):
        assert SoraConfig(**config.model_dump()) == config
    assert SoraConfig().threshold == 3e-4
    assert SoraConfig().shrink == "soft"
    assert SoraConfig(target_r=1.2).threshold is None
    assert SoraConfig(target_r=1.2).shrink == "hard"


def test_the_threshold_cannot_vary_where_a_budget_is_given() -> None:
    method = create("sora", target_r=1)
    with pytest.raises(MethodError, match="both set the number of gates"):
        method.set_option("threshold", 1e-3)
    method = create("sora")
    with pytest.raises(MethodError, match="both set the number of gates"):
        method.set_option("target_r", 1)


def test_a_run_too_short_for_its_phases() -> None:
    run = start(create("sora", target_r=1, t_init=50, t_final=50), begun=False)
    with pytest.raises(MethodError, match=r"sora: t_init 50 \+ t_final 50 leave no step of 100"):
        run.method.begin(run.layers, total_steps=100)


def test_begin_comes_first() -> None:
    run = start(create("sora", r_max=4, target_r=1), begun=False)
    with pytest.raises(MethodError, match="begin"):
        after_step(run, 0)


def test_the_plan_shows_the_phases() -> None:
    run = sora(t_init=0.25, t_final=0.25)
    plan = run.method.plan(run.layers, total_steps=40, learning_rates={})
    assert plan.phases == (
        ("initial budget, 8 components", 11),
        ("budget falls to 3 components", 20),
        ("final budget, 3 components", 9),
    )
