"""Nested training (MatryoshkaLoRA): one run whose components are ordered by what they are worth.

    sora train rte --code recipes/sweeps/arena/nested.py method.name=nested
    sora prune runs/rte-nested-s0 -o small --mean-rank 2

Modoranu et al. 2026, arXiv 2605.07850, Algorithm 1, and the authors' program
(https://github.com/IST-DASLab/MatryoshkaLoRA, `adapters/matryoshka.py`, mask `diag`).
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from methods.base import AdapterMethod, LowRankLinear
from methods.configs import MethodConfig
from methods.init import factor_options, kaiming_factors


class NestedConfig(MethodConfig):
    """Options of nested training."""

    paper = "Modoranu et al. 2026, arXiv 2605.07850"

    r_max: int = Field(8, ge=1, le=65536, description="rank of every adapted layer")
    ranks: list[Annotated[int, Field(ge=1)]] = Field(
        [1, 2, 4, 8], min_length=1, description="nested ranks, rising; the last is r_max"
    )
    rank_scale: Literal["none", "rank", "sqrt"] = Field(
        "none", description="s_r, the weight of nested rank r in the sum: 1, 1/r or 1/sqrt(r)"
    )

    @model_validator(mode="after")
    def _nested(self) -> NestedConfig:
        if self.ranks != sorted(set(self.ranks)) or self.ranks[-1] != self.r_max:
            raise ValueError(f"ranks {self.ranks} must rise, and end with r_max {self.r_max}")
        return self


class Nested(AdapterMethod):
    """LoRA that trains the sum of nested updates.

    `dW = alpha / r_max * sum over r in ranks of s_r B[:, :r] A[:r]`, which is one update with a
    fixed diagonal between the factors, `dW = alpha / r_max * B diag(p) A`: p_i is the sum of s_r
    over all ranks r >= i (i from 1), so with s_r = 1 the number of nested ranks that hold component
    i. The first components get the largest gradients, and with them the larger part of the update.

    Departures: what is trained is also what is evaluated, saved and cut, with p in it. The authors'
    program leaves p out in evaluation and takes `s_r B[:, :r] A[:r]` for rank r, which is the
    trained update at no rank, r_max included. `sora prune` cuts by singular values instead, which
    is the best approximation at each rank (Eckart-Young), so at least as near as the prefix.
    """

    name = "nested"
    config_class = NestedConfig
    config: NestedConfig

    def wrap(self, linear: nn.Module, *, generator: torch.Generator) -> LowRankLinear:
        """Wrap a layer: A Kaiming-uniform, B zero, the diagonal p as gates that are not trained."""
        c = self.config
        A, B = kaiming_factors(linear, c.r_max, generator)
        p = torch.tensor(diagonal(c.ranks, c.rank_scale), **factor_options(linear))
        layer = LowRankLinear(linear, A, B, p, scaling=c.alpha / c.r_max, dropout=c.dropout)
        assert layer.d is not None
        layer.d.requires_grad_(False)
        return layer


_POWERS = {"none": 0.0, "rank": -1.0, "sqrt": -0.5}


def diagonal(ranks: list[int], rank_scale: str) -> list[float]:
    """Return p (r_max,) of nested ranks, of which the last is r_max."""
    power = _POWERS[rank_scale]
    return [sum(float(r) ** power for r in ranks if r >= i) for i in range(1, ranks[-1] + 1)]
