"""An adapted linear layer as one differentiable operation: `y = x W^T + b + dropout(x) A^T F^T`.

F (out, r) is B with gates and scaling folded in, so that nothing of the size of x or y is ever
scaled. Against plain autograd, which gives the same numbers:

- the input is not kept, or not once more (`methods.kept`); of the branch, (rows, r) numbers are;
- with many rows the update goes into the weight first, `x (W + F A)^T`: r (in + out) rows
  multiplications become r in out, and no pass over x and y is needed beside the frozen layer's own;
- with few rows, or in 16 bits, where small updates would be lost in the weight's rounding, the
  branch is added in place;
- thin products have their long side in the order that matrix libraries are fast in.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from methods.kept import in_blocks, keep, keep_dropped


def adapted_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    A: Tensor,
    B: Tensor,
    d: Tensor | None,
    *,
    scaling: float,
    dropped: Tensor | None = None,
) -> Tensor:
    """Return the output (..., out) of a frozen linear layer with a low-rank update.

    Under autocast all products are in its dtype. Otherwise the branch is in the factors' dtype and
    the output in the weight's.

    Args:
        x: (..., in).
        weight: (out, in), frozen. bias: (out,), frozen, or None.
        A: (r, in). B: (out, r). d: (r,) or None.
        scaling: of the branch, dropout's scale included.
        dropped: entries of x that the branch is not given, bool in x's shape.
    """
    device = x.device.type
    inner = A.dtype
    if torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        inner = torch.get_autocast_dtype(device)
        weight, bias = weight.to(inner), None if bias is None else bias.to(inner)
    with no_autocast(device):
        if torch.is_grad_enabled():
            kept = keep(x) if dropped is None else keep_dropped(x, dropped)
            y: Tensor = _AdaptedLinear.apply(  # type: ignore[no-untyped-call]
                x, weight, bias, A, B, d, scaling, inner, dropped, kept
            )
        else:
            F = (B * (scaling if d is None else scaling * d)).to(inner)
            y = _outputs(x, weight, bias, A.to(inner), F, dropped)
    # a view made inside the operation could not be changed in place, as Longformer does
    return y if x.ndim == 2 else y.view(*x.shape[:-1], y.shape[-1])


class _AdaptedLinear(torch.autograd.Function):
    """The operation, with outputs (rows, out).

    Its backward pass is given h = x A^T (rows, r), the factors, and `Kept`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        A: Tensor,
        B: Tensor,
        d: Tensor | None,
        scaling: float,
        inner: torch.dtype,
        dropped: Tensor | None,
        kept: Any,
    ) -> Tensor:
        strength = None if d is None else scaling * d  # a copy: d may change before backward
        a, F = A.to(inner), (B * (scaling if strength is None else strength)).to(inner)
        h = _down(x, a, dropped)
        ctx.project, tensors = kept
        ctx.scaling, ctx.shape, ctx.dtype = scaling, x.shape, x.dtype
        ctx.save_for_backward(
            weight, a, B, None if d is None else strength, F, h, dropped, *tensors
        )
        return _outputs(x, weight, bias, a, F, dropped, h)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        with no_autocast(gy.device.type):
            return _gradients(ctx, gy)


def _gradients(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
    """Return the gradients of the operation's arguments, of its output's gy (rows, out)."""
    weight, a, B, strength, F, h, dropped, *tensors = ctx.saved_tensors
    needed = ctx.needs_input_grad
    thin = gy.to(F.dtype)
    v = thin @ F  # (rows, r)
    gx = gA = gB = gd = None
    if needed[0]:
        gx = _input_gradient(gy, weight, v, a, F, dropped).view(ctx.shape).to(ctx.dtype)
    if needed[3]:
        gA = ctx.project(v, *tensors).to(B.dtype)
    if needed[4] or needed[5]:
        g = (h.t() @ thin).to(B.dtype)  # (r, out); h.t() @ thin is faster than thin.t() @ h
        if strength is None:
            gB = (g * ctx.scaling).t()
        else:
            gd = (B.t() * g).sum(dim=1) * ctx.scaling
            gB = (g * strength[:, None]).t()
    return gx, None, None, gA, gB, gd, None, None, None, None


def no_autocast(device: str) -> contextlib.AbstractContextManager[Any]:
    """Switch autocast off, also around a backward pass: all dtypes here are chosen by hand."""
    enabled = torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if enabled else contextlib.nullcontext()


def _down(x: Tensor, A: Tensor, dropped: Tensor | None) -> Tensor:
    """Return h = dropout(x) A^T (rows, r), without dropout's scale."""
    if dropped is None:
        return x.reshape(-1, x.shape[-1]).to(A.dtype) @ A.t()
    blocks = in_blocks(x.shape[-1], x, dropped)
    return torch.cat([part.masked_fill(mask, 0).to(A.dtype) @ A.t() for part, mask in blocks])


def _merges(rows: int, weight: Tensor, F: Tensor, dropped: Tensor | None) -> bool:
    """Tell whether the update goes into the weight first.

    This takes two passes over the weight; the branch takes two over the output and, in the
    backward pass, the input. The weight must also hold the update as precisely as the branch does.
    """
    precise = weight.dtype == F.dtype and weight.dtype in (torch.float32, torch.float64)
    n_out, n_in = weight.shape
    return precise and dropped is None and rows * (n_in + n_out) > 2 * n_in * n_out


def _outputs(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    A: Tensor,
    F: Tensor,
    dropped: Tensor | None,
    h: Tensor | None = None,
) -> Tensor:
    """Return y (rows, out), no view of anything."""
    rows = x.reshape(-1, x.shape[-1])
    if _merges(len(rows), weight, F, dropped):
        return linear(rows, torch.addmm(weight, F, A), bias)
    y = linear(rows.to(weight.dtype), weight, bias)
    h = _down(x, A, dropped) if h is None else h
    if y.dtype == F.dtype:
        return y.addmm_(h, F.t())
    return y.add_(h @ F.t())


def _input_gradient(
    gy: Tensor, weight: Tensor, v: Tensor, A: Tensor, F: Tensor, dropped: Tensor | None
) -> Tensor:
    """Return gy W + v A (rows, in), the second without the dropped entries."""
    if _merges(len(gy), weight, F, dropped):
        return gy @ torch.addmm(weight, F, A)
    gx = v @ A
    if dropped is not None:
        gx.masked_fill_(dropped.view(gx.shape), 0)
    return gx.to(weight.dtype).addmm_(gy.to(weight.dtype), weight)
