"""The contract between an adapter method and the code that trains with it.

A method wraps linear layers in `LowRankLinear`, and is then called back at fixed moments:

    layers = inject(model, method, generator=g)      # calls method.wrap on every target
    method.start_from(layers, updates)                # only where training starts from an adapter
    optimizer = AdamW(method.param_groups(layers, lr=..., weight_decay=...))
    method.begin(layers, total_steps=T)               # once, before step 0
    each optimiser step t = 0 .. T-1:
        loss = task_loss + method.penalty(layers)     # training loss only, never in evaluation
        loss.backward(); clip; optimizer.step()
        method.after_step(layers, StepInfo(t, T, lrs, optimizer.state))  # gradients still there
        optimizer.zero_grad()
    {path: method.factors(layer)}                     # what is left: an ordinary LoRA

`sora_cli.train.callback.attach` does all this for a transformers Trainer. Hooks run once per
optimiser step, not per micro-batch, and not on a step that mixed precision skipped.

With several processes (DistributedDataParallel, or `fully_shard` after `inject`) each process does
all of it: what a method returns is the same on all, and may have been communicated (`penalty`,
`after_step`, `factors`, `summary`, `deliverable`, `state_dict`), so that none may leave one out.
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

__all__ = ["AdapterMethod", "Layers", "LowRankLinear", "Plan", "StepInfo", "Summary"]


@dataclass(frozen=True)
class StepInfo:
    """The optimiser step that was just taken."""

    step: int
    """0-based number of the optimiser step just taken."""
    total_steps: int
    """Optimiser steps of the whole run (or stage)."""
    learning_rates: Mapping[str, float]
    """Learning rate this step used, by the "name" of the parameter groups."""
    optimizer_state: Mapping[Tensor, dict[str, Any]] | None = None
    """`optimizer.state`: moments by parameter, to be turned with it where a method changes the
    basis of its factors (see `methods.basis`). None: whoever calls did not give it."""


@dataclass(frozen=True)
class Summary:
    """The number of rank-one components that are alive, and events to report to a person."""

    live: int
    total: int
    events: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """A forecast of what a method will do in a run, as far as that is known before it starts.

    Attributes:
        phases: name and optimiser steps of each, in order; their sum is the run.
        notes: figures that follow from the configuration.
        warnings: reasons why the method will have little or no effect in this run.
    """

    phases: tuple[tuple[str, int], ...]
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


class AdapterMethod(ABC):
    """A way to learn a low-rank update: subclasses need a name and `wrap`; the rest is optional."""

    name: ClassVar[str]
    """Its name in recipes."""
    config_class: ClassVar[type[MethodOptions]] = MethodConfig
    """Its options, and what is said of it: paper, low_rank, adapts_rank, variable_options."""

    def __init_subclass__(cls) -> None:
        """Refuse traits on the class itself, where earlier versions looked for them."""
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
        """Return the layer that replaces `linear`; at first its output must be bit-equal."""

    def param_groups(
        self, layers: Layers, *, lr: float, weight_decay: float
    ) -> list[dict[str, Any]]:
        """Return optimiser groups of the adapters' parameters; each has a unique "name"."""
        params = [p for layer in layers.values() for p in layer.parameters() if p.requires_grad]
        return [{"name": "factors", "params": params, "lr": lr, "weight_decay": weight_decay}]

    @torch.no_grad()
    def start_from(self, layers: Layers, updates: Mapping[str, LowRankFactors]) -> None:
        """Give every layer a finished update to train on from, of any rank, before `begin`.

        Raises:
            MethodError: the method's layers are more than factors of an update.
        """
        for path, layer in layers.items():
            if layer.d is not None:
                raise MethodError(
                    f"{self.name} cannot start from an adapter: its layers have gates, and a "
                    "finished adapter says nothing about those"
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
        """Return what a run of that many optimiser steps will do, for dry runs; changes nothing.

        Args:
            learning_rates: of every step, by the "name" of the method's parameter groups.

        Raises:
            MethodError: the run cannot work, as in `begin`.
        """
        return Plan(phases=(("training", total_steps),))

    def begin(self, layers: Layers, *, total_steps: int) -> None:  # noqa: B027 (optional)
        """Start a run, or a stage of a path, before its step 0; changes no parameter.

        A second call before that step gives the same. Resuming loads the state after it.

        Raises:
            MethodError: the run cannot work.
        """

    def take_over(self, layers: Layers, info: StepInfo) -> None:  # noqa: B027 (optional)
        """Do what is due after a step that was taken under other options, or by another method.

        Called once, after `begin` and `load_state_dict`, where a run continues a checkpoint of such
        a run: the layers, the state and the optimiser are as they were after that step.

        Raises:
            MethodError: it is too late for something this method would have done before.
        """

    def penalty(self, layers: Layers) -> Tensor | None:
        """Return what is added to the training loss of an optimiser step; None adds nothing."""
        return None

    def after_step(self, layers: Layers, info: StepInfo) -> None:  # noqa: B027 (optional)
        """Do the method's own step: after `optimizer.step()`, while the gradients are still there.

        Raises:
            MethodError: a parameter has no gradient that the method needs (see `gradients`).
        """

    def gradients(self, parameters: Mapping[str, Tensor]) -> list[Tensor]:
        """Return the gradients of parameters (by name), for `after_step`.

        Raises:
            MethodError: one has none, which would otherwise pass for a zero.
        """
        found = {name: p.grad for name, p in parameters.items() if p.grad is not None}
        for name in parameters:
            if name not in found:
                raise MethodError(
                    f"{self.name}: {name} has no gradient in its step: its layer is not used, it "
                    "is frozen, or gradients were cleared before the hook; leave layers that the "
                    "loss does not use out of the targets"
                )
        return list(found.values())

    def removed(self, keep: Mapping[str, Tensor]) -> None:
        """Follow the removal of dead components from the layers (`training.compact_every`).

        Args:
            keep: by layer path, (rank before,) bool: which components are still there, in order.

        Raises:
            MethodError: the method has a state that it cannot cut down.
        """
        if self.state_dict():
            raise MethodError(f"{self.name} cannot continue after dead components were removed")

    def state_dict(self) -> dict[str, Tensor]:
        """Return what `after_step` needs to continue in the middle of a run, without parameters."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        if state:
            raise MethodError(f"{self.name} keeps no state but was given {sorted(state)}")

    def factors(self, layer: LowRankLinear) -> LowRankFactors:
        """Return the layer's update as plain factors: `layer.rank` terms, in a fixed order."""
        return layer.factors()

    def summary(self, layers: Layers) -> Summary:
        """Count the live components and all components, and report events to a person."""
        total = sum(layer.rank for layer in layers.values())
        return Summary(live=int(self.alive(layers)), total=total)

    def alive(self, layers: Layers) -> Tensor:
        """Return the number of live components (), where the layers are: nobody waits for it."""
        gates = [layer.d.detach() for layer in layers.values() if layer.d is not None]
        ungated = sum(layer.rank for layer in layers.values() if layer.d is None)
        return ungated + joined(gates).count_nonzero() if gates else torch.tensor(ungated)

    def details(self, layers: Layers) -> dict[str, Any]:
        """Return what else belongs into a run's report, as plain data that JSON can hold."""
        return {}

    def deliverable(self, layers: Layers) -> bool:
        """Tell whether the adapter as it stands may be a run's result."""
        return True

    def set_option(self, name: str, value: Any) -> None:
        """Change an option between the stages of a path.

        Raises:
            MethodError: the option may not vary, or the value does not fit.
        """
        if name not in self.config.variable_options:
            may = ", ".join(self.config.variable_options) or "nothing"
            raise MethodError(f"{self.name}.{name} may not vary; what may: {may}")
        try:
            self.config = self.config_class(**{**self.config.model_dump(), name: value})
        except ValidationError as error:
            raise MethodError(f"{self.name}.{name}: {error.errors()[0]['msg']}") from error
