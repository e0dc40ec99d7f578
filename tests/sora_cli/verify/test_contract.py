"""Every registered method in a Trainer, in files and merged; broken integrations are noticed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar
from unittest.mock import patch

import pytest
import torch
from pydantic import Field
from torch import Tensor, nn

from methods.adalora import AdaLora
from methods.base import AdapterMethod, Layers, LowRankLinear, StepInfo
from methods.configs import AdaLoraConfig, LoraConfig, SoraConfig
from methods.contract import CHECKS as PLAIN_CHECKS
from methods.contract import Check as PlainCheck
from methods.init import factor_options, kaiming_factors
from methods.lora import Lora
from methods.registry import config_class, create, method_names
from sora_cli.train import callback
from sora_cli.train.callback import MethodCallback
from sora_cli.verify import contract
from sora_cli.verify.contract import BASELINE_CHECKS, CHECKS, Attach, Check, MethodFactory


class HardConfig(SoraConfig):
    adapts_rank = True
    variable_options = ("cut",)

    cut: float = Field(0.3, ge=0, description="gates below it are set to zero after each step")


class Hard(AdapterMethod):
    """A method of somebody else's: hard thresholding of gates, as in the README."""

    name = "hard"
    config_class = HardConfig
    config: HardConfig

    def wrap(self, linear: nn.Module, *, generator: torch.Generator) -> LowRankLinear:
        c = self.config
        A, B = kaiming_factors(linear, c.r_max, generator)
        d = torch.randn(c.r_max, generator=generator).to(**factor_options(linear))
        return LowRankLinear(linear, A, B, d, scaling=c.alpha / c.r_max, dropout=c.dropout)

    @torch.no_grad()
    def after_step(self, layers: Layers, info: StepInfo) -> None:
        for layer in layers.values():
            assert layer.d is not None
            layer.d.masked_fill_(layer.d.abs() < self.config.cut, 0.0)


def hard(**options: Any) -> Hard:
    return Hard(HardConfig(**options))


METHODS: dict[str, MethodFactory] = {
    **{name: partial(create, name) for name in method_names() if config_class(name).low_rank},
    "sora, dying": partial(create, "sora", threshold=0.2, l1=0.1),
    "hard": hard,
}


@pytest.mark.parametrize("make", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_registered_method(check: Check, make: MethodFactory) -> None:
    check(make)


@pytest.mark.parametrize("name", [n for n in method_names() if not config_class(n).low_rank])
@pytest.mark.parametrize("check", BASELINE_CHECKS, ids=lambda check: check.__name__)
def test_baseline(check: Check, name: str) -> None:
    check(partial(create, name))


@pytest.mark.parametrize("check", PLAIN_CHECKS, ids=lambda check: check.__name__)
def test_the_method_of_somebody_elses_keeps_the_plain_contract(check: PlainCheck) -> None:
    check(hard)


class Silent(Lora):
    """Stands in for a method whose hook is not to be called."""


class Wrong(MethodCallback):
    """Calls the hook where it says, and not after the optimiser's step."""

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        method, self.method = self.method, Silent(LoraConfig())
        super().on_optimizer_step(args, state, control, **kwargs)
        self.method = method

    def call(self, state: Any) -> None:
        rates = {g["name"]: g["lr"] for g in self.trainer.optimizer.param_groups}
        self.method.after_step(self.layers, StepInfo(state.global_step, state.max_steps, rates))


class BeforeTheStep(Wrong):
    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.call(state)


class AfterTheGradientsAreGone(Wrong):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        state.global_step -= 1
        self.call(state)
        state.global_step += 1
        super().on_step_end(args, state, control, **kwargs)


class PerMicroBatch(MethodCallback):
    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        Wrong.call(self, state)  # type: ignore[arg-type]


class SavesNothing(MethodCallback):
    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        pass


class LoadsNothing(MethodCallback):
    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        with patch.object(self.method, "load_state_dict"):
            super().on_train_begin(args, state, control, **kwargs)


def using(cls: type[MethodCallback]) -> Attach:
    """`attach` with another callback."""

    def attach(trainer: Any, method: AdapterMethod, layers: Any) -> None:
        with patch.object(callback, "MethodCallback", cls):
            callback.attach(trainer, method, layers)

    return attach


def telling(**change: Callable[[StepInfo], Any]) -> Attach:
    """`attach`, but the hook is told something else."""

    def attach(trainer: Any, method: AdapterMethod, layers: Any) -> None:
        inner = method.after_step
        method.after_step = lambda layers, info: inner(  # type: ignore[method-assign]
            layers,
            dataclasses.replace(info, **{name: of(info) for name, of in change.items()}),
        )
        callback.attach(trainer, method, layers)

    return attach


def adding_the_penalty(*, training: bool) -> Attach:
    """`attach`, and the penalty in every loss of training (once more), or of evaluation."""

    def attach(trainer: Any, method: AdapterMethod, layers: Any) -> None:
        callback.attach(trainer, method, layers)
        inner = trainer.compute_loss

        def compute_loss(
            model: nn.Module, inputs: Any, return_outputs: bool = False, **options: Any
        ) -> Any:
            loss, outputs = inner(model, inputs, return_outputs=True, **options)
            penalty = method.penalty(layers)
            if model.training == training and penalty is not None:
                loss = loss + penalty
            return (loss, outputs) if return_outputs else loss

        trainer.compute_loss = compute_loss

    return attach


class PenaltyInTheOutput(Lora):
    def wrap(self, linear: nn.Module, *, generator: torch.Generator) -> LowRankLinear:
        layer = super().wrap(linear, generator=generator)
        layer.register_forward_hook(lambda module, _, y: y + module.B.square().sum())
        return layer


class SavesNoState(AdaLora):
    def state_dict(self) -> dict[str, Tensor]:
        return {}


class DoublesItsFactors(Lora):
    def factors(self, layer: LowRankLinear) -> Any:
        whole = super().factors(layer)
        return dataclasses.replace(whole, B=2 * whole.B)


def of(method: type[AdapterMethod]) -> MethodFactory:
    return lambda **options: method(method.config_class(**options))


class WrongExampleConfig(LoraConfig):
    EXAMPLE: ClassVar[dict[str, Any]] = {"rank": 3}


class WrongExample(Lora):
    config_class = WrongExampleConfig


class LongExampleConfig(AdaLoraConfig):
    EXAMPLE: ClassVar[dict[str, Any]] = {"t_init": 30, "t_final": 60}


class LongExample(AdaLora):
    config_class = LongExampleConfig


ADALORA = METHODS["adalora"]
HOOKS = contract.hooks_run_once_per_optimiser_step
TRAINING = contract.penalty_is_in_the_training_loss_once
EVALUATION = contract.penalty_is_not_in_the_evaluation_loss
RESUME = contract.a_checkpoint_resumes_bit_equal
LATE = telling(learning_rates=lambda info: {n: lr * 0.9 for n, lr in info.learning_rates.items()})
BROKEN: dict[str, tuple[Check, MethodFactory, Attach, str]] = {
    "before the step": (HOOKS, ADALORA, using(BeforeTheStep), "ran after 0 steps"),
    "gradients gone": (HOOKS, METHODS["lora"], using(AfterTheGradientsAreGone), "no gradient on"),
    "per micro-batch": (HOOKS, ADALORA, using(PerMicroBatch), "ran 14 times in 6"),
    "step + 1": (HOOKS, ADALORA, telling(step=lambda i: i.step + 1), "told it is step 1"),
    "total": (HOOKS, ADALORA, telling(total_steps=lambda i: i.total_steps + 1), "a run of 7 steps"),
    "rates": (HOOKS, ADALORA, LATE, "told of rates"),
    "penalty again": (TRAINING, ADALORA, adding_the_penalty(training=True), "penalty's 4 times"),
    "penalty in evaluation": (
        EVALUATION, ADALORA, adding_the_penalty(training=False), "the evaluation loss is",
    ),
    "penalty in the output": (
        EVALUATION, of(PenaltyInTheOutput), callback.attach, "the evaluation loss is",
    ),
    "no such option": (
        contract.the_example_trains, of(WrongExample), callback.attach, "EXAMPLE do not work",
    ),
    "for a long run only": (
        contract.the_example_trains, of(LongExample), callback.attach, "EXAMPLE do not work",
    ),
    "state not saved": (RESUME, of(SavesNoState), callback.attach, "ends with another"),
    "state not stored": (RESUME, ADALORA, using(SavesNothing), "missing in the checkpoint"),
    "state not loaded": (RESUME, ADALORA, using(LoadsNothing), "ends with another"),
    "factors": (
        contract.a_saved_adapter_loads_equal, of(DoublesItsFactors), callback.attach,
        "outputs are off",
    ),
    "merged factors": (
        contract.merging_repeats_to_the_byte, of(DoublesItsFactors), callback.attach,
        "merged model's outputs",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("check", "make", "attach", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_method_or_integration_is_noticed(
    check: Check, make: MethodFactory, attach: Attach, message: str
) -> None:
    with pytest.raises(AssertionError, match=message):
        check(make, attach=attach)


def test_a_merge_that_takes_an_adapter_twice_is_noticed() -> None:
    with (
        patch("sora_cli.merge.merge.check_not_merged"),
        pytest.raises(AssertionError, match="another reason"),
    ):
        contract.merging_twice_is_refused(METHODS["lora"])


def test_every_check_has_something_broken() -> None:
    noticed = {check for check, *_ in BROKEN.values()}
    assert noticed | {contract.merging_twice_is_refused} == set(CHECKS)
