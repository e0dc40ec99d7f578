"""AdaLoRA: its schedule, the budget kept exactly, its penalty, and its errors."""

from __future__ import annotations

import math

import pytest
import torch

from methods.base import StepInfo
from methods.errors import MethodError
from methods.registry import create
from methods.schedules import BudgetSchedule
from tests.methods.support import Run, start

LAST = StepInfo(19, 20, {"factors": 0.01})


def adalora(**options: object) -> Run:
    """A run of 20 steps over two layers; 6 triplets each, 4 left in all, unless told otherwise."""
    return start(create("adalora", **{"init_r": 6, "target_r": 2, **options}))


def live(run: Run) -> int:
    return run.method.summary(run.layers).live


def test_initial_values() -> None:
    layer = adalora(init_r=200, alpha=10, target_r=1).layers["0"]
    assert layer.scaling == 10 / (200 + 1e-5)
    assert not layer.d.any()
    assert layer.A.std().item() == pytest.approx(0.02, rel=0.1)
    assert layer.B.std().item() == pytest.approx(0.02, rel=0.1)


def test_penalty() -> None:
    run = adalora(orth_weight=0.3)
    distances = []
    for layer in run.layers.values():
        for gram in (layer.A @ layer.A.T, layer.B.T @ layer.B):
            distances.append((gram - torch.eye(6)).square().sum().sqrt().item())
    penalty = run.method.penalty(run.layers)
    assert penalty.item() == pytest.approx(0.3 * sum(distances) / 4, rel=1e-12)
    assert adalora(orth_weight=0).method.penalty(run.layers) is None


def test_penalty_of_orthonormal_factors_is_zero_and_has_a_gradient() -> None:
    run = adalora()
    for layer in run.layers.values():
        layer.A.data = torch.eye(*layer.A.shape, dtype=torch.float64)
        layer.B.data = torch.eye(*layer.B.shape, dtype=torch.float64)
    penalty = run.method.penalty(run.layers)
    penalty.backward()
    assert penalty == 0
    assert torch.isfinite(run.layers["0"].A.grad).all()


def test_budget_falls_by_a_cubic_between_its_ends() -> None:
    schedule = BudgetSchedule(
        start=100, target=20, t_init=10, t_final=20, total_steps=130, delta_t=5
    )
    budgets = [schedule.budget(step) for step in range(130)]
    assert set(budgets[:11]) == {100}
    assert budgets[60] == 20 + 80 // 8  # half way
    assert set(budgets[110:]) == {20}
    assert budgets == sorted(budgets, reverse=True)
    masked = [step for step in range(130) if schedule.applies(step)]
    assert masked == [*range(15, 111, 5), *range(111, 130)]


@pytest.mark.parametrize("t_final", [0, 1, 2, 0.3])
@pytest.mark.parametrize("delta_t", [1, 7, 100])
def test_any_schedule_ends_at_its_budget(t_final: float, delta_t: int) -> None:
    run = adalora(t_init=3, t_final=t_final, delta_t=delta_t)
    run.train(range(20))
    assert live(run) == 4
    assert run.method.summary(run.layers).events == ("budget of 4 triplets met: 4 left",)


def test_only_a_state_within_the_budget_is_a_result() -> None:
    run = adalora(t_init=3, t_final=5)
    run.train(range(10))
    assert not run.method.deliverable(run.layers)
    run.train(range(10, 20))
    assert run.method.deliverable(run.layers)


def test_a_missed_budget_is_said() -> None:
    run = adalora()
    run.train(range(20))
    run.layers["2"].d.data[:] = 0
    left = int(run.layers["0"].d.count_nonzero())
    assert run.method.summary(run.layers).events == (f"budget of 4 triplets MISSED: {left} left",)


def test_ties_keep_exactly_the_budget() -> None:
    """With every score the same, dropping all that are as low as the lowest would drop all."""
    run = adalora(orth_weight=0)
    for step in range(20):
        for layer in run.layers.values():
            for p in (layer.A, layer.B, layer.d):
                p.data.fill_(0.5)
                p.grad = torch.full_like(p, 0.1)
        run.method.after_step(run.layers, StepInfo(step, 20, {}))
    assert live(run) == 4


def test_the_most_important_triplets_are_kept() -> None:
    run = adalora()
    for step in range(20):
        for path, layer in run.layers.items():
            for p in (layer.A, layer.B, layer.d):
                p.data.fill_(0.5)
                p.grad = torch.zeros_like(p)
            layer.d.grad[:] = torch.arange(6.0) if path == "0" else torch.arange(6.0) + 0.5
        run.method.after_step(run.layers, StepInfo(step, 20, {}))
    assert run.layers["0"].d.ne(0).tolist() == [False] * 4 + [True] * 2
    assert run.layers["2"].d.ne(0).tolist() == [False] * 4 + [True] * 2


def test_scores_are_of_the_smoothed_sensitivity() -> None:
    """Two steps by hand: gradients g, then -g, on parameters that stay."""
    run = adalora(beta1=0.6, beta2=0.7)
    for step, sensitivity in enumerate([0.2, 0.4]):
        for layer in run.layers.values():
            for p in (layer.A, layer.B, layer.d):
                p.data.fill_(-2.0)
                p.grad = torch.full_like(p, sensitivity / 2)
        run.method.after_step(run.layers, StepInfo(step, 20, {}))
    mean_0, mean_1 = 0.4 * 0.2, 0.6 * 0.4 * 0.2 + 0.4 * 0.4
    uncertainty = 0.7 * 0.3 * (0.2 - mean_0) + 0.3 * (0.4 - mean_1)
    state = run.method.state_dict()
    assert state["importance.0.A"].mean().item() == pytest.approx(mean_1, rel=1e-12)
    assert state["uncertainty.2.d"].mean().item() == pytest.approx(uncertainty, rel=1e-12)


@pytest.mark.parametrize("target_r", [6, 0])
def test_target_may_be_the_initial_rank_or_nothing(target_r: int) -> None:
    run = adalora(target_r=target_r)
    run.train(range(20))
    assert live(run) == 2 * target_r


def test_budget_is_never_above_what_there_is() -> None:
    """Layers with fewer triplets than the configuration says, as after pruning."""
    run = adalora()
    small = start(create("adalora", init_r=1, target_r=1)).layers
    run.method.begin(small, total_steps=20)
    run.layers = small
    run.optimizer = torch.optim.SGD(run.method.param_groups(small, lr=0.1, weight_decay=0), lr=0.1)
    for layer in small.values():
        layer.d.data.fill_(1.0)
        layer.A.grad, layer.B.grad, layer.d.grad = (
            torch.ones_like(p) for p in (layer.A, layer.B, layer.d)
        )
    for step in range(20):
        run.method.after_step(small, StepInfo(step, 20, {}))
    assert live(run) == 2


@pytest.mark.parametrize(
    ("t_init", "t_final", "total_steps"), [(15, 5, 20), (0.5, 0.5, 20), (19, 0, 20), (0.1, 0.3, 1)]
)
def test_a_run_shorter_than_its_schedule(t_init: float, t_final: float, total_steps: int) -> None:
    method = create("adalora", t_init=t_init, t_final=t_final)
    resolved = [round(t * total_steps) if t < 1 else t for t in (t_init, t_final)]
    message = "t_init {} \\+ t_final {} leave no step of {}".format(*resolved, total_steps)
    with pytest.raises(MethodError, match=message):
        start(method, total_steps=total_steps)


def test_begin_must_come_first() -> None:
    run = adalora()
    fresh = create("adalora")
    with pytest.raises(MethodError, match=r"begin.* must come before step 0"):
        fresh.after_step(run.layers, LAST)


def test_a_missing_gradient_is_named() -> None:
    run = adalora()
    with pytest.raises(MethodError, match=r"adalora: 0\.A has no gradient .* out of the targets"):
        run.method.after_step(run.layers, StepInfo(0, 20, {}))


def test_a_frozen_factor_has_no_sensitivity() -> None:
    run = adalora()
    run.layers["2"].B.requires_grad_(False)
    with pytest.raises(MethodError, match=r"adalora: 2\.B has no gradient .* it is frozen"):
        run.train([0])


def test_state_is_not_changed_by_going_on() -> None:
    run = adalora()
    run.train(range(5))
    state = run.method.state_dict()
    before = {name: average.clone() for name, average in state.items()}
    run.train(range(5, 10))
    assert all(torch.equal(state[name], before[name]) for name in before)
    assert len(before) == 2 * 2 * 3 + 2  # averages x layers x parameters; the budget's start


def test_averages_stop_at_the_final_phase() -> None:
    run = adalora(t_final=5)
    run.train(range(15))
    before = run.method.state_dict()
    run.train(range(15, 20))
    after = run.method.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_target_above_the_initial_rank_is_refused() -> None:
    with pytest.raises(ValueError, match="target_r 7 is above init_r 6"):
        create("adalora", init_r=6, target_r=7)


def test_shares_are_of_the_run() -> None:
    run = start(create("adalora", init_r=6, target_r=1, t_init=0.25, t_final=0.5), total_steps=20)
    run.train(range(6))
    assert live(run) == 12  # untouched until step 5
    run.train([6])
    assert live(run) == math.floor(2 + 10 * (1 - 1 / 5) ** 3)


def test_a_later_stage_shrinks_what_is_left_and_holds_it_from_its_first_step() -> None:
    run = adalora()
    run.train(range(run.total_steps))
    total = run.method.summary(run.layers).total
    kept = run.method.summary(run.layers).live
    run.method.set_option("target_r", 1)
    run.method.begin(run.layers, total_steps=run.total_steps)
    live = []
    for step in range(run.total_steps):
        run.train([step])
        live.append(run.method.summary(run.layers).live)
    assert kept < total
    assert live[0] == kept
    assert live == sorted(live, reverse=True)
    assert live[-1] == len(run.layers)


def test_a_later_stage_resumes_with_its_own_budget() -> None:
    def second_stage() -> Run:
        run = adalora()
        run.train(range(run.total_steps))
        run.method.set_option("target_r", 1)
        run.method.begin(run.layers, total_steps=run.total_steps)
        return run

    straight, halted = second_stage(), second_stage()
    straight.train(range(straight.total_steps))
    halted.train(range(10))
    resumed = create("adalora", **halted.method.config.model_dump())
    resumed.begin(halted.layers, total_steps=halted.total_steps)
    resumed.load_state_dict(halted.method.state_dict())
    halted.method = resumed
    halted.train(range(10, halted.total_steps))
    for path, layer in straight.layers.items():
        assert torch.equal(layer.d, halted.layers[path].d)
