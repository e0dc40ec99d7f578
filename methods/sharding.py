"""Factors that FSDP2 (`torch.distributed.fsdp.fully_shard`) has split among processes.

Outside the forward and backward pass of its module such a parameter is a DTensor: each process
holds some rows of it, perhaps none. Operations on single entries work on the `local` rows; all
others take the `whole` tensor, which every process must ask for at the same point, because that is
communication. Inside the passes parameters are ordinary tensors, so layers need no special code.
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
    """Tell whether a tensor is of no subclass: neither sharded nor faked."""
    return type(tensor) in _PLAIN


def is_sharded(tensor: Tensor) -> TypeGuard[DTensor]:
    """Tell whether a tensor is a DTensor."""
    if is_plain(tensor):
        return False
    module = sys.modules.get("torch.distributed.tensor")  # slow to import, and whoever has one did
    return module is not None and isinstance(tensor, module.DTensor)


def whole(tensor: Tensor) -> Tensor:
    """Return all of a tensor on every process, differentiably; others are returned as they are."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """Return the rows that this process holds, in the same memory; call it without gradients."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def joined(tensors: Iterable[Tensor]) -> Tensor:
    """Join whole tensors (r,) of any lengths into one."""
    return torch.cat([whole(t) for t in tensors])


def like(value: Tensor, target: Tensor) -> Tensor:
    """Return a value in the dtype, on the device and with the sharding of a tensor of its shape.

    Args:
        value: if it is whole, the same on every process: nothing is sent.
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
    """Return the first process's tensor on every process; each must call this, with one shape.

    Decompositions may differ in their last bits, or in signs, between processors.
    """
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized()):
        return tensor
    if distributed.get_world_size() == 1:
        return tensor
    sent = tensor.contiguous()
    distributed.broadcast(sent, src=0)
    return sent
