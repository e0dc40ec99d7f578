"""Every registered method keeps the contract, and the contract notices those that do not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from methods import contract
from methods.base import AdapterMethod, Layers, LowRankLinear, Plan, StepInfo, Summary
from methods.baselines import Baseline, Head
from methods.configs import LoraConfig
from methods.contract import BASELINE_CHECKS, CHECKS, Check, MethodFactory
from methods.errors import MethodError
from methods.factors import LowRankFactors
from methods.lora import Lora
from methods.proximal import soft_threshold_
from methods.registry import config_class, create, method_names
from methods.sora import Sora

REGISTERED: dict[str, MethodFactory] = {
    name: partial(create, name) for name in method_names() if config_class(name).low_rank
}
BASELINES: dict[str, MethodFactory] = {
    name: partial(create, name) for name in method_names() if name not in REGISTERED
}
BUSY: dict[str, MethodFactory] = {  # options under which components die and penalties count
    "rslora": partial(create, "lora", use_rslora=True),
    "adalora, rank 1": partial(create, "adalora", init_r=6, target_r=1, delta_t=3),
    "sora, l1": partial(create, "sora", threshold=0.05, l1=0.1, gate_lr=0.02),
    "sora, soft": partial(create, "sora", target_r=1.5, shrink="soft", gate_lr=0.02),
    "sora, hard": partial(create, "sora", target_r=1.5, gate_init="ones", gate_lr=0.02),
    "sora, official": partial(
        create, "sora", prox="official", threshold=4.0, threshold_times_lr=True
    ),
}


@pytest.mark.parametrize("make", [*REGISTERED.values(), *BUSY.values()], ids=[*REGISTERED, *BUSY])
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_registered_method(check: Check, make: MethodFactory) -> None:
    check(make)


@pytest.mark.parametrize("make", BASELINES.values(), ids=BASELINES)
@pytest.mark.parametrize("check", BASELINE_CHECKS, ids=lambda check: check.__name__)
def test_baseline(check: Check, make: MethodFactory) -> None:
    check(make)


class TrainsUnseen(Head):
    """Moves a frozen bias behind the optimiser's back."""

    def after_step(self, layers: Layers, info: StepInfo) -> None:
        assert self._model is not None
        self._model.get_parameter("0.bias").data.add_(0.1)


class LeavesOneOut(Head):
    """Chooses two parameters and gives the optimiser one."""

    def select(self, parameters: Mapping[str, nn.Parameter]) -> Iterable[str]:
        return parameters

    def param_groups(
        self, layers: Layers, *, lr: float, weight_decay: float
    ) -> list[dict[str, Any]]:
        return super().param_groups(layers, lr=lr, weight_decay=weight_decay)[:1]


@pytest.mark.parametrize(
    ("method", "check"),
    [
        (TrainsUnseen, contract.only_what_was_chosen_is_trained),
        (LeavesOneOut, contract.only_what_was_chosen_is_trained),
        (LeavesOneOut, contract.groups_hold_every_chosen_parameter_once),
    ],
)
def test_a_broken_baseline_is_noticed(method: type[Baseline], check: Check) -> None:
    with pytest.raises(AssertionError):
        check(lambda **options: method(method.config_class(**options)))


class StartsOffZero(Lora):
    def wrap(self, linear: nn.Module, *, generator: torch.Generator) -> LowRankLinear:
        layer = super().wrap(linear, generator=generator)
        layer.B.data.fill_(0.1)
        return layer


class DropsNothing(Lora):
    def wrap(self, linear: nn.Module, *, generator: torch.Generator) -> LowRankLinear:
        layer = super().wrap(linear, generator=generator)
        layer.dropout.p = 0.0
        return layer


class DropsTheBase(Lora):
    def wrap(self, linear: nn.Module, *, generator: torch.Generator) -> LowRankLinear:
        dropout = nn.Dropout(self.config.dropout)
        linear.register_forward_hook(lambda module, _, y: dropout(y) if module.training else y)
        return super().wrap(linear, generator=generator)


class DrawsGlobally(Lora):
    def wrap(self, linear: nn.Module, *, generator: torch.Generator) -> LowRankLinear:
        layer = super().wrap(linear, generator=generator)
        nn.init.kaiming_uniform_(layer.A)
        return layer


class ForgetsALayer(Lora):
    def param_groups(self, layers: Layers, **options: Any) -> list[dict[str, Any]]:
        return super().param_groups(dict(list(layers.items())[1:]), **options)


class SameNameTwice(Lora):
    def param_groups(self, layers: Layers, **options: Any) -> list[dict[str, Any]]:
        one = super().param_groups
        return [group for layer in layers.values() for group in one({"": layer}, **options)]


class PenaltyPerLayer(Lora):
    def penalty(self, layers: Layers) -> Tensor:
        return torch.stack([layer.A.abs().sum() for layer in layers.values()])


class PrunesInPenalty(Sora):
    """The hook before the step: gates shrink ahead of the optimiser, once per micro-batch."""

    def penalty(self, layers: Layers) -> Tensor | None:
        soft_threshold_([m.d.data for m in layers.values() if m.d is not None], 0.05)
        return super().penalty(layers)

    def after_step(self, layers: Layers, info: StepInfo) -> None:
        pass


class CountsPenalties(Lora):
    calls = 0

    def penalty(self, layers: Layers) -> Tensor | None:
        self.calls += 1
        return None

    def state_dict(self) -> dict[str, Tensor]:
        return {"calls": torch.tensor(self.calls)}


class PenaltyInTheOutput(Lora):
    """The layer's output holds something of the penalty, also in evaluation."""

    def wrap(self, linear: nn.Module, *, generator: torch.Generator) -> LowRankLinear:
        layer = super().wrap(linear, generator=generator)
        layer.register_forward_hook(lambda module, _, y: y + 0.01 * module.B.square().sum())
        return layer


class _ViewsItsInput(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, y: Tensor) -> Tensor:
        return y.view(y.shape)

    @staticmethod
    def backward(_ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class GivesAView(Lora):
    """The layer's output is a view that an autograd function made."""

    def wrap(self, linear: nn.Module, *, generator: torch.Generator) -> LowRankLinear:
        layer = super().wrap(linear, generator=generator)
        layer.register_forward_hook(lambda _module, _, y: _ViewsItsInput.apply(y))
        return layer


class MovesTheBase(Lora):
    def after_step(self, layers: Layers, info: StepInfo) -> None:
        for layer in layers.values():
            layer.base.bias.data.add_(1e-3)


class ForgetsTheScaling(Lora):
    def factors(self, layer: LowRankLinear) -> LowRankFactors:
        return LowRankFactors(layer.A.detach(), layer.B.detach())


class LosesTheLastTerm(Lora):
    def factors(self, layer: LowRankLinear) -> LowRankFactors:
        whole = super().factors(layer)
        return LowRankFactors(whole.A[:-1], whole.B[:, :-1])


class ReversesTheTerms(Lora):
    def factors(self, layer: LowRankLinear) -> LowRankFactors:
        whole = super().factors(layer)
        return LowRankFactors(whole.A.flip(0), whole.B.flip(1))


class SortsComponents(Lora):
    """The strongest component first, after each step: nothing changes but the order."""

    def after_step(self, layers: Layers, info: StepInfo) -> None:
        for layer in layers.values():
            order = torch.argsort(layer.B.detach().norm(dim=0), descending=True)
            layer.A.data, layer.B.data = layer.A.data[order], layer.B.data[:, order]


class RemovesAComponent(Lora):
    def after_step(self, layers: Layers, info: StepInfo) -> None:
        if info.step == 10:
            for layer in layers.values():
                layer.A, layer.B = nn.Parameter(layer.A[1:]), nn.Parameter(layer.B[:, 1:])


class TakesGradientsForGranted(Lora):
    def after_step(self, layers: Layers, info: StepInfo) -> None:
        for layer in layers.values():
            layer.A.grad.abs_()


class NamesNoParameter(Lora):
    def after_step(self, layers: Layers, info: StepInfo) -> None:
        if any(layer.A.grad is None for layer in layers.values()):
            raise MethodError("no gradients")


class NearlyZeroTerms(Lora):
    def factors(self, layer: LowRankLinear) -> LowRankFactors:
        whole = super().factors(layer)
        return LowRankFactors(whole.A, whole.B + 1e-30)


class NeedsComponents(Lora):
    def penalty(self, layers: Layers) -> Tensor:
        return torch.stack([layer.A.abs().mean() for layer in layers.values()]).sum()


class StartsStronger(Lora):
    def start_from(self, layers: Layers, updates: Mapping[str, LowRankFactors]) -> None:
        for path, layer in layers.items():
            layer.A.data, layer.B.data = updates[path].A, updates[path].B  # and the scaling


class Counts(Lora):
    """Shrinks the update by a count of its steps; its state is complete."""

    def __init__(self, config: LoraConfig) -> None:
        super().__init__(config)
        self.count = torch.tensor(0)

    def after_step(self, layers: Layers, info: StepInfo) -> None:
        self.count += 1
        for layer in layers.values():
            layer.B.data.mul_(1 - 0.01 * self.count.item())

    def state_dict(self) -> dict[str, Tensor]:
        return {"count": self.count.clone()}

    def load_state_dict(self, state: Any) -> None:
        self.count = state["count"].clone()


class SavesNoCount(Counts):
    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: Any) -> None:
        pass


class LoadsNoCount(Counts):
    def load_state_dict(self, state: Any) -> None:
        pass


class SavesANumber(Counts):
    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count.item()}


class SavesOneTensorTwice(Counts):
    def state_dict(self) -> dict[str, Tensor]:
        return {"count": self.count, "again": self.count}


class CountsItsBeginnings(Counts):
    def begin(self, layers: Layers, *, total_steps: int) -> None:
        self.count += 1


class MovesInBegin(Lora):
    def begin(self, layers: Layers, *, total_steps: int) -> None:
        for layer in layers.values():
            layer.A.data.fill_(0.1)


class Miscounts(Lora):
    def summary(self, layers: Layers) -> Summary:
        return Summary(live=1, total=super().summary(layers).total)


class MiscountsAlive(Lora):
    def alive(self, layers: Layers) -> Tensor:
        return torch.tensor(1)

    def summary(self, layers: Layers) -> Summary:
        total = sum(layer.rank for layer in layers.values())
        return Summary(live=total, total=total)


class PlansOneStep(Lora):
    def plan(self, layers: Layers, **options: Any) -> Plan:
        return Plan(phases=(("training", 1),))


class PlansByTraining(Counts):
    def plan(self, layers: Layers, **options: Any) -> Plan:
        self.after_step(layers, StepInfo(0, 1, {}))
        return super().plan(layers, **options)


class SetsAnything(Lora):
    def set_option(self, name: str, value: Any) -> None:
        self.config = self.config.model_copy(update={name: value})


class RefusesWithoutAList(Sora):
    def set_option(self, name: str, value: Any) -> None:
        try:
            super().set_option(name, value)
        except ValueError as error:
            raise type(error)(f"{name} may not vary") from error


BROKEN: list[tuple[Check, type[AdapterMethod], str]] = [
    (contract.output_is_bit_equal_at_injection, StartsOffZero, "changed at injection"),
    (contract.dropout_is_on_the_adapters_input_only, DropsNothing, "drops nothing"),
    (contract.dropout_is_on_the_adapters_input_only, DropsTheBase, "reaches the base"),
    (contract.same_seed_same_factors, DrawsGlobally, "one seed gave two"),
    (contract.the_global_generator_is_not_used, DrawsGlobally, "global generator"),
    (contract.groups_hold_every_adapter_parameter_once, ForgetsALayer, "is in 0 groups"),
    (contract.groups_hold_every_adapter_parameter_once, SameNameTwice, "share a name"),
    (contract.penalty_is_none_or_a_scalar_of_the_adapters, PenaltyPerLayer, "has shape"),
    (contract.penalty_changes_nothing, PrunesInPenalty, "penalty changed '0.d'"),
    (contract.penalty_changes_nothing, CountsPenalties, "penalty changed 'lora's calls'"),
    (contract.evaluation_is_the_base_plus_the_factors, PenaltyInTheOutput, "'0' is off"),
    (contract.training_learns_and_leaves_the_base_alone, MovesTheBase, "changed the base"),
    (contract.factors_are_the_layers_effect, ForgetsTheScaling, "are off by"),
    (contract.outputs_may_be_changed_in_place, GivesAView, "is a view and is being modified"),
    (contract.components_keep_their_order, LosesTheLastTerm, "8 components, its factors have 7"),
    (contract.components_keep_their_order, ReversesTheTerms, "is not component"),
    (contract.components_keep_their_order, SortsComponents, "moved component"),
    (contract.components_keep_their_order, RemovesAComponent, "step 10 changed the rank"),
    (contract.a_missing_gradient_is_named, TakesGradientsForGranted, "raise AttributeError"),
    (contract.a_missing_gradient_is_named, NamesNoParameter, "names no parameter"),
    (contract.dropping_zero_components_changes_nothing, NearlyZeroTerms, "its factors drop 0"),
    (contract.layers_of_rank_zero_work, NeedsComponents, "not finite"),
    (contract.a_finished_adapter_is_a_start_or_refused, StartsStronger, "does not begin with"),
    (contract.a_run_resumes_bit_equal, SavesNoCount, "other losses"),
    (contract.a_run_resumes_bit_equal, LoadsNoCount, "when it is loaded"),
    (contract.a_run_resumes_bit_equal, SavesANumber, "no tensor"),
    (contract.a_run_resumes_bit_equal, SavesOneTensorTwice, "does not fit a safetensors"),
    (contract.beginning_again_changes_nothing, CountsItsBeginnings, "a second begin changed"),
    (contract.beginning_again_changes_nothing, MovesInBegin, "begin changed '0.A'"),
    (contract.summary_counts_components, Miscounts, "summary counts 1 live components"),
    (contract.summary_counts_components, MiscountsAlive, "alive counts 1 live components"),
    (contract.a_plan_covers_the_run_and_changes_nothing, PlansOneStep, "add up to 1 steps"),
    (contract.a_plan_covers_the_run_and_changes_nothing, PlansByTraining, "plan changed"),
    (contract.only_variable_options_vary, SetsAnything, "but was changed"),
    (contract.only_variable_options_vary, RefusesWithoutAList, "does not name threshold"),
]


@pytest.mark.parametrize(
    ("check", "method", "message"), BROKEN, ids=[method.__name__ for _, method, _ in BROKEN]
)
def test_a_broken_method_is_noticed(
    check: Check, method: type[AdapterMethod], message: str
) -> None:
    with pytest.raises(AssertionError, match=message):
        check(lambda **options: method(method.config_class(**options)))


def test_a_complete_state_passes() -> None:
    """The method that the broken counters are made from is itself right."""
    contract.a_run_resumes_bit_equal(lambda **options: Counts(LoraConfig(**options)))


def test_every_check_has_a_broken_method() -> None:
    assert {check for check, _, _ in BROKEN} == set(CHECKS)
