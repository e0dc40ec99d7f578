"""The contract of adapter methods: the hooks that a training loop calls.

A method wraps linear layers in `LowRankLinear`; the training loop then calls its hooks in this
order:

    layers = inject(model, method, generator=g)      # calls method.wrap on every target
    method.start_from(layers, updates)                # only where training starts from an adapter
    optimizer = AdamW(method.param_groups(layers, lr=..., weight_decay=...))
    method.begin(layers, total_steps=T)               # once, before step 0
    each optimiser step t = 0 .. T-1:
        loss = task_loss + method.penalty(layers)     # training loss only, never in evaluation
        loss.backward(); clip; optimizer.step()
        method.after_step(layers, StepInfo(t, T, lrs, optimizer.state))  # gradients still there
        optimizer.zero_grad()
    {path: method.factors(layer)}                     # the result: an ordinary LoRA

`sora_cli.train.callback.attach` makes these calls for a transformers Trainer. Hooks run once per
optimiser step, not per micro-batch, and not on a step that mixed precision skipped.

With several processes (DistributedDataParallel, or `fully_shard` after `inject`) each process makes
every call and gets the same result. `penalty`, `after_step`, `factors`, `summary`, `deliverable`
and `state_dict` may communicate: a process that skips one of them leaves the others waiting.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from methods.configs import MethodConfig, MethodOptions
from methods.errors import MethodError
from methods.factors import LowRankFactors
from methods.layer import Layers, LowRankLinear
from methods.sharding import joined

__all__ = [
    "AdapterMethod",
    "Layers",
    "LowRankLinear",
    "Plan",
    "StepInfo",
    "Summary",
    "optimizer_groups",
]


@dataclass(frozen=True)
class StepInfo:
    """The optimiser step that was just taken."""

    step: int
    """0-based number of the step."""
    total_steps: int
    """Optimiser steps of the whole run (or stage)."""
    learning_rates: Mapping[str, float]
    """Learning rate of this step, by the "name" of the parameter group."""
    optimizer_state: Mapping[Tensor, dict[str, Any]] | None = None
    """`optimizer.state`: moments by parameter. A method that changes the basis of its factors turns
    the moments with them (see `methods.basis`). None: the caller did not pass it."""


@dataclass(frozen=True)
class Summary:
    """The number of rank-one components that are alive, and events to report to a person."""

    live: int
    total: int
    events: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """A forecast of a run, made from the configuration before training.

    Attributes:
        phases: name and optimiser steps of each phase, in order; the steps add up to the run.
        notes: figures that follow from the configuration.
        warnings: reasons to expect little or no effect from the method in this run.
    """

    phases: tuple[tuple[str, int], ...]
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


class AdapterMethod(ABC):
    """A way to learn a low-rank update: subclasses need a name and `wrap`; the rest is optional."""

    name: ClassVar[str]
    """Name of the method in recipes."""
    config_class: ClassVar[type[MethodOptions]] = MethodConfig
    """The method's options and traits: paper, low_rank, adapts_rank, variable_options."""
    averages: ClassVar[int] = 0
    """Tensors like each trained factor that the method keeps between steps (a memory forecast)."""

    def __init_subclass__(cls) -> None:
        """Refuse traits set on the method class; earlier versions read them from there."""
        for trait in MethodOptions.__class_vars__:
            if trait in vars(cls):
                raise MethodError(
                    f"{cls.__name__}.{trait} belongs in the method's options: "
                    f"move it to {cls.config_class.__name__}, or to a subclass of that"
                )

    def __init__(self, config: MethodOptions) -> None:
        if not isinstance(config, self.config_class):
            raise TypeError(f"{self.name} takes a {self.config_class.__name__}, not {type(config)}")
        self.config = config

    @abstractmethod
    def wrap(self, linear: nn.Module, *, generator: torch.Generator) -> LowRankLinear:
        """Return the layer that replaces `linear`; before training its output must be bit-equal."""

    def param_groups(
        self, layers: Layers, *, lr: float, weight_decay: float
    ) -> list[dict[str, Any]]:
        """Return the optimiser's groups of parameters; each has a unique "name" and an "lr"."""
        params = [p for layer in layers.values() for p in layer.parameters() if p.requires_grad]
        return [{"name": "factors", "params": params, "lr": lr, "weight_decay": weight_decay}]

    @torch.no_grad()
    def start_from(self, layers: Layers, updates: Mapping[str, LowRankFactors]) -> None:
        """Load a finished adapter, of any rank per layer, as the start of training, before `begin`.

        A method with gates refuses: a finished adapter has no gates to start from.
        """
        for path, layer in layers.items():
            if layer.d is not None:
                raise MethodError(
                    f"{self.name} cannot start from an adapter: its layers need gates, and a "
                    "finished adapter has none"
                )
            layer.A.data = updates[path].A.to(layer.A)
            layer.B.data = (updates[path].B / layer.scaling).to(layer.B)

    def plan(
        self,
        layers: Layers,
        *,
        total_steps: int,
        learning_rates: Mapping[str, Sequence[float]],
    ) -> Plan:
        """Forecast a run of `total_steps` optimiser steps, for dry runs; changes nothing.

        Refuses the same runs as `begin`.

        Args:
            learning_rates: of every step, by the "name" of the method's parameter groups.
        """
        return Plan(phases=(("training", total_steps),))

    def begin(self, layers: Layers, *, total_steps: int) -> None:  # noqa: B027 (optional)
        """Start a run, or a stage of a path, before its step 0; changes no parameter.

        A second call before step 0 changes nothing. A resumed run calls `load_state_dict` after
        `begin`. Raises `MethodError` for a schedule that does not fit the run.
        """

    def take_over(self, layers: Layers, info: StepInfo) -> None:  # noqa: B027 (optional)
        """Continue a run that was trained under other options, or by another method, until now.

        Called once, after `begin` and `load_state_dict`: the layers, the state and the optimiser
        are as they were after the step in `info`. A method makes up here for its own action after
        that step, and raises `MethodError` if an earlier action was missed.
        """

    def penalty(self, layers: Layers) -> Tensor | None:
        """Return the term added to the training loss of an optimiser step; None adds nothing."""
        return None

    def after_step(self, layers: Layers, info: StepInfo) -> None:  # noqa: B027 (optional)
        """Do the method's own step: after `optimizer.step()`, while the gradients still exist.

        A method that reads gradients gets them from `gradients`, which refuses missing ones.
        """

    def gradients(self, parameters: Mapping[str, Tensor]) -> list[Tensor]:
        """Return the gradients of parameters (by name), for `after_step`.

        A missing gradient is an error: taken for zero, it would make the layer look unimportant.
        """
        gradients = {name: p.grad for name, p in parameters.items() if p.grad is not None}
        for name in parameters:
            if name not in gradients:
                raise MethodError(
                    f"{self.name}: {name} has no gradient in this step: its layer is unused, it is "
                    "frozen, or gradients were cleared before the hook; leave layers that the "
                    "loss does not use out of the targets"
                )
        return list(gradients.values())

    def removed(self, keep: Mapping[str, Tensor]) -> None:
        """Shrink the method's state after dead components were removed (`training.compact_every`).

        The default refuses if the method has any state, since it cannot know the state's layout.

        Args:
            keep: by layer path, (rank before,) bool: True for components that are still present.
        """
        if self.state_dict():
            raise MethodError(f"{self.name} cannot continue after dead components were removed")

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state with which `after_step` continues a resumed run; no parameters."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the state returned by `state_dict`."""
        if state:
            raise MethodError(f"{self.name} keeps no state but was given {sorted(state)}")

    def factors(self, layer: LowRankLinear) -> LowRankFactors:
        """Return the layer's update as plain factors: `layer.rank` components in a fixed order."""
        return layer.factors()

    def summary(self, layers: Layers) -> Summary:
        """Count live and all components, and list events to report to a person."""
        total = sum(layer.rank for layer in layers.values())
        return Summary(live=int(self.alive(layers)), total=total)

    def alive(self, layers: Layers) -> Tensor:
        """Return the number of live components (), on the layers' device.

        It stays a tensor so that a GPU is not waited for in every step.
        """
        gates = [layer.d.detach() for layer in layers.values() if layer.d is not None]
        ungated = sum(layer.rank for layer in layers.values() if layer.d is None)
        return ungated + joined(gates).count_nonzero() if gates else torch.tensor(ungated)

    def details(self, layers: Layers) -> dict[str, Any]:
        """Return further facts for a run's report, as plain data that JSON can hold."""
        return {}

    def deliverable(self, layers: Layers) -> bool:
        """Return True if the present adapter may be a run's result."""
        return True

    def set_option(self, name: str, value: Any) -> None:
        """Change one of the `variable_options` between the stages of a path."""
        if name not in self.config.variable_options:
            may = ", ".join(self.config.variable_options) or "nothing"
            raise MethodError(f"{self.name}.{name} cannot vary; options that can: {may}")
        try:
            self.config = self.config_class(**{**self.config.model_dump(), name: value})
        except ValidationError as error:
            # pydantic puts "Value error, " before the message of a ValueError
            reason = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise MethodError(f"{self.name}.{name}: {reason}") from error


def optimizer_groups(
    method: AdapterMethod, layers: Layers, *, lr: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Return the method's parameter groups, checked: each needs a "name" of its own and an "lr".

    Learning rates are reported, and passed to `after_step`, by these names.
    """
    groups = method.param_groups(layers, lr=lr, weight_decay=weight_decay)
    names = [group.get("name") for group in groups]
    fault = None
    if None in names:
        fault = 'a group without a "name"'
    elif len(set(names)) < len(names):
        fault = f"groups that share a name: {', '.join(map(str, names))}"
    elif not all("lr" in group for group in groups):
        fault = 'a group without an "lr"'
    if fault is not None:
        raise MethodError(
            f"{type(method).__name__}.param_groups returns {fault}; a group is a dict such as "
            '{"name": "factors", "params": [...], "lr": lr, "weight_decay": weight_decay}'
        )
    return groups
