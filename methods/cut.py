"""LoRA at a generous rank, cut to a budget over all layers while it trains, and trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from methods.base import AdapterMethod, Layers, LowRankLinear, Plan, StepInfo, Summary
from methods.basis import singular_basis, turn
from methods.budgets import holding_energy, strongest, within_parameters
from methods.configs import CutConfig
from methods.errors import MethodError
from methods.init import kaiming_factors
from methods.schedules import steps_of

_DEFAULT_SHARE = 0.15


@dataclass(frozen=True)
class Cuts:
    """The steps at which a run is cut, and the share of the way each cut goes.

    Attributes:
        steps: optimiser steps taken before each cut, rising.
    """

    steps: tuple[int, ...]

    def due(self, taken: int, last: int) -> float | None:
        """Return which share of all cuts has been made after one now; None: none is due.

        Args:
            taken: optimiser steps.
            last: steps taken before the last cut. Mixed precision may skip the step of a cut,
                which is then made after the next.
        """
        passed = sum(step <= taken for step in self.steps)
        made = sum(step <= last for step in self.steps)
        return passed / len(self.steps) if passed > made else None


@dataclass(frozen=True)
class Made:
    """A cut that was made.

    Attributes:
        after_steps: optimiser steps taken before it.
        components: left after it.
        energy: the share of all squared singular values that it kept.
    """

    after_steps: int
    components: int
    energy: float


class Cut(AdapterMethod):
    """LoRA, cut and trained on.

    `dW = alpha / r_max * B A` is trained as LoRA is (Hu et al. 2021, arXiv 2106.09685). After
    `cut_at` of the steps every layer is turned into its singular basis, `A = S^1/2 V^T` and
    `B = U S^1/2`, and of all layers together only the largest singular values are kept, up to the
    budget (the rule of PARA, arXiv 2604.27796). The other components become exactly zero, for
    good, and the steps left train those that remain (LoRA-Squeeze, arXiv 2602.10993, reports that
    this is better than training at the small rank). With several cuts the budget falls from one
    to the next by the same factor.
    """

    name = "cut"
    config_class = CutConfig
    config: CutConfig

    def __init__(self, config: CutConfig) -> None:
        super().__init__(config)
        self._cuts: Cuts | None = None
        self._start: list[int] = []  # components of each layer alive as the run (or stage) began
        self._left: list[int] = []  # of each layer since the last cut; empty before it
        self._made: list[Made] = []

    def wrap(self, linear: nn.Module, *, generator: torch.Generator) -> LowRankLinear:
        """Wrap a layer as LoRA does: A Kaiming-uniform, B zero, no gates."""
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
        """Return the steps before, between and after the cuts."""
        steps = self._schedule(total_steps).steps
        full = sum(layer.rank for layer in layers.values())
        phases = [(f"all {full:,} components", steps[0])]
        if len(steps) > 1:
            phases.append(
                (f"from the first to the last of {len(steps)} cuts", steps[-1] - steps[0])
            )
        phases.append((f"{self._goal(layers)} heal", total_steps - steps[-1]))
        return Plan(tuple(phases))

    def begin(self, layers: Layers, *, total_steps: int) -> None:
        """Compute the steps of the cuts; a later stage of a path begins with what is left."""
        self._cuts = self._schedule(total_steps)
        self._start = self._left or [layer.rank for layer in layers.values()]
        self._made = []

    def _schedule(self, total_steps: int) -> Cuts:
        c = self.config
        last, first = steps_of(c.cut_at, total_steps), steps_of(c.first_cut, total_steps)
        if c.cut_at < 1:
            last = min(last, total_steps - 1)  # 0.8 of two steps, rounded, would be both of them
        if last >= total_steps or last < 1:
            raise MethodError(
                f"cut: a cut after {last} of {total_steps} steps leaves none to train before or "
                "after it: shares below 1, such as cut_at 0.8, fit any run of two steps or more"
            )
        if c.cuts == 1:
            return Cuts((last,))
        if last - first < c.cuts - 1 or first < 1:
            raise MethodError(
                f"cut: {c.cuts} cuts do not fit between steps {first} and {last} of {total_steps}"
            )
        way = (last - first) / (c.cuts - 1)
        return Cuts(tuple(first + round(i * way) for i in range(c.cuts)))

    @torch.no_grad()
    def after_step(self, layers: Layers, info: StepInfo) -> None:
        """Cut, if that is due."""
        last = self._made[-1].after_steps if self._made else 0
        share = self._begun().due(info.step + 1, last)
        if share is None:
            return
        if info.optimizer_state is None:
            raise MethodError("cut: StepInfo has no optimizer_state, whose moments turn with A, B")
        bases = {path: singular_basis(layer) for path, layer in layers.items()}
        scaled = {path: layers[path].scaling * basis.S.cpu() for path, basis in bases.items()}
        kept = self._shrunk(scaled, self._ranks(layers, scaled, share))
        for path, layer in layers.items():
            strength = kept[path].to(layer.A.device) / layer.scaling
            turn(layer, bases[path], strength, info.optimizer_state, self.config.moments)
        self._left = [int(s.count_nonzero()) for s in kept.values()]
        energy = round(_energy(kept) / (_energy(scaled) or 1), 9)
        self._made.append(Made(info.step + 1, sum(self._left), energy))

    def take_over(self, layers: Layers, info: StepInfo) -> None:
        """Cut, if that is due after the step; an earlier cut must have been made.

        Raises:
            MethodError: a cut was due before.
        """
        taken = info.step + 1
        earlier = [step for step in self._begun().steps if step < taken]
        if [m.after_steps for m in self._made if m.after_steps < taken] != earlier:
            raise MethodError(
                f"cut: a cut was due after {', '.join(map(str, earlier)) or 'no'} steps, and what "
                f"was done in the first {taken} is not that"
            )
        if len(self._made) == len(earlier):
            self.after_step(layers, info)

    def _begun(self) -> Cuts:
        if self._cuts is None:
            raise MethodError("cut: begin(layers, total_steps=...) must come before step 0")
        return self._cuts

    def _ranks(self, layers: Layers, values: Mapping[str, Tensor], share: float) -> dict[str, int]:
        """Return what each layer keeps when that share of the cuts is made."""
        c = self.config
        if c.energy is not None:
            return holding_energy(values, c.energy ** (1 / c.cuts))
        if c.max_params is not None:
            cost = {path: m.A.shape[1] + m.B.shape[0] for path, m in layers.items()}
            start = sum(n * of_one for n, of_one in zip(self._start, cost.values(), strict=True))
            return within_parameters(values, cost, _between(start, c.max_params, share))
        return strongest(values, _between(sum(self._start), self._count(len(layers)), share))

    def _count(self, layers: int) -> int:
        target = self.config.target_r
        return int(layers * (_DEFAULT_SHARE * self.config.r_max if target is None else target))

    def _shrunk(self, values: Mapping[str, Tensor], ranks: Mapping[str, int]) -> dict[str, Tensor]:
        """Return the singular values after a cut to these ranks.

        A soft cut takes from each what brings the largest of those not kept to zero: the proximal
        operator of the nuclear norm, SoRA's equation 9 for singular values.
        """
        kept = {path: s.clone() for path, s in values.items()}
        for path, s in kept.items():
            s[ranks[path] :] = 0
        if self.config.shrink == "soft":
            lost = torch.cat([s[ranks[path] :] for path, s in values.items()])
            xi = float(lost.max()) if lost.numel() else 0.0
            kept = {path: (s - xi).clamp(min=0) for path, s in kept.items()}
        return kept

    def _goal(self, layers: Layers) -> str:
        c = self.config
        if c.energy is not None:
            return f"components with {c.energy:.1%} of the energy"
        if c.max_params is not None:
            return f"components within {c.max_params:,} parameters"
        return f"{self._count(len(layers)):,} components"

    def removed(self, keep: Mapping[str, Tensor]) -> None:
        """Do nothing: what is counted are the components left, and only others are removed."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return the ranks left, and what each cut has done."""
        made = [[m.after_steps, m.components, m.energy] for m in self._made]
        return {
            "start": torch.tensor(self._start, dtype=torch.long),
            "left": torch.tensor(self._left, dtype=torch.long),
            "made": torch.tensor(made, dtype=torch.float64).reshape(-1, 3),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned; nothing at all is the state before any cut."""
        if not state:
            return
        self._start, self._left = state["start"].tolist(), state["left"].tolist()
        self._made = [Made(int(n), int(count), e) for n, count, e in state["made"].tolist()]

    def summary(self, layers: Layers) -> Summary:
        """Count the components that are left."""
        total = sum(layer.rank for layer in layers.values())
        events = tuple(
            f"cut after {m.after_steps} steps to {m.components} components, which hold "
            f"{m.energy:.2%} of the update's squared norm"
            for m in self._made
        )
        return Summary(sum(self._left) if self._left else total, total, events)

    def details(self, layers: Layers) -> dict[str, Any]:
        """Return what each cut has done."""
        return {"cuts": [asdict(m) for m in self._made]}

    def deliverable(self, layers: Layers) -> bool:
        """Tell whether the last cut is made: earlier states hold more than the budget."""
        if self._cuts is None or not self._made:
            return False
        return self._made[-1].after_steps >= self._cuts.steps[-1]


def _between(start: int, target: int, share: float) -> int:
    """Return the budget when a share of the way is gone, by equal factors; its end is exact."""
    if share == 1 or target >= start:
        return min(start, target)
    way: float = (max(target, 1) / start) ** share
    return round(start * way)


def _energy(values: Mapping[str, Tensor]) -> float:
    return sum(float(s.square().sum()) for s in values.values())
