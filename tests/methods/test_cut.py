"""LoRA with a cut: the best approximation, its budgets, what stays dead, resumes and stages."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from methods.base import StepInfo
from methods.configs import CutConfig
from methods.errors import MethodError
from methods.registry import create
from tests.methods.support import Run, start

AT = 16  # of 20 steps, by default


def cut(**options: object) -> Run:
    """A run of 20 steps over two layers of 4 components: (12, 10) and (6, 12)."""
    return start(create("cut", **{"r_max": 4, "target_r": 1.5, **options}))


def dense(run: Run) -> dict[str, Tensor]:
    return {path: run.method.factors(layer).dense() for path, layer in run.layers.items()}


def at_the_cut(run: Run, step: int = AT) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Train to a cut; return the updates just before it and just after it."""
    run.train(range(step - 1))
    before: dict[str, Tensor] = {}
    run.train([step - 1], before_hook=lambda: before.update(dense(run)))
    return before, dense(run)


def pooled(updates: dict[str, Tensor]) -> Tensor:
    values = torch.cat([torch.linalg.svdvals(w)[:4] for w in updates.values()])
    return values.sort(descending=True).values


def truncated(w: Tensor, above: float) -> Tensor:
    u, s, vt = torch.linalg.svd(w, full_matrices=False)
    return (u * torch.where(s > above, s, 0.0)) @ vt


def alive(run: Run) -> list[int]:
    return [int((m.B != 0).any(dim=0).sum()) for m in run.layers.values()]


def test_until_the_cut_it_is_lora() -> None:
    run, lora = cut(), start(create("lora", r=4))
    assert run.train(range(AT - 1)) == lora.train(range(AT - 1))
    for path, layer in run.layers.items():
        assert torch.equal(layer.A, lora.layers[path].A)
        assert torch.equal(layer.B, lora.layers[path].B)
    assert not run.method.deliverable(run.layers)
    assert run.method.summary(run.layers).events == ()


def test_a_cut_is_the_best_approximation_of_all_updates_together() -> None:
    run = cut()
    before, after = at_the_cut(run)
    values = pooled(before)
    for path, w in before.items():
        best = truncated(w, float(values[2:4].mean()))
        torch.testing.assert_close(after[path], best, rtol=0, atol=1e-12)
    lost = sum(float((before[p] - after[p]).square().sum()) for p in before)
    assert lost == pytest.approx(float(values[3:].square().sum()), rel=1e-10)
    assert sum(alive(run)) == 3
    made = run.method.details(run.layers)["cut"]
    kept = float(values[:3].square().sum() / values.square().sum())
    assert made == {"after_steps": 16, "components": 3, "energy": pytest.approx(kept, abs=1e-8)}
    assert run.method.deliverable(run.layers)
    said = f"cut after 16 steps to 3 components, which hold {kept:.2%} of the update's squared norm"
    assert run.method.summary(run.layers).events == (said,)
    assert run.method.summary(run.layers).live == 3


def test_what_is_dead_stays_exactly_zero() -> None:
    run = cut(energy=0.5, target_r=None)
    before, _ = at_the_cut(run)
    values = pooled(before)
    count = int((values.square().cumsum(0) < 0.5 * values.square().sum()).sum()) + 1
    ranks = alive(run)
    assert sum(ranks) == count < 8
    kept = {path: layer.A.detach().clone() for path, layer in run.layers.items()}
    run.train(range(AT, 20))
    assert alive(run) == ranks
    for (path, layer), rank in zip(run.layers.items(), ranks, strict=True):
        assert not layer.A[rank:].any()
        assert not layer.B[:, rank:].any()
        for p in (layer.A, layer.B):
            assert run.optimizer.state[p]["step"] == 20
        moved = (layer.A[:rank] != kept[path][:rank]).any(dim=1)
        assert moved.all()  # the others are trained on
    assert run.method.summary(run.layers).live == count


def test_a_cut_to_parameters() -> None:
    run = cut(target_r=None, max_params=70)  # a component costs 22 and 18
    at_the_cut(run)
    first, second = alive(run)
    assert 22 * first + 18 * second <= 70 < 22 * (first + 1) + 18 * (second + 1)
    plan = run.method.plan(run.layers, total_steps=20, learning_rates={})
    assert plan.phases == (("all 8 components", 16), ("components within 70 parameters heal", 4))


def test_the_default_budget_is_15_percent() -> None:
    run = start(create("cut", r_max=10))
    plan = run.method.plan(run.layers, total_steps=20, learning_rates={})
    assert plan.phases[1] == ("3 components heal", 4)
    at_the_cut(run)
    assert sum(alive(run)) == 3


def test_moments_turn_as_the_gradients_do() -> None:
    """The first moments after the cut are those of all the run's gradients in the new basis."""
    run = cut(target_r=4)  # all are kept: nothing but the basis changes
    old: dict[str, tuple[Tensor, Tensor, Tensor]] = {}

    def remember() -> None:
        for path, m in run.layers.items():
            moment = run.optimizer.state[m.A]["exp_avg"]
            old[path] = (m.A.detach().clone(), m.B.detach().clone(), moment.clone())

    run.train(range(AT - 1))
    run.train([AT - 1], before_hook=remember)
    for path, layer in run.layers.items():
        a, b, moment = old[path]
        t = torch.linalg.lstsq(a.T, layer.A.detach().T).solution.T  # A' = T A
        assert torch.dist(t, torch.eye(4)) > 0.1
        assert torch.dist(layer.B.detach() @ t, b) < 1e-9
        now = run.optimizer.state[layer.A]["exp_avg"]
        torch.testing.assert_close(now, torch.linalg.inv(t).T @ moment, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("halted", [AT - 1, AT, AT + 2])
def test_a_run_resumes_bit_equal_before_and_after_the_cut(halted: int) -> None:
    whole, run, other = cut(), cut(), cut()
    losses = whole.train(range(20))
    first = run.train(range(halted))
    other.net.load_state_dict(run.net.state_dict())
    other.optimizer.load_state_dict(run.optimizer.state_dict())
    other.method.load_state_dict(run.method.state_dict())
    assert first + other.train(range(halted, 20)) == losses
    for name, tensor in whole.net.state_dict().items():
        assert torch.equal(tensor, other.net.state_dict()[name])
    assert other.method.details(other.layers) == whole.method.details(whole.layers)
    assert other.method.summary(other.layers) == whole.method.summary(whole.layers)


def test_the_state_of_plain_lora_is_that_before_any_cut() -> None:
    whole, lora, run = cut(), start(create("lora", r=4)), cut()
    whole.train(range(20))
    lora.train(range(10))
    run.net.load_state_dict(lora.net.state_dict())
    run.optimizer.load_state_dict(lora.optimizer.state_dict())
    run.method.load_state_dict(lora.method.state_dict())
    run.train(range(10, 20))
    for name, tensor in whole.net.state_dict().items():
        assert torch.equal(tensor, run.net.state_dict()[name])


def test_a_later_stage_goes_on_from_what_is_left() -> None:
    run = cut(r_max=8, target_r=4)
    run.train(range(20))
    assert run.method.summary(run.layers).live == 8
    state = run.method.state_dict()
    # a new process gives the state back before the stage begins
    run.method = create("cut", r_max=8, target_r=4)
    run.method.load_state_dict(state)
    run.method.set_option("target_r", 1)
    run.method.begin(run.layers, total_steps=20)
    assert not run.method.deliverable(run.layers)
    left = []
    for step in range(20):
        run.train([step])
        left.append(run.method.summary(run.layers).live)
        assert sum(alive(run)) == left[-1]
        if step in {4, 17}:  # and the stage is resumed in another
            state = run.method.state_dict()
            run.method = create("cut", r_max=8, target_r=1)
            run.method.begin(run.layers, total_steps=20)
            run.method.load_state_dict(state)
    assert left == [8] * 15 + [2] * 5
    run.method.set_option("target_r", 3)  # no way up
    run.method.begin(run.layers, total_steps=20)
    run.train(range(20))
    assert sum(alive(run)) == 2


def test_a_share_leaves_a_step_to_heal_in_the_shortest_run() -> None:
    run = start(create("cut"), begun=False)
    phases = run.method.plan(run.layers, total_steps=2, learning_rates={}).phases
    assert [steps for _, steps in phases] == [1, 1]


@pytest.mark.parametrize(
    ("options", "steps", "message"),
    [
        ({"cut_at": 20}, 20, "after 20 of 20 steps leaves no step"),
        ({"cut_at": 0.01}, 20, "after 0 of 20 steps leaves no step"),
        ({}, 1, "leaves no step"),
        ({}, 0, "a run of no steps has no cut"),
    ],
)
def test_a_schedule_that_does_not_fit(options: dict[str, object], steps: int, message: str) -> None:
    run = start(create("cut", **options), begun=False)
    with pytest.raises(MethodError, match=message):
        run.method.begin(run.layers, total_steps=steps)
    with pytest.raises(MethodError, match=message):
        run.method.plan(run.layers, total_steps=steps, learning_rates={})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_r": 1, "energy": 0.9}, "target_r and energy are both budgets"),
        ({"max_params": 1, "energy": 0.9}, "max_params and energy are both budgets"),
        ({"target_r": 9}, "target_r 9 is above r_max 8"),
        ({"energy": 0}, "greater than 0"),
        ({"cut_at": 0}, "greater than 0"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        CutConfig(**options)


def test_what_a_caller_owes() -> None:
    run = start(create("cut", r_max=4), begun=False)
    info = StepInfo(AT - 1, 20, {})
    with pytest.raises(MethodError, match="begin"):
        run.method.after_step(run.layers, info)
    run.method.begin(run.layers, total_steps=20)
    with pytest.raises(MethodError, match="lacks optimizer_state"):
        run.method.after_step(run.layers, info)


def test_a_cut_whose_step_mixed_precision_skips_is_made_after_the_next() -> None:
    run = cut()
    run.train(range(AT - 1))
    run.method.after_step = lambda *_: None  # type: ignore[method-assign]
    run.train([AT - 1])
    del run.method.after_step
    assert not run.method.deliverable(run.layers)
    run.train([AT])
    assert sum(alive(run)) == 3
    assert run.method.deliverable(run.layers)
    before = dense(run)
    run.train([AT + 1])
    assert run.method.details(run.layers)["cut"]["after_steps"] == AT + 1
    assert any(not torch.equal(before[path], w) for path, w in dense(run).items())
