"""SoRA: gates on the rank-one components, driven to exactly zero while training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from methods.base import AdapterMethod, Layers, LowRankLinear, Plan, StepInfo, Summary
from methods.configs import SoraConfig
from methods.init import factor_options, kaiming_factors
from methods.sharding import joined, local
from methods.torch_internals import foreach_copy_

REACH_ENOUGH = 0.25
"""A plan warns if the threshold reaches a smaller share of N(0, 1) gates than this.

Measured on MiniLM, reached by the threshold alone -> pruned: 6 % -> about 20 % (RTE), 13 % -> 16 %
(STS-B), 19 % -> 23 % (CoLA), 41 % -> 43 % (STS-B, xi 1e-3).
"""
_NEVER = -1
_HALF_NORMAL_MEDIAN = 0.6744897501960817  # half of all N(0, 1) gates are closer to zero


class Sora(AdapterMethod):
    """SoRA (Ding et al. 2023, arXiv 2311.11696, section 3).

    `dW = alpha / r_max * B diag(d) A`, A Kaiming, B zero, gates d ~ N(0, 1). After each optimiser
    step every gate takes a proximal step of the L1 norm (eq. 8-9): components whose gate reaches
    zero add nothing and are left out of the saved adapter, exactly. A gate at zero still gets a
    gradient and can come back; `summary` counts such revivals, `details` tells when each died.
    """

    name = "sora"
    config_class = SoraConfig
    config: SoraConfig

    def __init__(self, config: SoraConfig) -> None:
        super().__init__(config)
        # these cover all gates of the beginning, also those of components removed since:
        self._alive = torch.zeros(0, dtype=torch.bool)  # after the last step
        self._last_died = torch.zeros(0, dtype=torch.long)  # step, or _NEVER
        self._present = torch.zeros(0, dtype=torch.bool)  # not removed
        self._ranks: list[int] = []  # components of each layer at the beginning
        self._revivals = torch.zeros((), dtype=torch.long)

    def wrap(self, linear: nn.Module, *, generator: torch.Generator) -> LowRankLinear:
        """Wrap a layer: A Kaiming-uniform, B zero, gates d ~ N(0, 1)."""
        c = self.config
        A, B = kaiming_factors(linear, c.r_max, generator)
        # drawn in float64, so that one seed gives the same gates in every dtype
        d = torch.randn(c.r_max, generator=generator, dtype=torch.float64)
        d = d.to(**factor_options(linear))
        return LowRankLinear(linear, A, B, d, scaling=c.alpha / c.r_max, dropout=c.dropout)

    def param_groups(
        self, layers: Layers, *, lr: float, weight_decay: float
    ) -> list[dict[str, Any]]:
        """Return two groups: factors, and gates with a learning rate of their own and no decay."""
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
        """Compute how far the threshold moves a gate, and the share of N(0, 1) gates within that.

        Gradients (and `l1`) move gates as well, either way, so this does not predict the ranks; in
        short runs a few per cent more gates die than the threshold reaches.
        """
        xi = self.config.threshold
        phases = (("training with the threshold" if xi else "training, no threshold", total_steps),)
        rates = learning_rates["gates"] if self.config.threshold_times_lr else [1.0] * total_steps
        reach = threshold_reach(rates, self.config.prox)  # per unit of xi
        share = math.erf(xi * reach / math.sqrt(2))
        factor = "the learning rates' sum" if self.config.threshold_times_lr else "steps"
        notes = (
            f"threshold x {factor} = {xi:g} x {sum(rates):,.6g} = {xi * sum(rates):.3g}: "
            f"the threshold alone brings {share:.1%} of N(0, 1) gates to zero",
        )
        if share >= REACH_ENOUGH:
            return Plan(phases, notes)
        half = f"{_HALF_NORMAL_MEDIAN / reach:.2g}"
        warning = (
            f"threshold {xi:g} over {total_steps:,} steps reaches only {share:.1%} of the gates: "
            f"most components will stay alive; method.threshold={half} reaches half of them"
        )
        return Plan(phases, notes, (warning,))

    def begin(self, layers: Layers, *, total_steps: int) -> None:
        """Forget the deaths and revivals of an earlier run or stage; the gates stay as they are."""
        self._alive = joined(_gates(layers)).detach().ne(0)
        self._last_died = torch.full_like(self._alive, _NEVER, dtype=torch.long)
        self._present = torch.ones_like(self._alive)
        self._ranks = [layer.rank for layer in layers.values()]
        self._revivals = torch.zeros((), dtype=torch.long, device=self._alive.device)

    @torch.no_grad()
    def after_step(self, layers: Layers, info: StepInfo) -> None:
        """Take the proximal step on every gate, then record deaths and revivals."""
        xi = self.config.threshold
        if self.config.threshold_times_lr:
            xi *= info.learning_rates["gates"]
        shrink = official_threshold_ if self.config.prox == "official" else soft_threshold_
        self._check_gradients(layers)
        gates = _gates(layers)
        trained = [local(gate) for gate in gates if gate.requires_grad]
        if trained:
            shrink(trained, xi)
        self._record_deaths(joined(gates).ne(0), info.step)

    def _check_gradients(self, layers: Layers) -> None:
        """Refuse a layer without gradients: its gates would shrink, whatever the layer is worth."""
        lacking = {
            f"{path}.{kind}": p
            for path, layer in layers.items()
            for kind, p in layer.named_factors()
            if p.grad is None and p.requires_grad and p.numel()
        }
        self.gradients(lacking)

    def _record_deaths(self, nonzero: Tensor, step: int) -> None:
        """Record which gates died and which came back, without waiting for the device.

        Args:
            nonzero: of the gates still present.
        """
        before = self._alive.to(nonzero.device)  # a resumed one may be on the CPU
        present = self._present.to(nonzero.device)
        alive = torch.zeros_like(before).masked_scatter_(present, nonzero)
        self._revivals = self._revivals.to(nonzero.device) + (alive & ~before).sum()
        self._last_died = self._last_died.to(nonzero.device).masked_fill(before & ~alive, step)
        self._alive, self._present = alive, present

    def removed(self, keep: Mapping[str, Tensor]) -> None:
        """Keep removed components in the record, as dead ones that never come back."""
        kept = torch.cat(list(keep.values())).to(self._present.device)
        self._present = self._present.masked_scatter(self._present, kept)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the options in force at this stage, and the record of deaths and revivals."""
        return {
            "threshold": torch.tensor(self.config.threshold, dtype=torch.float64),
            "l1": torch.tensor(self.config.l1, dtype=torch.float64),
            "revivals": self._revivals.clone(),
            "alive": self._alive.clone(),
            "last_died": self._last_died.clone(),
            "present": self._present.clone(),
            "ranks": torch.tensor(self._ranks, dtype=torch.long),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        for option in self.config.variable_options:
            self.set_option(option, float(state[option]))
        self._revivals = state["revivals"].clone()
        self._alive, self._last_died = state["alive"].clone(), state["last_died"].clone()
        self._present, self._ranks = state["present"].clone(), state["ranks"].tolist()

    def summary(self, layers: Layers) -> Summary:
        """Count live gates; events tell of revivals, and if every gate is zero."""
        counts = super().summary(layers)
        events = []
        if self._revivals:
            events.append(f"{int(self._revivals)} times a gate at zero came back")
        if counts.live == 0 and counts.total:
            events.append("every gate is zero: the adapter does nothing; lower the threshold")
        return Summary(live=counts.live, total=counts.total, events=tuple(events))

    def details(self, layers: Layers) -> dict[str, Any]:
        """Return how often gates came back, and the 0-based step at which each component last died.

        Returns:
            `revivals`, and `last_died`: by layer, a step per component, None if it never died.
        """
        steps = torch.split(self._last_died, self._ranks)
        last_died = {
            path: [None if step == _NEVER else step for step in of_layer.tolist()]
            for path, of_layer in zip(layers, steps, strict=True)
        }
        return {"revivals": int(self._revivals), "last_died": last_died}


def threshold_reach(factors: Sequence[float], prox: str) -> float:
    """Return how far from zero a gate may start for the proximal steps alone to bring it there.

    Args:
        factors: of each step, the threshold as a multiple of xi.
        prox: the authors' operator also clears what is within xi after its shrinking.

    Returns:
        Distance in units of xi.
    """
    moved = reach = 0.0
    for factor in factors:
        moved += factor
        reach = max(reach, moved + factor if prox == "official" else moved)
    return reach


def soft_threshold_(gates: list[Tensor], xi: float) -> None:
    """Apply `sign(g) max(|g| - xi, 0)` in place: the proximal operator of xi |g| (paper, eq. 9)."""
    flat = torch.cat(gates)  # one pass over all layers' gates
    _write(gates, flat.sign() * (flat.abs() - xi).clamp_(min=0))


def official_threshold_(gates: list[Tensor], xi: float) -> None:
    """Apply the authors' operator in place: |g| > xi shrinks by xi, then every |g| < xi becomes 0.

    So the dead zone reaches to 2 xi, and |g| = xi stays.
    """
    flat = torch.cat(gates)
    shrunk = torch.where(flat.abs() > xi, flat - flat.sign() * xi, flat)
    _write(gates, shrunk.masked_fill_(shrunk.abs() < xi, 0))


def _write(gates: list[Tensor], flat: Tensor) -> None:
    foreach_copy_(gates, torch.split(flat, [g.numel() for g in gates]))


def _gates(layers: Layers) -> list[Tensor]:
    gates = [layer.d for layer in layers.values()]
    assert all(g is not None for g in gates)
    return [g for g in gates if g is not None]
