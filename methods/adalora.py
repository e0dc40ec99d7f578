"""AdaLoRA: components as triplets P, Lambda, Q; a shrinking budget keeps the most important."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from methods.base import AdapterMethod, Layers, LowRankLinear, Plan, StepInfo, Summary
from methods.configs import AdaLoraConfig
from methods.errors import MethodError
from methods.init import factor_options, normal_factors
from methods.layer import select_components
from methods.schedules import BudgetSchedule
from methods.sharding import joined, like, local, whole
from methods.torch_internals import (
    foreach_abs_,
    foreach_copy_,
    foreach_lerp_,
    foreach_mul,
    foreach_sub_,
)


class AdaLora(AdapterMethod):
    """AdaLoRA (Zhang et al. 2023, arXiv 2303.10512, sections 3.1 to 3.3).

    `dW = alpha / (init_r + 1e-5) * P diag(Lambda) Q` with B = P, d = Lambda, A = Q. An
    orthogonality penalty keeps P and Q near an SVD. After each step the triplets with the smallest
    importance scores are set to zero, until exactly `target_r * layers` triplets are left.

    Departures from the authors' code: ties are broken so that exactly the budget is kept (theirs
    drops all tied triplets), and target = initial rank is allowed (theirs fails). A later stage of
    a path starts its budget at the number of triplets left, not at the initial rank.

    PEFT (0.21) differs from the authors' code, which is followed here. PEFT first masks to the
    final budget at step T - t_final, the authors at the step after; PEFT adds the penalty in every
    forward pass whose output has a loss, so also in evaluation; in float64 models PEFT leaves the
    rank in the scaling trainable; PEFT's caller has to call the allocator after every step.
    """

    name = "adalora"
    config_class = AdaLoraConfig
    averages = 2
    config: AdaLoraConfig

    def __init__(self, config: AdaLoraConfig) -> None:
        super().__init__(config)
        self._schedule: BudgetSchedule | None = None
        self._importance: dict[str, Tensor] = {}  # "path.A" -> smoothed |p grad|, shape of p
        self._uncertainty: dict[str, Tensor] = {}

    def wrap(self, linear: nn.Module, *, generator: torch.Generator) -> LowRankLinear:
        """Wrap a layer: P and Q ~ N(0, 0.02^2) as B and A, Lambda zero as d."""
        c = self.config
        A, B = normal_factors(linear, c.init_r, generator, std=0.02)
        d = torch.zeros(c.init_r, **factor_options(linear))
        scaling = c.alpha / (c.init_r + 1e-5)  # the authors' guard against a rank of 0
        return LowRankLinear(linear, A, B, d, scaling=scaling, dropout=c.dropout)

    def plan(
        self,
        layers: Layers,
        *,
        total_steps: int,
        learning_rates: Mapping[str, Sequence[float]],
    ) -> Plan:
        """Return the three phases of the budget (eq. 12)."""
        schedule = self._budget_schedule(layers, total_steps)
        return Plan(phases=schedule.phases("triplets"))

    def begin(self, layers: Layers, *, total_steps: int) -> None:
        """Compute the budget's schedule from the run's steps."""
        self._schedule = self._budget_schedule(layers, total_steps)

    def _budget_schedule(self, layers: Layers, total_steps: int) -> BudgetSchedule:
        c = self.config
        counts = super().summary(layers)
        start = counts.live or counts.total  # before the first step of all, every gate is zero
        try:
            return BudgetSchedule.of(
                start=start,
                target=round(c.target_r * len(layers)),
                t_init=c.t_init,
                t_final=c.t_final,
                total_steps=total_steps,
                delta_t=c.delta_t,
                held=start < counts.total,
            )
        except ValueError as error:
            raise MethodError(f"adalora: {error}") from error

    def penalty(self, layers: Layers) -> Tensor | None:
        """Return `gamma * mean over all P and Q of ||P^T P - I||_F and ||Q Q^T - I||_F` (eq. 4)."""
        if self.config.orth_weight == 0:
            return None
        factors = [f for m in layers.values() for f in (whole(m.A), whole(m.B).t())]  # (r, in|out)
        norms = [_orthogonality(torch.stack(group)) for group in _by_shape(factors)]
        return self.config.orth_weight * torch.cat(norms).mean()

    @torch.no_grad()
    def after_step(self, layers: Layers, info: StepInfo) -> None:
        """Update the averages of importance, then mask the triplets down to the budget."""
        schedule = self._begun()
        # at the final budget the authors' code freezes the averages and repeats the mask: the
        # optimiser moves masked gates away from zero again
        if info.step < schedule.total_steps - schedule.t_final:
            self._update_averages(layers)
        if schedule.applies(info.step):
            self._mask(layers, schedule.budget(info.step))

    def removed(self, keep: Mapping[str, Tensor]) -> None:
        """Drop the averages of removed triplets; the budget does not change."""
        for averages in self._both():
            for path, kept in keep.items():
                for kind in ("A", "B", "d"):
                    average = averages.get(f"{path}.{kind}")
                    if average is not None:
                        averages[f"{path}.{kind}"] = select_components(average, kind, kept)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averages, and this stage's initial budget."""
        state = {f"importance.{name}": whole(t).clone() for name, t in self._importance.items()}
        state |= {f"uncertainty.{name}": whole(t).clone() for name, t in self._uncertainty.items()}
        if self._schedule is not None:
            state["budget_start"] = torch.tensor(self._schedule.start)
            state["budget_held"] = torch.tensor(self._schedule.held)
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the state returned by `state_dict`; call it after `begin`."""
        for kind, averages in zip(("importance.", "uncertainty."), self._both(), strict=True):
            averages.clear()
            averages.update(
                {n.removeprefix(kind): t.clone() for n, t in state.items() if n.startswith(kind)}
            )
        if "budget_start" in state and self._schedule is not None:
            start, held = int(state["budget_start"]), bool(state["budget_held"])
            self._schedule = replace(self._schedule, start=start, held=held)

    def summary(self, layers: Layers) -> Summary:
        """Count the triplets left; the event compares them with the budget."""
        counts = super().summary(layers)
        if self._schedule is None:
            return counts
        target = self._schedule.target
        met = "met" if counts.live == target else "MISSED"
        event = f"budget of {target} triplets {met}: {counts.live} left"
        return Summary(counts.live, counts.total, (event,))

    def deliverable(self, layers: Layers) -> bool:
        """Return True once the budget is met: before that the adapter is larger than asked for."""
        return int(self.alive(layers)) == self._begun().target

    def _begun(self) -> BudgetSchedule:
        if self._schedule is None:
            raise MethodError("adalora: begin(layers, total_steps=...) must come before step 0")
        return self._schedule

    def _update_averages(self, layers: Layers) -> None:
        """Update the smoothed sensitivity and the uncertainty of every entry (eq. 8 to 10)."""
        parameters = _named_parameters(layers)
        gradients = [local(g) for g in self.gradients(parameters)]
        mean, deviation = (_averages(known, parameters) for known in self._both())
        # eq. 8: sensitivity |p grad|, the change of the loss to first order if p became zero
        change = foreach_mul([local(p) for p in parameters.values()], gradients)
        foreach_abs_(change)
        # eq. 9: a lerp by 1 - beta1 is beta1 * mean + (1 - beta1) * change
        foreach_lerp_(mean, change, 1 - self.config.beta1)
        # eq. 10, after the mean's update: the deviation is from the new mean
        foreach_sub_(change, mean)
        foreach_abs_(change)
        foreach_lerp_(deviation, change, 1 - self.config.beta2)

    def _both(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        return self._importance, self._uncertainty

    def _scores(self, path: str) -> Tensor:
        """Return the score of each of a layer's triplets, (r,) (eq. 11)."""
        entry = {
            kind: whole(self._importance[f"{path}.{kind}"] * self._uncertainty[f"{path}.{kind}"])
            for kind in ("A", "B", "d")
        }
        return entry["d"] + entry["A"].mean(dim=1) + entry["B"].mean(dim=0)

    def _mask(self, layers: Layers, budget: int) -> None:
        """Set the gates of all but the `budget` highest-scored triplets to zero."""
        gates: list[Tensor] = [m.d for m in layers.values() if m.d is not None]
        flat = joined(gates)
        scores = torch.cat([self._scores(path) for path in layers]).to(flat.device)
        # stable: ties are broken by the order of the components, alike on every process
        drop = torch.argsort(scores, stable=True)[: scores.numel() - budget]
        dead = torch.zeros_like(scores, dtype=torch.bool)
        dead[drop] = True
        masked = torch.split(flat.masked_fill_(dead, 0), [g.numel() for g in gates])
        parts = [local(like(new, gate)) for new, gate in zip(masked, gates, strict=True)]
        foreach_copy_([local(g) for g in gates], parts)


def _orthogonality(P: Tensor) -> Tensor:
    """Return ||P P^T - I||_F of each factor: (n, r, m) -> (n,)."""
    eye = torch.eye(P.shape[1], dtype=P.dtype, device=P.device)
    norms: Tensor = torch.linalg.matrix_norm(P @ P.mT - eye)
    return norms


def _by_shape(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    groups: dict[tuple[object, ...], list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault((tensor.shape, tensor.dtype, tensor.device), []).append(tensor)
    return list(groups.values())


def _named_parameters(layers: Layers) -> dict[str, Tensor]:
    """Return the parameters as "path.A", "path.B" and "path.d"."""
    return {
        f"{path}.{kind}": p for path, layer in layers.items() for kind, p in layer.named_factors()
    }


def _averages(known: dict[str, Tensor], parameters: Mapping[str, Tensor]) -> list[Tensor]:
    """Return the averages of the parameters' local rows; an average begins at zero."""
    for name, p in parameters.items():
        # a resumed average may be on the CPU, and not sharded
        known[name] = like(known[name], p) if name in known else torch.zeros_like(p)
    return [local(known[name]) for name in parameters]
