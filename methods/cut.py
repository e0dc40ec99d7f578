"""LoRA trained at a generous rank, cut to a budget over all layers, and healed to the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from methods.base import AdapterMethod, Layers, LowRankLinear, Plan, StepInfo, Summary
from methods.basis import singular_basis, turn
from methods.budgets import costs_of
from methods.configs import CutConfig
from methods.errors import MethodError
from methods.init import kaiming_factors
from methods.schedules import steps_of


@dataclass(frozen=True)
class CutRecord:
    """Record of a cut.

    Attributes:
        after_steps: optimiser steps taken before the cut.
        components: number left after the cut, over all layers.
        energy: share of all squared singular values that was kept.
    """

    after_steps: int
    components: int
    energy: float


class Cut(AdapterMethod):
    """LoRA that is cut to a budget during training, then healed.

    `dW = alpha / r_max * B A` is trained like LoRA (Hu et al. 2021, arXiv 2106.09685). After
    `cut_at` of the steps every layer is turned to its singular basis, `A = S^1/2 V^T` and
    `B = U S^1/2`. Of all layers together only the largest singular values within the budget are
    kept (the rule of PARA, arXiv 2604.27796). The other components become exactly zero, for good,
    and the remaining steps train the kept components (LoRA-Squeeze, arXiv 2602.10993, reports that
    this gives better results than training at the small rank).
    """

    name = "cut"
    config_class = CutConfig
    config: CutConfig

    def __init__(self, config: CutConfig) -> None:
        super().__init__(config)
        self._due: int | None = None  # steps before the cut
        self._left: list[int] = []  # components of each layer after the last cut; empty before it
        self._record: CutRecord | None = None  # in this run or stage

    def wrap(self, linear: nn.Module, *, generator: torch.Generator) -> LowRankLinear:
        """Wrap a layer like LoRA: A Kaiming-uniform, B zero, no gates."""
        c = self.config
        A, B = kaiming_factors(linear, c.r_max, generator)
        return LowRankLinear(linear, A, B, scaling=c.alpha / c.r_max, dropout=c.dropout)

    def plan(
        self,
        layers: Layers,
        *,
        total_steps: int,
        learning_rates: Mapping[str, Sequence[float]],
    ) -> Plan:
        """Return the steps before and after the cut."""
        before = self._steps_before(total_steps)
        full = sum(layer.rank for layer in layers.values())
        healing = (f"{self._goal(layers)} heal", total_steps - before)
        return Plan(((f"all {full:,} components", before), healing))

    def begin(self, layers: Layers, *, total_steps: int) -> None:
        """Compute the step of the cut; a later stage of a path begins at the ranks already cut."""
        self._due, self._record = self._steps_before(total_steps), None

    def _steps_before(self, total_steps: int) -> int:
        if total_steps == 0:
            raise MethodError(
                "cut: a run of no steps has no cut: name lora, which keeps an adapter as it is"
            )
        before = steps_of(self.config.cut_at, total_steps)
        if self.config.cut_at < 1:
            before = min(before, total_steps - 1)  # 0.8 of two steps, rounded, would be both
        if not 1 <= before < total_steps:
            raise MethodError(
                f"cut: a cut after {before} of {total_steps} steps leaves no step before or after "
                "it: shares below 1, such as cut_at 0.8, fit any run of two steps or more"
            )
        return before

    @torch.no_grad()
    def after_step(self, layers: Layers, info: StepInfo) -> None:
        """Cut if due; if mixed precision skipped the step of the cut, cut after the next step."""
        if self._record is not None or info.step + 1 < self._begun():
            return
        if info.optimizer_state is None:
            raise MethodError("cut: StepInfo lacks optimizer_state: its moments turn with A and B")
        bases = {path: singular_basis(layer) for path, layer in layers.items()}
        # singular values of dW: those of B A times the scaling
        values = {path: layers[path].scaling * basis.S.cpu() for path, basis in bases.items()}
        ranks = self._ranks(layers, values)
        for path, layer in layers.items():
            turn(layer, bases[path], ranks[path], info.optimizer_state)
        kept = {path: s[: ranks[path]] for path, s in values.items()}
        self._left = [int(s.count_nonzero()) for s in kept.values()]
        energy = round(_energy(kept) / (_energy(values) or 1), 9)  # 1: an update that is still zero
        self._record = CutRecord(info.step + 1, sum(self._left), energy)

    def take_over(self, layers: Layers, info: StepInfo) -> None:
        """Cut if due after this step; a cut that was due earlier and is missing is an error."""
        cut_after = None if self._record is None else self._record.after_steps
        if info.step + 1 > self._begun() != cut_after:
            raise MethodError(
                f"cut: the cut was due after {self._due} steps, but the first {info.step + 1} "
                "steps were trained without it"
            )
        self.after_step(layers, info)

    def _begun(self) -> int:
        if self._due is None:
            raise MethodError("cut: begin(layers, total_steps=...) must come before step 0")
        return self._due

    def _ranks(self, layers: Layers, values: Mapping[str, Tensor]) -> dict[str, int]:
        """Return each layer's rank after the cut."""
        cost = costs_of(layers)
        return self.config.keep().ranks(values, cost, together=True)

    def _goal(self, layers: Layers) -> str:
        keep = self.config.keep()
        if keep.energy is not None:
            return f"components with {keep.energy:.1%} of the energy"
        if keep.max_params is not None:
            return f"components within {keep.max_params:,} parameters"
        return f"{int((keep.mean_rank or 0) * len(layers)):,} components"

    def removed(self, keep: Mapping[str, Tensor]) -> None:
        """Do nothing: only components zeroed by the cut are removed, and they are not counted."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return each layer's rank after the cut, and the record of the cut."""
        m = self._record
        record = [] if m is None else [m.after_steps, m.components, m.energy]
        return {
            "left": torch.tensor(self._left, dtype=torch.long),
            "made": torch.tensor(record, dtype=torch.float64),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the state returned by `state_dict`; an empty one (LoRA's) means no cut yet."""
        if not state:
            return
        self._left, record = state["left"].tolist(), state["made"].tolist()
        self._record = CutRecord(int(record[0]), int(record[1]), record[2]) if record else None

    def summary(self, layers: Layers) -> Summary:
        """Count the components left; the event describes the cut."""
        total, m = sum(layer.rank for layer in layers.values()), self._record
        events = (
            ()
            if m is None
            else (
                f"cut after {m.after_steps} steps to {m.components} components, which hold "
                f"{m.energy:.2%} of the update's squared norm",
            )
        )
        return Summary(int(self.alive(layers)), total, events)

    def alive(self, layers: Layers) -> Tensor:
        """Return the number of components left ()."""
        whole = (layer.rank for layer in layers.values())
        return torch.tensor(sum(self._left or whole))

    def details(self, layers: Layers) -> dict[str, Any]:
        """Return the record of the cut."""
        return {} if self._record is None else {"cut": asdict(self._record)}

    def deliverable(self, layers: Layers) -> bool:
        """Return True after the cut: before it the adapter is larger than the budget."""
        return self._record is not None


def _energy(values: Mapping[str, Tensor]) -> float:
    return sum(float(s.square().sum()) for s in values.values())
