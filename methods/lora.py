"""LoRA: a low-rank update with a fixed rank."""

from __future__ import annotations

import math

import torch
from torch import nn

from methods.base import AdapterMethod, LowRankLinear
from methods.configs import LoraConfig
from methods.init import kaiming_factors


class Lora(AdapterMethod):
    """LoRA (Hu et al. 2021, arXiv 2106.09685, section 4.1).

    `dW = alpha / r * B A`, A Kaiming-uniform with a = sqrt(5), B zero. With `use_rslora` the
    scaling is `alpha / sqrt(r)` (Kalajdzievski 2023, arXiv 2312.03732).
    """

    name = "lora"
    config_class = LoraConfig
    config: LoraConfig

    def wrap(self, linear: nn.Module, *, generator: torch.Generator) -> LowRankLinear:
        """Wrap a layer: A Kaiming-uniform, B zero, no gates."""
        c = self.config
        A, B = kaiming_factors(linear, c.r, generator)
        scaling = c.alpha / (math.sqrt(c.r) if c.use_rslora else c.r)
        return LowRankLinear(linear, A, B, scaling=scaling, dropout=c.dropout)
