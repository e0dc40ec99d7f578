"""Dropout with cheap masks on a CPU; there torch's Bernoulli draw takes longer than the layer."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from methods.torch_internals import FakeTensor

_LEVELS = 1 << 16  # an entry is dropped or kept by 16 random bits
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by an entry's bytes


def zeroed(x: Tensor, dropped: Tensor) -> Tensor:
    """Copy x and zero the dropped entries; not recorded by autograd.

    The result equals `masked_fill`'s. On a CPU `masked_fill` branches on every entry, and its time
    depends on how predictable the mask is: six times longer than this at p = 0.1, twenty times at
    p = 0.5. A bitwise `and` has no branches.

    Args:
        dropped: bool, in x's shape.
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return x.masked_fill(dropped, 0)
    y = torch.empty_like(x)
    _bits(y).copy_(_keep_mask(dropped)).bitwise_and_(_bits(x))
    return y


def zero_(x: Tensor, dropped: Tensor) -> Tensor:
    """Zero the dropped entries of x in place, and return x."""
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return x.masked_fill_(dropped, 0)
    _bits(x).bitwise_and_(_keep_mask(dropped).to(_bits(x).dtype))
    return x


def _bits(x: Tensor) -> Tensor:
    return x.view(_INTEGERS[x.element_size()])


def _keep_mask(dropped: Tensor) -> Tensor:
    """Return a bit mask: int8 0 (no bits) for dropped entries, -1 (all bits) for the others."""
    return dropped.view(torch.int8) - 1


class Dropout(nn.Module):
    """Inverted dropout: entries are zero with probability p, the others scaled by 1 / (1 - p).

    On a CPU each entry takes 16 bits of a fast generator (SFC64). Each call seeds it from torch's
    global generator, so `torch.manual_seed` determines the masks and gradient checkpointing repeats
    them. On a CPU p is rounded to a multiple of 2^-16, and the scale follows the rounded p.
    Source: Srivastava et al. (2014), "Dropout", section 4.
    """

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"a dropout probability is at least 0 and below 1, not {p}")
        self.p = p

    @property
    def active(self) -> bool:
        """True if the layer drops anything now."""
        return self.training and self.p > 0

    def scale(self, device: torch.device) -> float:
        """Return the factor of the kept entries, 1 / (1 - p)."""
        return 1 / (1 - self._rounded(device))

    def _rounded(self, device: torch.device) -> float:
        return round(self.p * _LEVELS) / _LEVELS if device.type == "cpu" else self.p

    def draw(self, x: Tensor) -> Tensor:
        """Draw a mask of dropped entries, bool in x's shape, from the generator of x's device."""
        # NumPy's generator cannot be traced: neither by torch.compile nor on tensors without data
        if x.device.type != "cpu" or torch.compiler.is_compiling() or isinstance(x, FakeTensor):
            drawn = torch.empty(x.shape, dtype=torch.bool, device=x.device)
            return drawn.bernoulli_(self._rounded(x.device))
        seed = int(torch.empty((), dtype=torch.int64).random_())
        words = np.random.SFC64(seed).random_raw(-(-x.numel() // 4))  # 64 bits serve four entries
        bits = torch.from_numpy(words.view(np.int16))[: x.numel()].view(x.shape)
        # int16 starts at -2^15; torch vectorises a comparison in place, but none that returns bool
        return bits.lt_(round(self.p * _LEVELS) - _LEVELS // 2).to(torch.int8).view(torch.bool)

    def forward(self, x: Tensor) -> Tensor:
        """Drop entries of a tensor of any shape; in evaluation return the tensor unchanged."""
        if not self.active:
            return x
        if torch.compiler.is_compiling():
            return x.masked_fill(self.draw(x), 0) * self.scale(x.device)
        y: Tensor = _Dropped.apply(x, self.draw(x), self.scale(x.device))  # type: ignore[no-untyped-call]
        return y

    def extra_repr(self) -> str:
        """Show p in a printed model."""
        return f"p={self.p}"


class _Dropped(torch.autograd.Function):
    """Dropout as an autograd operation: zeroes and scales x, and its gradients of any order."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dropped: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(dropped)
        ctx.scale = scale
        return zeroed(x, dropped).mul_(scale)

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor, None, None]:
        return _Dropped.apply(gy, *ctx.saved_tensors, ctx.scale), None, None  # type: ignore[no-untyped-call]


def replace_dropouts(model: nn.Module) -> int:
    """Replace every `nn.Dropout` of a model by this dropout, in place, and return their number.

    The distribution is the same (on a CPU with rounded p), but the same seed gives other masks.
    """
    dropouts = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) is nn.Dropout and child.p < 1 and not child.inplace
    ]
    for parent, name, child in dropouts:
        setattr(parent, name, Dropout(child.p).train(child.training))
    return len(dropouts)
