"""Adapted linear layers as one autograd operation: `y = x W^T + b + dropout(x) A^T F^T` for each.

F (out, r) is B with gates and scaling folded in, so nothing of the size of x or y is scaled. The
results equal those of plain autograd, with these differences in memory and time:

- x is not kept for the backward pass if its producer keeps it anyway (`methods.kept`); the branch
  keeps (rows, r) numbers;
- with many rows the update is added to the weight first, `x (W + F A)^T`: r (in + out) rows
  multiplications become r in out, without further passes over x and y;
- with few rows, or in 16 bits, where the weight's rounding would lose small updates, the branch is
  added in place;
- layers of one input (query, key and value, say) read it once, forward and backward, and their
  input gradients are added up inside the products;
- thin products have the rank first, `A x^T` (r, rows) and `F^T gy^T`: with r below 16, the width of
  a vector register, matrix libraries are up to four times slower in the other order;
- on a CPU the faster of two matrix libraries is used (`methods.products`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from methods.dropout import zero_, zeroed
from methods.kept import Kept, in_blocks, keep, keep_dropped
from methods.products import add_product_, product


class Branch(NamedTuple):
    """The operands of one adapted layer.

    Attributes:
        weight: (out, in), frozen. bias: (out,), frozen, or None.
        A: (r, in). B: (out, r). d: (r,) or None.
        scaling: of the update, dropout's scale included.
        dropped: mask of the entries of x that dropout hides from the update, bool in x's shape.
    """

    weight: Tensor
    bias: Tensor | None
    A: Tensor
    B: Tensor
    d: Tensor | None
    scaling: float
    dropped: Tensor | None = None


_TENSORS = 5  # the first fields of a Branch: tensors that are inputs of the autograd operation
_KEPT = 7  # fields of a `_State`, saved for the backward pass


def adapted_linear(x: Tensor, branches: Sequence[Branch]) -> list[Tensor]:
    """Return the outputs (..., out) of adapted layers that read the same input.

    Under autocast all products use its dtype. Otherwise the update is computed in the factors'
    dtype and the output in the weight's.

    Args:
        x: (..., in).
        branches: one layer, or several with equal dtypes on one device; all with a mask of dropped
            entries, or none.
    """
    device = x.device.type
    inner = branches[0].A.dtype
    if torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        inner = torch.get_autocast_dtype(device)
        branches = [_cast(branch, inner) for branch in branches]
    with no_autocast(device):
        if torch.is_grad_enabled():
            flat = [tensor for branch in branches for tensor in branch[:_TENSORS]]
            rest = [branch[_TENSORS:] for branch in branches]
            kept = _keep_input(x, [branch.dropped for branch in branches])
            ys = _AdaptedLinear.apply(x, inner, rest, kept, *flat)  # type: ignore[no-untyped-call]
        else:
            ys = [_output(x, branch, _folded(branch, inner)) for branch in branches]
    # reshaped out here: a view made inside an autograd operation cannot be changed in place, and
    # Longformer scales its queries so
    return [y if x.ndim == 2 else y.view(*x.shape[:-1], y.shape[-1]) for y in ys]


def _cast(branch: Branch, dtype: torch.dtype) -> Branch:
    weight, bias, A, B, d, scaling, dropped = branch
    cast = None if bias is None else bias.to(dtype)
    return Branch(weight.to(dtype), cast, A, B, d, scaling, dropped)


def _keep_input(x: Tensor, dropped: Sequence[Tensor | None]) -> list[Kept]:
    """Return the parts of x to keep: one for all branches, or with dropout one for each mask."""
    masks = [mask for mask in dropped if mask is not None]
    return [keep_dropped(x, mask) for mask in masks] or [keep(x)]


class _Folded(NamedTuple):
    """A branch's factors in the dtype of its products: A (r, in), F^T (r, out), strength (r,)."""

    A: Tensor
    Ft: Tensor
    strength: Tensor | None


def _folded(branch: Branch, dtype: torch.dtype) -> _Folded:
    d, scaling = branch.d, branch.scaling
    strength = None if d is None else scaling * d  # a copy: d may change before backward
    Ft = (branch.B.t() * (scaling if strength is None else strength[:, None])).to(dtype)
    return _Folded(branch.A.to(dtype), Ft.contiguous(), strength)


class _AdaptedLinear(torch.autograd.Function):
    """The autograd operation of `adapted_linear`, with outputs (rows, out).

    Saved for the backward pass: h = A x^T (r, rows), the factors, and the `Kept` of x.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        inner: torch.dtype,
        rest: Sequence[tuple[float, Tensor | None]],
        kept: Sequence[Kept],
        *flat: Tensor | None,
    ) -> tuple[Tensor, ...]:
        branches = [
            Branch(*flat[i * _TENSORS : (i + 1) * _TENSORS], *more)  # type: ignore[arg-type,call-arg]
            for i, more in enumerate(rest)
        ]
        folded = [_folded(branch, inner) for branch in branches]
        hs = _down(x, folded, [branch.dropped for branch in branches])
        # unused outputs get None instead of a zero gradient; the compiler cannot trace this call,
        # and removes zeros by itself
        if not torch.compiler.is_compiling():
            ctx.set_materialize_grads(False)
        ctx.scalings, ctx.shape, ctx.dtype = [b.scaling for b in branches], x.shape, x.dtype
        ctx.projections = [(project, len(tensors)) for project, tensors in kept]
        states = (
            (b.weight, f.A, b.B, f.strength, f.Ft, h, b.dropped)
            for b, f, h in zip(branches, folded, hs, strict=True)
        )
        ctx.save_for_backward(
            *(tensor for state in states for tensor in state),
            *(tensor for _, tensors in kept for tensor in tensors),
        )
        return tuple(_output(x, *each) for each in zip(branches, folded, hs, strict=True))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gys: Tensor | None) -> tuple[Tensor | None, ...]:
        devices = [gy.device.type for gy in gys if gy is not None]
        if not devices:
            return (None,) * len(ctx.needs_input_grad)
        with no_autocast(devices[0]):
            return _gradients(ctx, gys)


class _State(NamedTuple):
    """A branch in the backward pass, with fields of `Branch` and `_Folded`; h is (r, rows)."""

    weight: Tensor
    A: Tensor
    B: Tensor
    strength: Tensor | None
    Ft: Tensor
    h: Tensor
    dropped: Tensor | None


def _gradients(ctx: Any, gys: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    """Return the gradients of the operation's arguments from the outputs' gradients (rows, out)."""
    saved, size, needed = ctx.saved_tensors, _KEPT, ctx.needs_input_grad
    used = {  # an output that nobody used has no gradient, and gives none
        i: (_State(*saved[i * size : (i + 1) * size]), gy)
        for i, gy in enumerate(gys)
        if gy is not None
    }
    thin = {i: gy.to(state.Ft.dtype) for i, (state, gy) in used.items()}
    vs = {i: product(used[i][0].Ft, gy) for i, gy in thin.items()}  # (r, rows)
    gx = None
    if needed[0]:
        gx = _input_gradient([*used.values()], [*vs.values()]).view(ctx.shape).to(ctx.dtype)
    gAs = _gradients_for_down(ctx.projections, vs, saved[len(gys) * size :])
    flat: list[Tensor | None] = []
    for i in range(len(gys)):
        wanted = needed[_TENSORS * (i - len(gys)) :]
        gA = gB = gd = None
        if i in used and wanted[2]:
            gA = gAs[i].to(used[i][0].B.dtype)
        if i in used and (wanted[3] or wanted[4]):
            gB, gd = _gradients_for_up(used[i][0], thin[i], ctx.scalings[i])
        flat += [None, None, gA, gB, gd]
    return gx, None, None, None, *flat


def _gradients_for_down(
    projections: Sequence[tuple[Any, int]],
    vs: Mapping[int, Tensor],
    tensors: Sequence[Tensor | None],
) -> dict[int, Tensor]:
    """Return v x, the gradient of A, by branch; without dropout, all in one product."""
    if len(projections) == 1:
        whole: Tensor = projections[0][0](_joined([*vs.values()]).t(), *tensors)
        return dict(zip(vs, _parts(whole, [*vs.values()]), strict=True))
    gradients, begin = {}, 0
    for i, (project, count) in enumerate(projections):
        if i in vs:
            gradients[i] = project(vs[i].t(), *tensors[begin : begin + count])
        begin += count
    return gradients


def _joined(matrices: Sequence[Tensor]) -> Tensor:
    return matrices[0] if len(matrices) == 1 else torch.cat([*matrices])


def _parts(whole: Tensor, like: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Split a joined matrix into parts with as many rows as the matrices in `like`."""
    return torch.split(whole, [len(part) for part in like])


def _gradients_for_up(state: _State, gy: Tensor, scaling: float) -> tuple[Tensor, Tensor | None]:
    """Return the gradients of B and of d."""
    # F = B diag(strength), so gB = gF diag(strength), and gd = scaling * column sums of B o gF
    g = product(state.h, gy.t()).to(state.B.dtype)  # (r, out)
    if state.strength is None:
        return (g * scaling).t(), None
    return (g * state.strength[:, None]).t(), (state.B.t() * g).sum(dim=1) * scaling


def no_autocast(device: str) -> contextlib.AbstractContextManager[Any]:
    """Switch autocast off: the products here choose their dtypes themselves."""
    enabled = torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if enabled else contextlib.nullcontext()


def _down(
    x: Tensor, folded: Sequence[_Folded], dropped: Sequence[Tensor | None]
) -> Sequence[Tensor]:
    """Return h = A dropout(x)^T (r, rows) for every branch, without dropout's scale."""
    As, masks = [factors.A for factors in folded], [mask for mask in dropped if mask is not None]
    if masks:
        return [_down_dropped(x, A, mask) for A, mask in zip(As, masks, strict=True)]
    h = product(_joined(As), x.reshape(-1, x.shape[-1]).to(As[0].dtype))
    return _parts(h, As)


def _down_dropped(x: Tensor, A: Tensor, dropped: Tensor) -> Tensor:
    blocks = in_blocks(x.shape[-1], x, dropped)
    parts = [product(A, zeroed(part, mask).to(A.dtype)) for part, mask in blocks]
    return torch.cat(parts, dim=1)


def _merges(rows: int, weight: Tensor, Ft: Tensor, dropped: Tensor | None) -> bool:
    """Return True if adding the update to the weight first is faster, and as precise.

    It takes two passes over the weight; the branch takes two passes over the output and, in the
    backward pass, over the input. A 16-bit weight would round small updates away.
    """
    precise = weight.dtype == Ft.dtype and weight.dtype in (torch.float32, torch.float64)
    n_out, n_in = weight.shape
    return precise and dropped is None and rows * (n_in + n_out) > 2 * n_in * n_out


def _output(x: Tensor, branch: Branch, folded: _Folded, h: Tensor | None = None) -> Tensor:
    """Return y (rows, out) in memory of its own."""
    rows = x.reshape(-1, x.shape[-1])
    weight, Ft = branch.weight, folded.Ft
    if _merges(len(rows), weight, Ft, branch.dropped):
        return product(rows, torch.addmm(weight, Ft.t(), folded.A), branch.bias)
    y = product(rows.to(weight.dtype), weight, branch.bias)
    h = _down(x, [folded], [branch.dropped])[0] if h is None else h
    if y.dtype == Ft.dtype:
        return y.addmm_(h.t(), Ft)
    return y.add_(h.t() @ Ft)


def _input_gradient(used: Sequence[tuple[_State, Tensor]], vs: Sequence[Tensor]) -> Tensor:
    """Return the sum of gy W + v^T A (rows, in) over the branches; v^T A is masked by dropout."""
    merged = [_merges(len(gy), s.weight, s.Ft, s.dropped) for s, gy in used]
    gx = _update_gradient(
        [(s, v) for (s, _), v, merges in zip(used, vs, merged, strict=True) if not merges]
    )
    for (s, gy), merges in zip(used, merged, strict=True):
        weight = torch.addmm(s.weight, s.Ft.t(), s.A) if merges else s.weight
        thick = gy.to(weight.dtype)
        if gx is None:
            gx = product(thick, weight.t())
        else:
            gx = add_product_(gx.to(weight.dtype), thick, weight.t())
    assert gx is not None
    return gx


def _update_gradient(added: Sequence[tuple[_State, Tensor]]) -> Tensor | None:
    """Return the sum of v^T A (rows, in), with each branch's dropped entries zero.

    None if no branch is given.
    """
    masks = [s.dropped for s, _ in added if s.dropped is not None]
    As, vs = [s.A for s, _ in added], [v for _, v in added]
    if not masks:
        return _joined(vs).t() @ _joined(As) if added else None
    gx = vs[0].new_empty(vs[0].shape[1], As[0].shape[1])
    for into, *parts in in_blocks(gx.shape[1], gx, *masks, *(v.t() for v in vs)):
        terms = zip(As, parts[: len(As)], parts[len(As) :], strict=True)
        for i, (A, mask, v) in enumerate(terms):
            if i == 0:
                zero_(torch.mm(v, A, out=into), mask)
            else:
                into.add_(zero_(v @ A, mask))
    return gx
