"""Access to factors that FSDP2 (`torch.distributed.fsdp.fully_shard`) splits among processes.

Outside the forward and backward pass of its module, a sharded parameter is a DTensor: each process
holds some of its rows, perhaps none. Entrywise operations work on the `local` rows. All others need
the `whole` tensor; this communicates, so every process must call it at the same point. Inside the
passes parameters are ordinary tensors, so layers need no special code.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

_PLAIN = frozenset({Tensor, nn.Parameter})


def is_plain(tensor: Tensor) -> bool:
    """Return True if a tensor is a plain Tensor or Parameter: neither sharded nor fake."""
    return type(tensor) in _PLAIN


def is_sharded(tensor: Tensor) -> TypeGuard[DTensor]:
    """Return True if a tensor is a DTensor."""
    if is_plain(tensor):
        return False
    # the import is slow, and a DTensor can exist only if the module was imported already
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def whole(tensor: Tensor) -> Tensor:
    """Gather a sharded tensor on every process, differentiably; returns other tensors unchanged."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """Return this process's rows, sharing their memory; call it without gradients."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def joined(tensors: Iterable[Tensor]) -> Tensor:
    """Gather tensors (r,) of any lengths and concatenate them."""
    return torch.cat([whole(t) for t in tensors])


def like(value: Tensor, target: Tensor) -> Tensor:
    """Convert a value to the dtype, device and sharding of a tensor with the same shape.

    Args:
        value: if not sharded, it must be equal on every process; then nothing is communicated.
    """
    if not is_sharded(target):
        return whole(value).to(target)
    if is_sharded(value):
        return value
    from torch.distributed.tensor import DTensor, Replicate

    mesh, value = target.device_mesh, value.to(target.device, target.dtype)
    copies = DTensor.from_local(value, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return copies.redistribute(placements=target.placements)


def agreed(tensor: Tensor) -> Tensor:
    """Return the first process's tensor on every process; all must call it, with equal shapes.

    Decompositions may differ between processors in their last bits or in signs.
    """
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized()):
        return tensor
    if distributed.get_world_size() == 1:
        return tensor
    sent = tensor.contiguous()
    distributed.broadcast(sent, src=0)
    return sent
