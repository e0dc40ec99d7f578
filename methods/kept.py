"""The tensors that an adapted layer keeps of its input x for the backward pass.

The gradient of A needs x only in the product `V^T x` (r, in). Keeping x itself would double the
memory of a frozen model, whose own backward pass needs no linear layer's input. If the operation
that made x already keeps tensors that determine x, these are used instead, at no extra memory:

- GELU keeps its input u; x = gelu(u) is computed again.
- A product keeps both sides (SwiGLU's silu(gate) * up); x = a * b is computed again.
- LayerNorm and RMSNorm keep their input u and the rows' statistics. x = (u - mean) rstd * w + b is
  affine in u, so `V^T x` follows from `(rstd V)^T u` without computing x.

autograd exposes the tensors kept by an operation as `_saved_*` attributes of its node
(https://docs.pytorch.org/docs/stable/notes/autograd.html#saved-tensors). FSDP frees a norm's weight
at the end of its module's forward pass. Then x itself is kept, because layers after that module run
their backward pass before the weight is gathered again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import gelu

from methods.dropout import zeroed
from methods.products import add_product_, product
from methods.torch_internals import has_saved_tensor_hooks, saved

_BLOCK = 1 << 19
"""Entries of x computed at a time: 2 MB in float32, about a core's second-level cache."""

Projection = Callable[..., Tensor]
"""(V (rows, r), *kept tensors) -> V^T x (r, in)."""
Kept = tuple[Projection, tuple[Tensor | None, ...]]


def keep(x: Tensor) -> Kept:
    """Return a function that computes `V^T x` later, and its tensors (at worst x itself).

    Args:
        x: (..., in).
    """
    if torch.compiler.is_compiling():  # the compiler chooses the tensors to keep by itself
        return _of_itself, (x,)
    node = x.grad_fn
    # reading a saved tensor calls the unpack hook, which gradient checkpointing allows only once
    if node is None or has_saved_tensor_hooks():
        return _of_itself, (x,)
    return _from_producer(node, x) or (_of_itself, (x,))


def keep_dropped(x: Tensor, dropped: Tensor) -> Kept:
    """Return the same pair as `keep` for x (..., in) with dropped entries (bool, in x's shape)."""
    return _of_dropped, (x.detach(), dropped)


def _from_producer(node: Any, x: Tensor) -> Kept | None:
    match node.name():
        case "GeluBackward0":
            return _gelu_input(node)
        case "NativeLayerNormBackward0":
            return _layer_norm_input(node)
        case "MulBackward0":
            return _factors(node, x)
    return None


def _gelu_input(node: Any) -> Kept:
    approximate, u = saved(node, "approximate", "self")
    return partial(_of_gelu, approximate), (u.detach(),)


def _layer_norm_input(node: Any) -> Kept | None:
    (shape,) = saved(node, "normalized_shape")
    if len(shape) != 1:
        return None
    tensors, affine = saved(node, "input", "result1", "result2"), saved(node, "weight", "bias")
    if any(t is not None and _is_freed(t) for t in affine):
        return None
    return _of_normalised, tuple(None if t is None else t.detach() for t in (*tensors, *affine))


def _factors(node: Any, x: Tensor) -> Kept | None:
    """Return both sides of a product, or the operands of RMSNorm's `weight * (u * rstd)`."""
    left, right = saved(node, "self", "other")
    if left is not None and right is not None:
        left, right = left.detach(), right.detach()
        if right.shape == (*x.shape[:-1], 1) and left.shape == x.shape:
            return _of_normalised, (left, None, right, None, None)
        return (_of_product, (left, right)) if left.shape == right.shape == x.shape else None
    # autograd keeps a side only for the other side's gradient: of `weight * (u * rstd)` with a
    # frozen weight it keeps the weight here, and u and rstd at the node of the inner product
    weight, other = (left, 1) if left is not None else (right, 0)
    inner = node.next_functions[other][0]
    if weight is None or weight.shape != x.shape[-1:] or inner is None or _is_freed(weight):
        return None
    normalised = _factors(inner, x) if inner.name() == "MulBackward0" else None
    if normalised is None or normalised[0] is not _of_normalised or normalised[1][3] is not None:
        return None
    return _of_normalised, (*normalised[1][:3], weight.detach(), None)


def _of_itself(v: Tensor, x: Tensor) -> Tensor:
    return product(v.t(), _rows(x).to(v.dtype).t())


def _of_gelu(approximate: str, v: Tensor, u: Tensor) -> Tensor:
    return _blockwise(partial(gelu, approximate=approximate), v, u)


def _of_dropped(v: Tensor, x: Tensor, dropped: Tensor) -> Tensor:
    return _blockwise(zeroed, v, x, dropped)


def _of_product(v: Tensor, left: Tensor, right: Tensor) -> Tensor:
    return _blockwise(torch.mul, v, left, right)


def _blockwise(make: Callable[..., Tensor], v: Tensor, *tensors: Tensor) -> Tensor:
    """Return V^T make(*tensors); on a CPU in blocks of rows, so that each block stays in cache."""
    out = v.new_zeros(v.shape[1], tensors[0].shape[-1])
    for part, *parts in in_blocks(out.shape[1], v, *tensors):
        add_product_(out, part.t(), make(*parts).to(v.dtype).t())
    return out


def in_blocks(width: int, *tensors: Tensor) -> Iterable[tuple[Tensor, ...]]:
    """Split tensors (..., any) into matching blocks of rows.

    On a GPU, and under a compiler (which makes its own loops), one block holds all rows.

    Args:
        width: columns of the widest tensor.
    """
    flat = [_rows(t) for t in tensors]
    if torch.compiler.is_compiling():
        return [tuple(flat)]
    rows = max(_BLOCK // max(width, 1), 1) if flat[0].device.type == "cpu" else len(flat[0])
    return zip(*(torch.split(t, max(rows, 1)) for t in flat), strict=True)


def _of_normalised(
    v: Tensor,
    u: Tensor,
    mean: Tensor | None,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
) -> Tensor:
    """Return V^T x for x = (u - mean) rstd * weight + bias, in the precision of u."""
    v = v.to(u.dtype)
    scaled = v * rstd.reshape(-1, 1)  # (rows, r)
    out = product(scaled.t(), _rows(u).t())  # (r, in)
    if mean is not None:
        out -= scaled.t() @ mean.reshape(-1, 1)
    if weight is not None:
        out *= weight
    if bias is not None:
        out += torch.outer(v.sum(dim=0), bias)
    return out


def _rows(t: Tensor) -> Tensor:
    return t if t.ndim == 2 else t.reshape(-1, t.shape[-1])  # v of rank 0 is (rows, 0) already


def _is_freed(t: Tensor) -> bool:
    """Return True if a tensor's memory was freed: reading it would crash the process."""
    return t.untyped_storage().size() == 0
