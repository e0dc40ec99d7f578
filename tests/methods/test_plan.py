"""Plans: statements of methods about a run before it starts."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from methods.adalora import AdaLora
from methods.base import AdapterMethod, Layers, Plan
from methods.configs import AdaLoraConfig, LoraConfig, SoraConfig
from methods.errors import MethodError
from methods.inject import inject
from methods.lora import Lora
from methods.proximal import official_threshold_, soft_threshold_, threshold_reach
from methods.sora import Sora


def _layers(method: AdapterMethod) -> Layers:
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(4, 3))
    return inject(model, method, generator=torch.Generator().manual_seed(0))


def _plan(method: AdapterMethod, steps: int, rates: list[float] | None = None) -> Plan:
    by_group = {"factors": [1e-3] * steps, "gates": rates or [1e-3] * steps}
    return method.plan(_layers(method), total_steps=steps, learning_rates=by_group)


def test_one_phase_where_a_method_says_nothing() -> None:
    assert _plan(Lora(LoraConfig()), 30) == Plan(phases=(("training", 30),))


@pytest.mark.parametrize(
    ("t_init", "t_final", "steps"),
    [(0.1, 0.3, 100), (0, 0, 7), (0, 1, 2), (5, 1, 20), (5, 2, 20), (0.5, 0.4, 31)],
)
def test_adalora_phases_are_those_of_its_budget(t_init: float, t_final: float, steps: int) -> None:
    method = AdaLora(AdaLoraConfig(init_r=8, target_r=2, t_init=t_init, t_final=t_final))
    plan = _plan(method, steps)
    assert sum(n for _, n in plan.phases) == steps
    assert all(n >= 0 for _, n in plan.phases)
    (first, initial), (_, falling), (last, final) = plan.phases
    assert "24 triplets" in first
    assert "6 triplets" in last
    method.begin(_layers(method), total_steps=steps)
    schedule = method._begun()
    budgets = [schedule.budget(t) for t in range(steps)]
    assert budgets[:initial] == [24] * initial
    assert budgets[steps - final :] == [6] * final
    assert all(b < 24 for b in budgets[initial + 1 : initial + falling])


def test_adalora_plan_of_an_impossible_run_is_the_same_error_as_its_begin() -> None:
    method = AdaLora(AdaLoraConfig(t_init=50, t_final=50))
    with pytest.raises(MethodError, match="leave no step of 100"):
        _plan(method, 100)


def test_a_plan_changes_nothing() -> None:
    method = AdaLora(AdaLoraConfig())
    _plan(method, 100)
    with pytest.raises(MethodError, match="begin"):
        method.deliverable(_layers(method))


def test_sora_threshold_times_steps() -> None:
    plan = _plan(Sora(SoraConfig(threshold=3e-4)), 234)
    assert plan.phases == (("training with the threshold", 234),)
    assert "0.0003 x 234 = 0.0702" in plan.notes[0]
    assert "5.6% of N(0, 1) gates" in plan.notes[0]
    (warning,) = plan.warnings
    assert "method.threshold=0.0029" in warning


def test_sora_is_content_where_gates_are_within_reach() -> None:
    plan = _plan(Sora(SoraConfig(threshold=3e-4)), 6240)
    assert "93.9%" in plan.notes[0]
    assert plan.warnings == ()


@pytest.mark.parametrize("prox", ["paper", "official"])
@pytest.mark.parametrize("times_lr", [False, True])
def test_suggested_threshold_reaches_half_of_the_gates(prox: str, times_lr: bool) -> None:
    rates = [1e-2 * (1 - t / 50) for t in range(50)]
    options = {"prox": prox, "threshold_times_lr": times_lr}
    (warning,) = _plan(Sora(SoraConfig(threshold=1e-6, **options)), 50, rates).warnings
    better = float(warning.rpartition("method.threshold=")[2].split()[0])
    plan = _plan(Sora(SoraConfig(threshold=better, **options)), 50, rates)
    share = float(plan.notes[0].partition("alone brings ")[2].partition("%")[0])
    assert 45 < share < 55
    assert plan.warnings == ()


def test_a_threshold_on_equal_gates() -> None:
    """They all have the same way to zero."""
    plan = _plan(Sora(SoraConfig(threshold=1e-3, gate_init="ones")), 200)
    assert (
        "0.001 x 200 = 0.2: the threshold alone brings the gates 20.0% of the way from 1"
        in (plan.notes[0])
    )
    (warning,) = plan.warnings
    assert "only 20.0% of the way" in warning
    assert "method.threshold=0.005 reaches all of it" in warning
    assert "100.0%" in _plan(Sora(SoraConfig(threshold=0.1, gate_init="ones")), 200).notes[0]


def test_no_threshold_prunes_nothing() -> None:
    plan = _plan(Sora(SoraConfig(threshold=0)), 100)
    assert plan.phases == (("training, no threshold", 100),)
    assert "only 0.0%" in plan.warnings[0]


def test_threshold_times_learning_rate_takes_the_real_schedule() -> None:
    rates = [1e-3 * (1 - t / 10) for t in range(10)]
    plan = _plan(Sora(SoraConfig(threshold=100, threshold_times_lr=True)), 10, rates)
    share = math.erf(100 * sum(rates) / math.sqrt(2))
    assert f"{share:.1%}" in plan.notes[0]
    assert "100 x 0.0055 = 0.55" in plan.notes[0]


@pytest.mark.parametrize("prox", ["paper", "official"])
@pytest.mark.parametrize(
    "factors", [[1.0] * 6, [0.2, 0.6, 1.0, 0.75, 0.5, 0.25, 0.0], [1.0, 0.0, 0.5]]
)
def test_reach_is_how_far_the_operator_itself_clears(prox: str, factors: list[float]) -> None:
    shrink = official_threshold_ if prox == "official" else soft_threshold_
    gates = torch.linspace(0.001, 10, 10_000, dtype=torch.float64)
    start, cleared = gates.clone(), torch.zeros(10_000, dtype=torch.bool)
    for factor in factors:
        shrink([gates], factor)
        cleared |= gates == 0
    assert float(start[cleared].max()) == pytest.approx(threshold_reach(factors, prox), abs=0.003)
