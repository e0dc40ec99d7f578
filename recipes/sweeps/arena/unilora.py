"""Uni-LoRA: one short vector, from which a fixed random projection makes the factors of all layers.

    sora train rte --code recipes/sweeps/arena/unilora.py method.name=unilora method.d=16384

Li et al. 2025, arXiv 2506.00799, section 3, with the projection of PEFT (`peft.tuners.unilora`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from methods.base import AdapterMethod, Layers, LowRankLinear, Plan, StepInfo, Summary
from methods.configs import MethodConfig
from methods.errors import MethodError
from methods.factors import LowRankFactors
from methods.init import kaiming_factors

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


class UniLoraConfig(MethodConfig):
    """Options of Uni-LoRA; the defaults are PEFT's, except d."""

    paper = "Li et al. 2025, arXiv 2506.00799"

    d: int = Field(16384, ge=1, description="numbers that are trained, for all layers together")
    r: int = Field(4, ge=1, le=65536, description="rank of every adapted layer")
    alpha: float = Field(
        4.0, gt=0, description="scaling numerator; alpha/r is 1 in the paper and in PEFT"
    )
    init_bound: float = Field(
        0.02, gt=0, description="the trained numbers start uniform in [-init_bound, init_bound]"
    )
    proj_seed: int = Field(42, ge=0, description="seed of the projection")

    def start(self) -> tuple[int, float]:
        """Return rank and alpha at the start."""
        return self.r, self.alpha


class UniLora(AdapterMethod):
    """Uni-LoRA: `(A and B of all layers) = P theta` with d trained numbers theta.

    P has one entry in each row, 1 over the root of the number of rows that use the same number, so
    its columns are orthonormal.

    The optimiser of the run holds A and B; after each of its steps the method takes an AdamW step
    of its own on theta, with the gradient P^T (gradient of A and B), and replaces A and B by
    P theta. Departures from PEFT, both because a layer must equal its base before training:

    - The first step trains nothing. Before it B is zero, and A is drawn as in LoRA; after it both
      are P theta. (With warm-up the rate of the first step is 0.)
    - Gradients are clipped by the norm of those of A and B, which is at least that of theta's.

    What is stored is a plain LoRA of rank r. Its d numbers, and the seed, would suffice.

    Not for factors that are sharded (FSDP).
    """

    name = "unilora"
    config_class = UniLoraConfig
    config: UniLoraConfig

    def __init__(self, config: UniLoraConfig) -> None:
        super().__init__(config)
        self._theta: Tensor | None = None  # (d,)
        self._decay = 0.0
        self._used = False  # True once A and B are P theta

    def wrap(self, linear: nn.Module, *, generator: torch.Generator) -> LowRankLinear:
        """Wrap a layer like LoRA; the first one also draws theta."""
        c = self.config
        A, B = kaiming_factors(linear, c.r, generator)
        if self._theta is None:
            uniform = torch.rand(c.d, generator=generator, dtype=torch.float64) * 2 - 1
            self._theta = (c.init_bound * uniform).to(A)
        return LowRankLinear(linear, A, B, scaling=c.alpha / c.r, dropout=c.dropout)

    def param_groups(
        self, layers: Layers, *, lr: float, weight_decay: float
    ) -> list[dict[str, Any]]:
        """Return one group, whose rate and weight decay are those of theta."""
        self._decay = weight_decay
        return super().param_groups(layers, lr=lr, weight_decay=weight_decay)

    def start_from(self, layers: Layers, updates: Mapping[str, LowRankFactors]) -> None:
        """Raise `MethodError`: other factors are no P theta."""
        raise MethodError("unilora cannot start from an adapter: its factors follow from a vector")

    def plan(
        self,
        layers: Layers,
        *,
        total_steps: int,
        learning_rates: Mapping[str, Sequence[float]],
    ) -> Plan:
        """Return one phase, and how many numbers are trained."""
        return Plan((("training", total_steps),), notes=(self._trained(layers),))

    def _trained(self, layers: Layers) -> str:
        return f"{self.config.d:,} numbers are trained; the {_size(layers):,} of A and B follow"

    def begin(self, layers: Layers, *, total_steps: int) -> None:
        """Make the projection, and an optimiser for theta."""
        assert self._theta is not None
        c, like = self.config, next(iter(layers.values())).A
        index = projection(_size(layers), c.d, c.proj_seed)
        scale = index.bincount(minlength=c.d).to(like.dtype).rsqrt()[index]
        self._index, self._scale = index.to(like.device), scale.to(like.device)
        self._theta = nn.Parameter(self._theta.detach().to(like))
        self._adamw = torch.optim.AdamW([self._theta], weight_decay=self._decay)

    @torch.no_grad()
    def after_step(self, layers: Layers, info: StepInfo) -> None:
        """Take theta's step, except after the first one; set A and B to P theta."""
        assert self._theta is not None
        factors = _factors(layers)
        gradients = self.gradients(factors)
        if self._used:
            flat = torch.cat([g.flatten() for g in gradients]) * self._scale
            self._theta.grad = torch.zeros_like(self._theta).index_add_(0, self._index, flat)
            self._adamw.param_groups[0]["lr"] = info.learning_rates["factors"]
            self._adamw.step()
            self._theta.grad = None
        self._used = True
        sizes = [p.numel() for p in factors.values()]
        numbers = torch.split(self._theta[self._index] * self._scale, sizes)
        for p, new in zip(factors.values(), numbers, strict=True):
            p.data.copy_(new.view_as(p))

    def state_dict(self) -> dict[str, Tensor]:
        """Return theta, its moments, and whether A and B are P theta."""
        assert self._theta is not None
        moments = self._adamw.state.get(self._theta, {})
        state = {name: moments[name].clone() for name in _MOMENTS if name in moments}
        return {"theta": self._theta.detach().clone(), "used": torch.tensor(self._used), **state}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the state returned by `state_dict`."""
        assert self._theta is not None
        if not state:
            raise MethodError("unilora cannot continue another method's run")
        self._theta.copy_(state["theta"])
        self._used = bool(state["used"])
        self._adamw.state[self._theta] = {  # torch keeps "step" on the CPU
            name: state[name].clone() if name == "step" else state[name].to(self._theta, copy=True)
            for name in _MOMENTS
            if name in state
        }

    def summary(self, layers: Layers) -> Summary:
        """Count the components; the event says how many numbers are trained."""
        live, total = int(self.alive(layers)), sum(layer.rank for layer in layers.values())
        return Summary(live, total, (self._trained(layers),))

    def details(self, layers: Layers) -> dict[str, Any]:
        """Return the sizes of theta and of the factors."""
        return {"trained_numbers": self.config.d, "factor_numbers": _size(layers)}


def projection(rows: int, d: int, seed: int) -> Tensor:
    """Draw the trained number that each row of P uses (rows,), int64; each is used equally often.

    As `UniLoraModel.generate_index` of PEFT, to the bit.
    """
    generator = np.random.default_rng(seed)
    index = np.repeat(np.arange(d), rows // d)
    if rows % d:
        index = np.concatenate([index, generator.choice(d, size=rows % d, replace=False)])
    generator.shuffle(index)
    return torch.as_tensor(index, dtype=torch.long)


def _factors(layers: Layers) -> dict[str, nn.Parameter]:
    """Return all factors by name, in the order of the rows of P."""
    return {f"{path}.{kind}": p for path, m in layers.items() for kind, p in m.named_factors()}


def _size(layers: Layers) -> int:
    return sum(p.numel() for p in _factors(layers).values())
