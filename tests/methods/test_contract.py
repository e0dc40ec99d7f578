"""Every registered method keeps the contract, and the contract notices those that do not."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from methods.base import Layers, LowRankLinear, StepInfo, Summary
from methods.configs import LoraConfig
from methods.factors import LowRankFactors
from methods.lora import Lora
from methods.registry import create, method_class, method_names
from tests.methods import contract
from tests.methods.contract import Check, contract_cases

LOW_RANK = [name for name in method_names() if method_class(name).low_rank]


@pytest.mark.parametrize("name", LOW_RANK)
@pytest.mark.parametrize("check", contract_cases())
def test_registered_method(check: Check, name: str) -> None:
    check(partial(create, name))


class StartsOffZero(Lora):
    def wrap(self, linear: nn.Module, *, generator: torch.Generator) -> LowRankLinear:
        layer = super().wrap(linear, generator=generator)
        layer.B.data.fill_(0.1)
        return layer


class DrawsGlobally(Lora):
    def wrap(self, linear: nn.Module, *, generator: torch.Generator) -> LowRankLinear:
        layer = super().wrap(linear, generator=generator)
        nn.init.kaiming_uniform_(layer.A)
        return layer


class ForgetsALayer(Lora):
    def param_groups(self, layers: Layers, **options: Any) -> list[dict[str, Any]]:
        return super().param_groups(dict(list(layers.items())[1:]), **options)


class PenaltyPerLayer(Lora):
    def penalty(self, layers: Layers) -> Tensor:
        return torch.stack([layer.A.abs().sum() for layer in layers.values()])


class MovesTheBase(Lora):
    def after_step(self, layers: Layers, info: StepInfo) -> None:
        for layer in layers.values():
            layer.base.bias.data.add_(1e-3)


class KeepsItsCount(Lora):
    """Shrinks the update by a count that is not in its state."""

    count = 0

    def after_step(self, layers: Layers, info: StepInfo) -> None:
        self.count += 1
        for layer in layers.values():
            layer.B.data.mul_(1 - 0.01 * self.count)


class ForgetsTheScaling(Lora):
    def factors(self, layer: LowRankLinear) -> LowRankFactors:
        return LowRankFactors(layer.A.detach(), layer.B.detach())


class Miscounts(Lora):
    def summary(self, layers: Layers) -> Summary:
        return Summary(live=1, total=super().summary(layers).total)


@pytest.mark.parametrize(
    ("check", "method"),
    [
        (contract.output_is_bit_equal_at_injection, StartsOffZero),
        (contract.dropout_leaves_the_base_path_alone, StartsOffZero),
        (contract.same_seed_same_factors, DrawsGlobally),
        (contract.the_global_generator_is_not_used, DrawsGlobally),
        (contract.groups_hold_every_adapter_parameter_once, ForgetsALayer),
        (contract.penalty_is_none_or_a_scalar_of_the_adapters, PenaltyPerLayer),
        (contract.training_learns_and_leaves_the_base_alone, MovesTheBase),
        (contract.factors_are_the_layers_effect, ForgetsTheScaling),
        (contract.a_run_resumes_bit_equal, KeepsItsCount),
        (contract.summary_counts_components, Miscounts),
    ],
)
def test_a_broken_method_is_noticed(check: Check, method: type[Lora]) -> None:
    with pytest.raises(AssertionError):
        check(lambda **options: method(LoraConfig(**options)))
