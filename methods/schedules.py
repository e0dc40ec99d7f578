"""Schedules: an option's values from stage to stage, and a budget's values from step to step.

Ding et al. 2023 (arXiv 2311.11696, Algorithm 1) let the threshold grow from stage to stage of a
regularisation path; the three ramps are those of the authors' code. The budget's curve is AdaLoRA's
(Zhang et al. 2023, arXiv 2303.10512, eq. 12). This module does not import torch, because recipes
are checked with it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Ramp = Literal["linear", "log_linear", "exp_linear"]


def ramp(kind: Ramp, start: float, stop: float, num: int) -> list[float]:
    """Return `num` values from `start` to `stop`, both ends exact.

    Args:
        kind: linear: equal differences. exp_linear: equal ratios, exp of a linear ramp from
            log(start) to log(stop). log_linear: log of a linear ramp from exp(start) to exp(stop):
            large differences first, then ever smaller ones.
        num: at least 2.

    Raises:
        ValueError: `num` below 2, equal ends, or an end without a logarithm or an exponential.
    """
    if num < 2:
        raise ValueError(f"num must be at least 2, not {num}")
    if start == stop:
        raise ValueError(f"start and stop are both {start:g}: nothing would vary")
    if kind == "linear":
        values = _line(start, stop, num)
    elif kind == "exp_linear":
        if min(start, stop) <= 0:
            raise ValueError(
                f"exp_linear needs a start and a stop above 0, not {min(start, stop):g}; "
                "for a first value of 0 use linear, or list"
            )
        values = [math.exp(v) for v in _line(math.log(start), math.log(stop), num)]
    else:
        if max(abs(start), abs(stop)) > 700:
            raise ValueError("log_linear takes the exponential of start and stop: at most 700")
        values = [math.log(v) for v in _line(math.exp(start), math.exp(stop), num)]
    return [start, *values[1:-1], stop]


def _line(start: float, stop: float, num: int) -> list[float]:
    return [start + (stop - start) * i / (num - 1) for i in range(num)]


@dataclass(frozen=True)
class BudgetSchedule:
    """The number of components, over all layers, allowed after each step (AdaLoRA's eq. 12).

    Attributes:
        start, target: components at the start and at the end.
        t_init, t_final, total_steps, delta_t: in optimiser steps.
        held: True in later stages of a path: the starting budget is enforced from the first step
            on. In a first stage nothing is masked before the budget falls.
    """

    start: int
    target: int
    t_init: int
    t_final: int
    total_steps: int
    delta_t: int
    held: bool = False

    @classmethod
    def of(
        cls,
        *,
        start: int,
        target: int,
        t_init: int | float,
        t_final: int | float,
        total_steps: int,
        delta_t: int = 1,
        held: bool = False,
    ) -> BudgetSchedule:
        """Make the schedule of a run; a target above `start` becomes `start`.

        Args:
            t_init, t_final: steps, or below 1 shares of the run's steps.

        Raises:
            ValueError: `t_init` and `t_final` leave no step in which the budget can fall.
        """
        first, last = steps_of(t_init, total_steps), steps_of(t_final, total_steps)
        if first + max(last, 1) >= total_steps:  # 1: the last step always has the target
            raise ValueError(
                f"t_init {first} + t_final {last} leave no step of {total_steps} to "
                f"shrink the budget in; their sum must be below {total_steps}: shares below 1, "
                f"such as t_init 0.1 and t_final 0.3, fit any run of two steps or more"
            )
        return cls(start, min(target, start), first, last, total_steps, delta_t, held)

    def budget(self, step: int) -> int:
        """Return the number of components allowed after the 0-based step."""
        if step <= self.t_init:
            return self.start
        if self._is_final(step):
            return self.target
        # eq. 12: the fall is cubic, so most components go in its first steps
        span = self.total_steps - self.t_final - self.t_init
        left = 1 - (step - self.t_init) / span
        return int(self.target + (self.start - self.target) * left**3)

    def applies(self, step: int) -> bool:
        """Return True if components are set to zero after the 0-based step."""
        if step <= self.t_init and not self.held:
            return False
        return self._is_final(step) or step % self.delta_t == 0

    @property
    def initial_steps(self) -> int:
        """Number of steps at the start with all components allowed."""
        return self.t_init + 1

    @property
    def final_steps(self) -> int:
        """Number of steps at the end with the target as the budget."""
        return max(self.t_final - 1, 1)

    def phases(self, unit: str) -> tuple[tuple[str, int], ...]:
        """Return the three phases of a run and their steps, for a plan.

        Args:
            unit: name of the counted things, in the plural ("components").
        """
        first, last = self.initial_steps, self.final_steps
        return (
            (f"initial budget, {self.start:,} {unit}", first),
            (f"budget falls to {self.target:,} {unit}", self.total_steps - first - last),
            (f"final budget, {self.target:,} {unit}", last),
        )

    def _is_final(self, step: int) -> bool:
        """Return True if the budget stays at the target from here on; the last step always does."""
        return step > self.total_steps - self.t_final or step == self.total_steps - 1


def steps_of(value: int | float, total_steps: int) -> int:
    """Convert a number of steps, or a share of the run (below 1), to steps."""
    return round(value * total_steps) if 0 < value < 1 else int(value)
