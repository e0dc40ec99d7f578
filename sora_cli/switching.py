"""A model without its adapters for a moment."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from methods.base import Layers


@contextmanager
def switched_off(layers: Layers) -> Iterator[None]:
    """Every factor is zero meanwhile, so that the layers give what their bases do.

    Afterwards they have the very tensors they had before, to the bit. Not for training.
    """
    parameters = [p for layer in layers.values() for _, p in layer.named_factors()]
    kept = [p.data for p in parameters]
    try:
        for parameter in parameters:  # all of them: a factor that is NaN would not vanish
            parameter.data = torch.zeros_like(parameter.data)
        yield
    finally:
        for parameter, tensor in zip(parameters, kept, strict=True):
            parameter.data = tensor
