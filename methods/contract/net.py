"""A small net, its data and a plain training loop, for the contract's checks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, mse_loss

from methods.base import AdapterMethod, LowRankLinear, StepInfo, optimizer_groups
from methods.baselines import Baseline, choose
from methods.inject import inject, replace

LR = 1e-2
STEPS = 20
HEAD = "2"
"""Path of the net's layer that plays the head for baselines."""

MethodFactory = Callable[..., AdapterMethod]
"""Makes a fresh method from options that every configuration has (targets, alpha, dropout)."""


def generator(seed: int = 0) -> torch.Generator:
    """Make a seeded generator on the CPU."""
    return torch.Generator().manual_seed(seed)


def small_net(dtype: torch.dtype = torch.float64, *, seed: int = 0) -> nn.Sequential:
    """Make a net of the linear layers "0" (10 -> 12) and "2" (12 -> 6), with tanh between."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(10, 12), nn.Tanh(), nn.Linear(12, 6)).to(dtype)


def regression_data(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Make inputs (32, 10) and targets (32, 6)."""
    g = generator(7)
    x, y = (torch.randn(32, n, generator=g, dtype=torch.float64) for n in (10, 6))
    return x.to(dtype), y.to(dtype)


def layer_inputs(layer: LowRankLinear) -> Tensor:
    """Make random inputs of one layer, (5, in) float64."""
    return torch.randn(5, layer.A.shape[1], generator=generator(3), dtype=torch.float64)


def base_output(layer: LowRankLinear, x: Tensor) -> Tensor:
    """Compute the wrapped nn.Linear's output from its weight and bias, without hooks."""
    weight, bias = layer.base.weight, layer.base.bias
    assert isinstance(weight, Tensor)
    assert isinstance(bias, Tensor)
    return linear(x, weight, bias)


@dataclass
class Run:
    """An adapted net with its method and optimiser."""

    net: nn.Module
    method: AdapterMethod
    layers: dict[str, LowRankLinear]
    optimizer: torch.optim.Optimizer
    total_steps: int

    def train(
        self, steps: Iterable[int], *, before_hook: Callable[[], None] | None = None
    ) -> list[float]:
        """Train for the given (0-based) steps, on all rows in one batch.

        Args:
            before_hook: called in each step, between `optimizer.step` and `after_step`.

        Returns:
            The task loss before each step.
        """
        x, y = regression_data(next(self.net.parameters()).dtype)
        losses = []
        for step in steps:
            loss = mse_loss(self.net(x), y)
            losses.append(loss.item())
            penalty = self.method.penalty(self.layers)
            total = loss if penalty is None else loss + penalty
            total.backward()  # type: ignore[no-untyped-call]
            rates = {group["name"]: group["lr"] for group in self.optimizer.param_groups}
            self.optimizer.step()
            if before_hook is not None:
                before_hook()
            info = StepInfo(step, self.total_steps, rates, self.optimizer.state)
            self.method.after_step(self.layers, info)
            self.optimizer.zero_grad()
        return losses

    def state(self) -> dict[str, Tensor]:
        """Copy everything that a step may change: the net, gradients, the method's state."""
        tensors = dict(self.net.state_dict())
        for name, p in self.net.named_parameters():
            if p.grad is not None:
                tensors[f"gradient of {name}"] = p.grad
        tensors |= {f"{self.method.name}'s {n}": t for n, t in self.method.state_dict().items()}
        return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def start(
    method: AdapterMethod,
    *,
    total_steps: int = STEPS,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    emptied: str | None = None,
    begun: bool = True,
    **adamw: Any,
) -> Run:
    """Adapt a small net and begin a run; with a baseline the net's head is trained, too.

    Args:
        seed: of the adapters; the net is always the same.
        emptied: path of a layer that gets an adapter of rank 0.
        begun: False: the caller calls `begin`.
    """
    net = small_net(dtype)
    layers: dict[str, LowRankLinear] = {}
    head: list[dict[str, Any]] = []
    if isinstance(method, Baseline):
        choose(net, method, head=[HEAD])
        head = [{"name": "head", "params": list(net.get_submodule(HEAD).parameters()), "lr": LR}]
    else:
        layers = inject(net, method, generator=generator(seed))
    if emptied is not None:
        layers[emptied] = without_components(layers[emptied])
        replace(net, emptied, layers[emptied])
    groups = [*optimizer_groups(method, layers, lr=LR, weight_decay=0.01), *head]
    if begun:
        method.begin(layers, total_steps=total_steps)
    return Run(net, method, layers, torch.optim.AdamW(groups, **adamw), total_steps)


def trained(make: MethodFactory, **options: Any) -> Run:
    """Make a run and train it to its end."""
    run = start(make(**options))
    run.train(range(STEPS))
    return run


def without_components(layer: LowRankLinear) -> LowRankLinear:
    """Return the same layer at rank 0: A (0, in), B (out, 0), d (0,) if there are gates."""
    d = None if layer.d is None else layer.d.detach()[:0].clone()
    A, B = layer.A.detach()[:0].clone(), layer.B.detach()[:, :0].clone()
    return LowRankLinear(layer.base, A, B, d, scaling=layer.scaling, dropout=layer.dropout.p).train(
        layer.training
    )


def first_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> str | None:
    """Return the name of a tensor that differs or that one side lacks; None: all are bit-equal."""
    for name in [*one, *(name for name in other if name not in one)]:
        if name not in one or name not in other or not torch.equal(one[name], other[name]):
            return name
    return None


def largest_difference(one: Tensor, other: Tensor) -> float:
    """Return the largest absolute difference between the entries of two tensors."""
    return float((one - other).detach().abs().max())
