"""The golden trajectories notice small mistakes: each mutated method here fails its comparison.

Some mistakes no recording can show, as no gate lands on a threshold and both budgets end on a
multiple of the interval; those fail a directed check instead.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from methods import proximal
from methods.adalora import AdaLora
from methods.base import AdapterMethod, Layers, LowRankLinear, StepInfo
from methods.configs import AdaLoraConfig, SoraConfig
from methods.contract.net import LR, first_difference, start
from methods.schedules import BudgetSchedule
from methods.sora import Sora
from tests.parity import test_goldens, trajectories

FULL = ("sora_official_full",)
THRESHOLD = ("sora_official_threshold", "sora_paper_threshold")
TIMES_LR = ("sora_official_threshold_times_lr",)
SMALL = ("adalora_small",)
BUDGET = (*SMALL, "adalora_decay")


class ShrinksBeforeTheStep(Sora):
    def penalty(self, layers: Layers) -> Tensor | None:
        shrink = (
            proximal.official_threshold_
            if self.config.prox == "official"
            else proximal.soft_threshold_
        )
        shrink(gates(layers), self.config.threshold)
        return super().penalty(layers)

    def after_step(self, layers: Layers, info: StepInfo) -> None:
        pass


class SkipsTheFirstStep(Sora):
    def after_step(self, layers: Layers, info: StepInfo) -> None:
        if info.step > 0:
            super().after_step(layers, info)


class UsesTheLastStepsRate(Sora):
    rates: Any = None

    def after_step(self, layers: Layers, info: StepInfo) -> None:
        late, self.rates = self.rates or info.learning_rates, info.learning_rates
        super().after_step(layers, replace(info, learning_rates=late))


class ThresholdOfTheOther(Sora):
    """The paper's operator where the authors' is asked for, and the other way round."""

    def after_step(self, layers: Layers, info: StepInfo) -> None:
        config = self.config
        other = "paper" if config.prox == "official" else "official"
        self.config = config.model_copy(update={"prox": other})
        super().after_step(layers, info)
        self.config = config


class SoraScalesByAlpha(Sora):
    def wrap(self, linear: nn.Module, *, generator: torch.Generator) -> LowRankLinear:
        layer = super().wrap(linear, generator=generator)
        layer.scaling = self.config.alpha
        return layer


class DecaysTheGates(Sora):
    def param_groups(
        self, layers: Layers, *, lr: float, weight_decay: float
    ) -> list[dict[str, Any]]:
        groups = super().param_groups(layers, lr=lr, weight_decay=weight_decay)
        return [{**group, "weight_decay": weight_decay} for group in groups]


class PenaltyPerLayer(Sora):
    def penalty(self, layers: Layers) -> Tensor | None:
        each = [super(PenaltyPerLayer, self).penalty({p: m}) for p, m in layers.items()]
        return torch.stack([p for p in each if p is not None]).sum()


class StepOffByOne(AdaLora):
    def after_step(self, layers: Layers, info: StepInfo) -> None:
        super().after_step(layers, replace(info, step=info.step + 1))


class StepOneTooLow(AdaLora):
    def after_step(self, layers: Layers, info: StepInfo) -> None:
        super().after_step(layers, replace(info, step=info.step - 1))


class MasksBeforeTheNextStep(AdaLora):
    """The mask comes with the next step's penalty, ahead of its backward pass."""

    last: StepInfo | None = None

    def penalty(self, layers: Layers) -> Tensor | None:
        if self.last is not None:
            with torch.no_grad():
                super().after_step(layers, self.last)
        return super().penalty(layers)

    def after_step(self, layers: Layers, info: StepInfo) -> None:
        self.last = info


class AdaLoraScalesExactly(AdaLora):
    """alpha / r, without the 1e-5 that the authors add to the rank."""

    def wrap(self, linear: nn.Module, *, generator: torch.Generator) -> LowRankLinear:
        layer = super().wrap(linear, generator=generator)
        layer.scaling = self.config.alpha / self.config.init_r
        return layer


class PenaltySummed(AdaLora):
    def penalty(self, layers: Layers) -> Tensor | None:
        mean = super().penalty(layers)
        return None if mean is None else 2 * len(layers) * mean


class ForgetsTheUncertainty(AdaLora):
    def _scores(self, path: str) -> Tensor:
        entry = {kind: self._importance[f"{path}.{kind}"] for kind in ("A", "B", "d")}
        return entry["d"] + entry["A"].mean(dim=1) + entry["B"].mean(dim=0)


class SumsTheScores(AdaLora):
    """A triplet's score with sums over its vectors, where the paper has means."""

    def _scores(self, path: str) -> Tensor:
        entry = {
            kind: self._importance[f"{path}.{kind}"] * self._uncertainty[f"{path}.{kind}"]
            for kind in ("A", "B", "d")
        }
        return entry["d"] + entry["A"].sum(dim=1) + entry["B"].sum(dim=0)


@dataclass(frozen=True)
class FallsBySquare(BudgetSchedule):
    def budget(self, step: int) -> int:
        if step <= self.t_init or self._is_final(step):
            return super().budget(step)
        left = 1 - (step - self.t_init) / (self.total_steps - self.t_final - self.t_init)
        return int(self.target + (self.start - self.target) * left**2)


class BudgetFallsBySquare(AdaLora):
    def _budget_schedule(self, layers: Layers, total_steps: int) -> BudgetSchedule:
        return FallsBySquare(**vars(super()._budget_schedule(layers, total_steps)))


MUTANTS: list[tuple[type[AdapterMethod], tuple[str, ...]]] = [
    (ShrinksBeforeTheStep, THRESHOLD),
    (SkipsTheFirstStep, THRESHOLD),
    (UsesTheLastStepsRate, TIMES_LR),
    (ThresholdOfTheOther, THRESHOLD),
    (SoraScalesByAlpha, THRESHOLD),
    (DecaysTheGates, FULL),
    (PenaltyPerLayer, FULL),
    (StepOffByOne, BUDGET),
    (StepOneTooLow, BUDGET),
    (MasksBeforeTheNextStep, SMALL),
    (AdaLoraScalesExactly, SMALL),
    (PenaltySummed, SMALL),
    (ForgetsTheUncertainty, SMALL),
    (SumsTheScores, SMALL),
    (BudgetFallsBySquare, SMALL),
]
CASES = [(mutant, name) for mutant, names in MUTANTS for name in names]


@pytest.mark.parametrize(("mutant", "name"), CASES, ids=[f"{m.__name__}-{n}" for m, n in CASES])
def test_a_mutant_leaves_the_golden_trajectory(
    monkeypatch: pytest.MonkeyPatch, mutant: type[AdapterMethod], name: str
) -> None:
    with pytest.raises(AssertionError):
        follow(monkeypatch, mutant, name)


@pytest.mark.parametrize(("method", "name"), [(Sora, THRESHOLD[0]), (AdaLora, BUDGET[0])])
def test_the_method_itself_follows(
    monkeypatch: pytest.MonkeyPatch, method: type[AdapterMethod], name: str
) -> None:
    """Mutants fail the comparison, and not because of the way they are put into it."""
    follow(monkeypatch, method, name)


def follow(monkeypatch: pytest.MonkeyPatch, method: type[AdapterMethod], name: str) -> None:
    """The comparison of test_goldens with another class behind the method's name."""
    monkeypatch.setattr(
        trajectories, "create", lambda _, **options: method(method.config_class(**options))
    )
    compare = (
        test_goldens.test_adalora_follows_the_reference
        if issubclass(method, AdaLora)
        else test_goldens.test_sora_follows_the_reference
    )
    compare(name, lambda *_: None)


class AveragesOneStepMore(AdaLora):
    """`<=` where averages are kept only while `step < total_steps - t_final`."""

    def after_step(self, layers: Layers, info: StepInfo) -> None:
        schedule = self._begun()
        if info.step == schedule.total_steps - schedule.t_final:
            with torch.no_grad():
                self._update_averages(layers)
        super().after_step(layers, info)


@dataclass(frozen=True)
class FallsAStepEarly(BudgetSchedule):
    """`<` where all triplets are left alone while `step <= t_init`."""

    def applies(self, step: int) -> bool:
        return super().applies(step) or (step == self.t_init and step % self.delta_t == 0)


@dataclass(frozen=True)
class FinalAStepEarly(BudgetSchedule):
    """`>=` where the final budget is for `step > total_steps - t_final`."""

    def _is_final(self, step: int) -> bool:
        return step >= self.total_steps - self.t_final


class ShrinksFromTheThreshold(Sora):
    """`|g| >= xi` shrinks, where the authors' code has `|g| > xi`."""

    def after_step(self, layers: Layers, info: StepInfo) -> None:
        xi = self.config.threshold
        for g in gates(layers):
            g.copy_(torch.where(g.abs() >= xi, g - g.sign() * xi, g))
            g.masked_fill_(g.abs() < xi, 0.0)


class ClearsUpToTheThreshold(Sora):
    """Every `|g| <= xi` becomes 0, where the authors' code has `|g| < xi`."""

    def after_step(self, layers: Layers, info: StepInfo) -> None:
        xi = self.config.threshold
        for g in gates(layers):
            g.copy_(torch.where(g.abs() > xi, g - g.sign() * xi, g))
            g.masked_fill_(g.abs() <= xi, 0.0)


def test_a_mutant_fails_at_the_thresholds_edge() -> None:
    check_edge(Sora)
    for mutant in (ShrinksFromTheThreshold, ClearsUpToTheThreshold):
        with pytest.raises(AssertionError):
            check_edge(mutant)


def test_a_mutant_goes_on_averaging() -> None:
    check_averages(AdaLora)
    with pytest.raises(AssertionError):
        check_averages(AveragesOneStepMore)


def test_a_mutated_schedule_is_not_the_authors() -> None:
    check_schedule(BudgetSchedule)
    for mutant in (FallsAStepEarly, FinalAStepEarly, FallsBySquare):
        with pytest.raises(AssertionError):
            check_schedule(mutant)


def check_edge(method: type[Sora]) -> None:
    """The authors' operator on gates exactly at xi and 2 xi: both end at xi."""
    run = start(method(SoraConfig(r_max=4, threshold=0.5, prox="official")))
    for d in gates(run.layers):
        d.copy_(torch.tensor([0.5, 1.0, -0.5, -1.0]))
    for layer in run.layers.values():
        for _, p in layer.named_factors():
            p.grad = torch.zeros_like(p)
    run.method.after_step(run.layers, StepInfo(0, 20, {"factors": LR, "gates": LR}))
    for d in gates(run.layers):
        assert d.tolist() == [0.5, 0.5, -0.5, -0.5]


def check_averages(method: type[AdaLora]) -> None:
    """The importance is averaged up to step T - t_final - 1 and not beyond."""
    run = start(method(AdaLoraConfig(t_final=5)))
    states = []
    for step in range(20):
        run.train([step])
        states.append(run.method.state_dict())
    changes = [step for step in range(1, 20) if first_difference(states[step - 1], states[step])]
    assert changes == list(range(1, 15))


def check_schedule(schedule: type[BudgetSchedule]) -> None:
    """The authors' `RankAllocator.schedule_threshold`, where 7 divides t_init but not T - t_final.

    Source: github.com/QingruZhang/AdaLoRA, loralib/adalora.py.
    """
    ours = schedule(start=100, target=20, t_init=14, t_final=20, total_steps=130, delta_t=7)
    for step in range(130):
        if step <= 14:
            expected = 100, False
        elif step > 130 - 20:
            expected = 20, True
        else:
            left = 1 - (step - 14) / (130 - 20 - 14)
            expected = int(20 + (100 - 20) * left**3), step % 7 == 0
        assert (ours.budget(step), ours.applies(step)) == expected, step


def gates(layers: Layers) -> list[Tensor]:
    return [layer.d.data for layer in layers.values() if layer.d is not None]
