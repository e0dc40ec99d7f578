"""Frozen linear layers that take the faster of torch's two matrix libraries for each product.

A floor must not be slower than what it is the floor of, and which library is faster depends on the
processor, the sizes and the order of the factors. So each kind of product is timed at its first
use, by both. Training does not choose so: a run that goes on elsewhere must compute the same bytes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from methods.inject import replace
from methods.products import has_onednn
from methods.torch_internals import onednn_linear

_TRIALS = 5

Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def use_faster_products(model: nn.Module) -> None:
    """Replace the frozen linear layers of a model on a CPU; a GPU has one library only."""
    frozen = {
        path: layer
        for path, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and not layer.weight.requires_grad
    }
    for path, layer in frozen.items():
        if layer.weight.device.type == "cpu" and has_onednn():
            replace(model, path, FasterLinear(layer))


class FasterLinear(nn.Module):
    """A frozen linear layer."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        y: Tensor = _Product.apply(x.flatten(0, -2), self.weight, self.bias)  # type: ignore[no-untyped-call]
        return y.view(*x.shape[:-1], -1)


class _Product(torch.autograd.Function):
    """x W^T + b, with a gradient for x alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return _product(gradient, weight.t(), None), None, None


_faster: dict[tuple[Any, ...], Product] = {}


def _product(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    kind = (a.shape, a.stride(), b.shape, b.stride(), bias is None)
    if kind not in _faster:
        ways: list[Product] = [linear, onednn_linear]
        _faster[kind] = min(ways, key=lambda way: _seconds(way, a, b, bias))
    return _faster[kind](a, b, bias)


def _seconds(way: Product, a: Tensor, b: Tensor, bias: Tensor | None) -> float:
    way(a, b, bias)  # oneDNN makes a kernel for new sizes
    taken = []
    for _ in range(_TRIALS):
        start = time.process_time()  # of the processor: another program may be running
        way(a, b, bias)
        taken.append(time.process_time() - start)
    return min(taken)
