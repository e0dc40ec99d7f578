"""SoRA: a gate on each component; training drives gates to exactly zero."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from methods.base import AdapterMethod, Layers, LowRankLinear, Plan, StepInfo, Summary
from methods.configs import SoraConfig
from methods.errors import MethodError
from methods.init import factor_options, kaiming_factors
from methods.proximal import (
    budget_threshold,
    hard_threshold_,
    official_threshold_,
    soft_threshold_,
    threshold_reach,
)
from methods.schedules import BudgetSchedule
from methods.sharding import joined, local

REACH_ENOUGH = 0.25
"""A plan warns if the threshold alone zeroes less than this share of N(0, 1) gates.

Measured on MiniLM, share zeroed by the threshold alone -> share dead after training: 6 % -> about
20 % (RTE), 13 % -> 16 % (STS-B), 19 % -> 23 % (CoLA), 41 % -> 43 % (STS-B, xi 1e-3).
"""
_NEVER = -1
_HALF_NORMAL_MEDIAN = 0.6744897501960817  # half of all N(0, 1) gates are closer to zero
_PROXIMAL_STEPS = {
    ("paper", "soft"): soft_threshold_,
    ("paper", "hard"): hard_threshold_,
    ("official", "soft"): official_threshold_,
}


class Sora(AdapterMethod):
    """SoRA (Ding et al. 2023, arXiv 2311.11696, section 3).

    `dW = alpha / r_max * B diag(d) A`, A Kaiming, B zero, gates d ~ N(0, 1). After each optimiser
    step every gate takes a proximal step of the L1 norm (eq. 8-9). A component whose gate is zero
    adds nothing to the update, so leaving it out of the saved adapter is exact. A gate at zero
    still gets a gradient and can come back; `summary` counts these revivals, and `details` lists
    the step at which each component died.

    Departures from the paper are options. `gate_init: ones` starts with equal gates. `target_r`
    replaces xi by a budget of `b(t)` gates over all layers, which falls along AdaLoRA's curve
    (arXiv 2303.10512, eq. 12). Step t then uses the smallest xi with which the proximal step leaves
    at most b(t) gates: the (b(t) + 1)-th largest |d|, or 0 if no more than b(t) gates are alive.
    With `shrink: soft` this is eq. 9 with a varying xi, which also shrinks the surviving gates by
    xi: equal gates of 1 would all be 0 after the first step. `shrink: hard` does not change
    surviving gates. It is the proximal step of the L0 norm, or iterative hard thresholding
    (Blumensath and Davies 2009, arXiv 0805.0510). Equal gates die together, so ties may leave fewer
    gates than the budget.
    """

    name = "sora"
    config_class = SoraConfig
    config: SoraConfig

    def __init__(self, config: SoraConfig) -> None:
        super().__init__(config)
        # these have an entry for every initial gate, also for components removed since:
        self._alive = torch.zeros(0, dtype=torch.bool)  # after the last step
        self._last_died = torch.zeros(0, dtype=torch.long)  # step, or _NEVER
        self._present = torch.zeros(0, dtype=torch.bool)  # not removed
        self._ranks: list[int] = []  # components of each layer at the beginning
        self._revivals = torch.zeros((), dtype=torch.long)
        # with target_r only:
        self._schedule: BudgetSchedule | None = None
        self._xi = torch.zeros(0, dtype=torch.float64)  # of each step of this run or stage

    def wrap(self, linear: nn.Module, *, generator: torch.Generator) -> LowRankLinear:
        """Wrap a layer: A Kaiming-uniform, B zero, gates d ~ N(0, 1) or 1."""
        c = self.config
        A, B = kaiming_factors(linear, c.r_max, generator)
        # drawn in float64, so that one seed gives the same gates in every dtype; drawn for
        # gate_init: ones, too, so that the next layers get the same A
        d = torch.randn(c.r_max, generator=generator, dtype=torch.float64)
        d = torch.ones_like(d) if c.gate_init == "ones" else d
        d = d.to(**factor_options(linear))
        return LowRankLinear(linear, A, B, d, scaling=c.alpha / c.r_max, dropout=c.dropout)

    def param_groups(
        self, layers: Layers, *, lr: float, weight_decay: float
    ) -> list[dict[str, Any]]:
        """Return two groups: factors, and gates with their own learning rate and no decay."""
        factors = [p for m in layers.values() for p in (m.A, m.B) if p.requires_grad]
        gates: dict[str, Any] = {
            "name": "gates",
            "params": [gate for gate in _gates(layers) if gate.requires_grad],
            "lr": lr if self.config.gate_lr is None else self.config.gate_lr,
            "weight_decay": 0.0,
            "eps": self.config.gate_eps,
        }
        if self.config.betas is not None:
            gates["betas"] = self.config.betas
        return [
            {"name": "factors", "params": factors, "lr": lr, "weight_decay": weight_decay},
            gates,
        ]

    def penalty(self, layers: Layers) -> Tensor | None:
        """Return `l1 * sum |d| / (number of gates)`, the authors' extra loss; off by default."""
        if self.config.l1 == 0:
            return None
        gates = joined(_gates(layers))
        return self.config.l1 * gates.abs().sum() / max(gates.numel(), 1)

    def plan(
        self,
        layers: Layers,
        *,
        total_steps: int,
        learning_rates: Mapping[str, Sequence[float]],
    ) -> Plan:
        """Return the phases of the budget, or the share of gates that the threshold alone zeroes.

        Gradients (and `l1`) move gates as well, in both directions, so the share does not predict
        the ranks; in short runs a few per cent more gates die.
        """
        xi = self.config.threshold
        if xi is None:
            return Plan(self._budget_schedule(layers, total_steps).phases("components"))
        times_lr = self.config.threshold_times_lr
        rates = learning_rates["gates"] if times_lr else [1.0] * total_steps
        reach = threshold_reach(rates, self.config.prox)  # per unit of xi
        ones = self.config.gate_init == "ones"
        # P(|d| < x) = erf(x / sqrt(2)) for a gate d ~ N(0, 1)
        share = min(xi * reach, 1.0) if ones else math.erf(xi * reach / math.sqrt(2))
        factor = "the learning rates' sum" if times_lr else "steps"
        effect = (
            f"brings the gates {share:.1%} of the way from 1 to zero"
            if ones
            else f"brings {share:.1%} of N(0, 1) gates to zero"
        )
        phases = (("training with the threshold" if xi else "training, no threshold", total_steps),)
        notes = (
            f"threshold x {factor} = {xi:g} x {sum(rates):,.6g} = {xi * sum(rates):.3g}: "
            f"the threshold alone {effect}",
        )
        if share >= REACH_ENOUGH:
            return Plan(phases, notes)
        enough = f"{(1 if ones else _HALF_NORMAL_MEDIAN) / reach:.2g}"
        warning = (
            f"threshold {xi:g} over {total_steps:,} steps reaches only {share:.1%} of the "
            f"{'way' if ones else 'gates'}: most components will stay alive; "
            f"method.threshold={enough} reaches {'all of it' if ones else 'half of them'}"
        )
        return Plan(phases, notes, (warning,))

    def _budget_schedule(self, layers: Layers, total_steps: int) -> BudgetSchedule:
        c = self.config
        assert c.target_r is not None
        try:
            return BudgetSchedule.of(
                start=int(self.alive(layers)),
                target=int(c.target_r * len(layers)),
                t_init=c.t_init,
                t_final=c.t_final,
                total_steps=total_steps,
            )
        except ValueError as error:
            raise MethodError(f"sora: {error}") from error

    def begin(self, layers: Layers, *, total_steps: int) -> None:
        """Compute the budget's schedule; clear the record of an earlier stage's deaths."""
        self._alive = joined(_gates(layers)).detach().ne(0)
        self._last_died = torch.full_like(self._alive, _NEVER, dtype=torch.long)
        self._present = torch.ones_like(self._alive)
        self._ranks = [layer.rank for layer in layers.values()]
        self._revivals = torch.zeros((), dtype=torch.long, device=self._alive.device)
        if self.config.target_r is None:
            self._schedule = None
        else:
            self._schedule = self._budget_schedule(layers, total_steps)
            self._xi = torch.zeros(total_steps, dtype=torch.float64, device=self._alive.device)

    @torch.no_grad()
    def after_step(self, layers: Layers, info: StepInfo) -> None:
        """Take the proximal step on every gate, then record deaths and revivals."""
        self._check_gradients(layers)  # first: a refused step must not have moved a gate
        gates = _gates(layers)
        trained = [gate for gate in gates if gate.requires_grad]
        xi = self._threshold(gates, trained, info)
        if trained:
            _PROXIMAL_STEPS[self.config.prox, self.config.shrink]([local(g) for g in trained], xi)
        self._record_deaths(joined(gates).ne(0), info.step)

    def _threshold(
        self, gates: Sequence[Tensor], trained: Sequence[Tensor], info: StepInfo
    ) -> float | Tensor:
        """Return xi of this step: the configured one, or the smallest that meets the budget."""
        xi = self.config.threshold
        if xi is not None:
            return xi * info.learning_rates["gates"] if self.config.threshold_times_lr else xi
        if self._schedule is None:
            raise MethodError("sora: begin(layers, total_steps=...) must come before step 0")
        if not trained:
            return 0.0
        budget = self._schedule.budget(info.step)
        # frozen gates are not thresholded, but count towards the budget
        frozen = [gate for gate in gates if not gate.requires_grad]
        allowed = torch.tensor(budget) - (joined(frozen).count_nonzero() if frozen else 0)
        chosen = budget_threshold(joined(trained).detach(), allowed)
        self._xi = self._xi.to(chosen.device)  # a resumed record may be on the CPU
        self._xi[info.step] = chosen
        return chosen

    def _check_gradients(self, layers: Layers) -> None:
        """Refuse a layer without gradients: its gates would shrink however useful the layer is."""
        lacking = {
            f"{path}.{kind}": p
            for path, layer in layers.items()
            for kind, p in layer.named_factors()
            if p.grad is None and p.requires_grad and p.numel()
        }
        self.gradients(lacking)

    def _record_deaths(self, nonzero: Tensor, step: int) -> None:
        """Record deaths and revivals of gates, without waiting for the device.

        Args:
            nonzero: mask over the gates still present.
        """
        before = self._alive.to(nonzero.device)  # a resumed record may be on the CPU
        present = self._present.to(nonzero.device)
        alive = torch.zeros_like(before).masked_scatter_(present, nonzero)
        self._revivals = self._revivals.to(nonzero.device) + (alive & ~before).sum()
        self._last_died = self._last_died.to(nonzero.device).masked_fill(before & ~alive, step)
        self._alive, self._present = alive, present

    def removed(self, keep: Mapping[str, Tensor]) -> None:
        """Mark removed components in the record as dead for good."""
        kept = torch.cat(list(keep.values())).to(self._present.device)
        self._present = self._present.masked_scatter(self._present, kept)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the present values of the variable options, and the record of deaths."""
        options = {name: getattr(self.config, name) for name in self.config.variable_options}
        state = {
            name: torch.tensor(value, dtype=torch.float64)
            for name, value in options.items()
            if value is not None
        }
        state |= {
            "revivals": self._revivals.clone(),
            "alive": self._alive.clone(),
            "last_died": self._last_died.clone(),
            "present": self._present.clone(),
            "ranks": torch.tensor(self._ranks, dtype=torch.long),
        }
        if self._schedule is not None:
            state["xi"] = self._xi.clone()
            state["budget_start"] = torch.tensor(self._schedule.start)
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the state returned by `state_dict`."""
        for option in self.config.variable_options:
            if option in state:
                self.set_option(option, float(state[option]))
        self._revivals = state["revivals"].clone()
        self._alive, self._last_died = state["alive"].clone(), state["last_died"].clone()
        self._present, self._ranks = state["present"].clone(), state["ranks"].tolist()
        if "xi" in state and self._schedule is not None:
            self._xi = state["xi"].clone()
            self._schedule = replace(self._schedule, start=int(state["budget_start"]))

    def summary(self, layers: Layers) -> Summary:
        """Count live gates; the events name the budget, revivals, and the case of no live gate."""
        counts = super().summary(layers)
        events = []
        if self._schedule is not None:
            met = "met" if counts.live <= self._schedule.target else "MISSED"
            target = f"{self._schedule.target:,}"
            events.append(f"budget of {target} components {met}: {counts.live:,} left")
        if self._revivals:
            events.append(f"{int(self._revivals)} times a gate at zero came back")
        if counts.live == 0 and counts.total:
            remedy = "raise target_r" if self.config.threshold is None else "lower the threshold"
            events.append(f"every gate is zero: the adapter does nothing; {remedy}")
        return Summary(live=counts.live, total=counts.total, events=tuple(events))

    def deliverable(self, layers: Layers) -> bool:
        """Return True if there is no budget or it is met; before that the adapter is larger."""
        if self.config.target_r is None:
            return True
        schedule = self._schedule
        return schedule is not None and int(self.alive(layers)) <= schedule.target

    def details(self, layers: Layers) -> dict[str, Any]:
        """Return the number of revivals, and the 0-based step of each component's last death.

        Returns:
            `revivals`, and `last_died`: by layer, a step per component, None if it never died.
            With a budget also `xi` of every step, and `xi_sum`.
        """
        steps = torch.split(self._last_died, self._ranks)
        last_died = {
            path: [None if step == _NEVER else step for step in of_layer.tolist()]
            for path, of_layer in zip(layers, steps, strict=True)
        }
        details = {"revivals": int(self._revivals), "last_died": last_died}
        if self._schedule is None:
            return details
        return details | {"xi_sum": float(self._xi.sum()), "xi": self._xi.tolist()}


def _gates(layers: Layers) -> list[Tensor]:
    gates = [layer.d for layer in layers.values()]
    assert all(g is not None for g in gates)
    return [g for g in gates if g is not None]
