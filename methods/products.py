"""Products of float32 matrices on a CPU, by the faster of torch's two matrix libraries.

torch uses MKL for float32, and oneDNN only for 16 bits. On AMD processors oneDNN takes a tenth less
time for a layer's own product, a third to a half less for thin products (rank r), and a quarter of
the time at r = 3 (`benchmarks/products.py`). On a Xeon (family 6 model 207) it takes 5 % more time
for a layer's own product and up to 60 % more for most thin ones: Intel processors keep MKL.
"""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import linear

from methods.sharding import is_plain
from methods.torch_internals import onednn_linear

_FEWEST = 1 << 18
"""Entries of both matrices together; below this a call of oneDNN costs more than it saves."""


def product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return a b^T + bias (m, n), without a gradient of its own.

    Args:
        a: (m, k).
        b: (n, k), contiguous or a transpose.
        bias: (n,), or None.
    """
    if _by_onednn(a, b):
        return onednn_linear(a, b, bias)
    return linear(a, b, bias)


def add_product_(into: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Add a b^T to a matrix (m, n) of the same dtype, and return it; see `product`."""
    if _by_onednn(a, b):
        return into.add_(onednn_linear(a, b, None))
    return into.addmm_(a, b.t())


def _by_onednn(a: Tensor, b: Tensor) -> bool:
    # first: a question about sizes would make the compiler recompile for every new size
    if torch.compiler.is_compiling():
        return False
    return (
        a.dtype is torch.float32 is b.dtype
        and a.numel() + b.numel() >= _FEWEST
        and a.device.type == "cpu"
        and is_plain(a)
        and is_plain(b)
        and prefers_onednn()
    )


def has_onednn() -> bool:
    """Return True if torch was built with oneDNN."""
    available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return available


@cache
def prefers_onednn() -> bool:
    """Return True on an AMD processor, if torch has oneDNN."""
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as lines:
            amd = "AuthenticAMD" in lines.read(200)  # the first core's entry names the vendor
    except OSError:
        amd = "AuthenticAMD" in platform.processor()
    return amd and has_onednn()
