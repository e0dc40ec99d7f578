"""Initial factors, drawn in the shape of a linear layer."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn


def linear_shape(module: nn.Module) -> tuple[int, int] | None:
    """Return (in, out) of an nn.Linear or GPT-2's Conv1D; None for any other module."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    # by name: this package does not import transformers
    if type(module).__name__ == "Conv1D" and isinstance(module.weight, Tensor):
        n_in, n_out = module.weight.shape  # transformers' Conv1D stores (in, out)
        return n_in, n_out
    return None


def factor_options(linear: nn.Module) -> dict[str, Any]:
    """Return device and dtype for a layer's factors: the weight's, but at least float32."""
    weight = linear.weight
    assert isinstance(weight, Tensor)
    return {"dtype": torch.promote_types(weight.dtype, torch.float32), "device": weight.device}


def kaiming_factors(
    linear: nn.Module, rank: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw A (r, in) Kaiming-uniform, a = sqrt(5): U(-1/sqrt(in), 1/sqrt(in)); B (out, r) is 0."""
    n_in, n_out = _shape(linear)
    bound = 1 / math.sqrt(n_in)  # Kaiming: sqrt(6 / ((1 + a^2) n_in)) with a^2 = 5
    # drawn in float64 and then converted, so that one seed gives the same factors in every dtype
    A = (torch.rand(rank, n_in, generator=generator, dtype=torch.float64) * 2 - 1) * bound
    return A.to(**factor_options(linear)), torch.zeros(n_out, rank, **factor_options(linear))


def normal_factors(
    linear: nn.Module, rank: int, generator: torch.Generator, *, std: float
) -> tuple[Tensor, Tensor]:
    """Draw A (r, in) and B (out, r) from N(0, std^2)."""
    n_in, n_out = _shape(linear)
    A = torch.randn(rank, n_in, generator=generator, dtype=torch.float64) * std
    B = torch.randn(n_out, rank, generator=generator, dtype=torch.float64) * std
    return A.to(**factor_options(linear)), B.to(**factor_options(linear))


def _shape(linear: nn.Module) -> tuple[int, int]:
    shape = linear_shape(linear)
    if shape is None:
        raise TypeError(f"not a linear layer: {type(linear).__name__}")
    return shape
