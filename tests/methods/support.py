"""A small frozen net, data for it, and the training loop that `methods.base` describes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from methods.base import AdapterMethod, LowRankLinear, StepInfo
from methods.inject import inject

LR = 1e-2


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small_net(dtype: torch.dtype = torch.float64, *, seed: int = 0) -> nn.Sequential:
    """Linear layers "0" (10 -> 12) and "2" (12 -> 6), tanh between."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(10, 12), nn.Tanh(), nn.Linear(12, 6)).to(dtype)


def regression_data(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Inputs (32, 10) and targets (32, 6)."""
    g = generator(7)
    x, y = (torch.randn(32, n, generator=g, dtype=torch.float64) for n in (10, 6))
    return x.to(dtype), y.to(dtype)


@dataclasses.dataclass
class Run:
    """A net being adapted, with everything that a training step needs."""

    net: nn.Module
    method: AdapterMethod
    layers: dict[str, LowRankLinear]
    optimizer: torch.optim.Optimizer
    total_steps: int

    def train(self, steps: Iterable[int]) -> list[float]:
        """Take those (0-based) steps on the full batch; the task loss before each of them."""
        x, y = regression_data(self.layers["0"].base.weight.dtype)
        losses = []
        for step in steps:
            loss = nn.functional.mse_loss(self.net(x), y)
            losses.append(loss.item())
            penalty = self.method.penalty(self.layers)
            (loss if penalty is None else loss + penalty).backward()
            rates = {group["name"]: group["lr"] for group in self.optimizer.param_groups}
            self.optimizer.step()
            self.method.after_step(self.layers, StepInfo(step, self.total_steps, rates))
            self.optimizer.zero_grad()
        return losses


def start(
    method: AdapterMethod,
    *,
    total_steps: int = 20,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    **adamw: Any,
) -> Run:
    """Adapt a small net and begin a run; `seed` is of the adapters, the net is always the same."""
    net = small_net(dtype)
    layers = inject(net, method, generator=generator(seed))
    groups = method.param_groups(layers, lr=LR, weight_decay=0.01)
    method.begin(layers, total_steps=total_steps)
    return Run(net, method, layers, torch.optim.AdamW(groups, **adamw), total_steps)
