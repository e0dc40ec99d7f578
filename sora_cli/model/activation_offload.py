"""Activation offload: tensors for the backward pass wait in the machine's memory, not the GPU's.

torch's hooks control the storage of tensors that a forward pass keeps
(https://docs.pytorch.org/docs/stable/autograd.html#torch.autograd.graph.saved_tensors_hooks). Its
own `save_on_cpu` copies all of them, frozen weights too, and waits for each copy. Here weights are
not moved, nor small tensors, nor views that repeat a smaller tensor. A storage that several
operations keep is copied once. The last tensor kept is not moved, as the backward pass needs it
first. Copies go to pinned memory, in the order of the GPU's own work: neither side waits for the
other, but copies and products do not overlap.

The bytes come back unchanged. Adapted layers keep their input itself while such hooks are active
(`methods.kept`), so their gradients equal a plain run's up to rounding.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.weak import WeakIdKeyDictionary

from methods.torch_internals import storage_key, version
from sora_cli.core.device import is_cuda

SMALLEST = 1 << 18
"""Tensors of at least this many bytes are moved: starting a copy takes as long as copying less."""


def to_host(tensor: Tensor) -> Tensor:
    """Return a copy in the machine's memory, pinned for CUDA."""
    pinned = is_cuda()
    copy = torch.empty_like(tensor, device="cpu", pin_memory=pinned)
    return copy.copy_(tensor, non_blocking=pinned)


@contextmanager
def offloaded(
    stays: Iterable[Tensor],
    *,
    device: str,
    on: bool = True,
    move: Callable[[Tensor], Tensor] = to_host,
) -> Iterator[None]:
    """Move the tensors that forward passes in this block keep, until their backward passes.

    Args:
        stays: parameters and buffers: their storages are not moved.
        device: type of the device from which tensors are moved.
        move: makes the copy in the other memory.
    """
    if not on:
        yield
        return
    moving = _Moving(frozenset(map(storage_key, stays)), device, move)
    with saved_tensors_hooks(moving.pack, moving.unpack):
        yield


class _Parcel:
    """A kept tensor, or its copy after `move`."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.device, self.moved = tensor.detach(), tensor.device, False

    def move(self, copied: Callable[[Tensor], Tensor]) -> None:
        self.tensor, self.moved = copied(self.tensor), True

    def open(self) -> Tensor:
        if not self.moved:
            return self.tensor
        back = torch.empty_like(self.tensor, device=self.device)
        return back.copy_(self.tensor, non_blocking=True)


class _Moving:
    """The pack and unpack hooks of one forward pass.

    Args:
        stays: keys of storages that are not moved.
    """

    def __init__(self, stays: frozenset[int], device: str, copied: Callable[[Tensor], Tensor]):
        self._stays, self._device, self._copied = stays, device, copied
        # storage -> its kept views, for the lifetime of the storage
        self._known: Any = WeakIdKeyDictionary(ref_type=weakref.ref)
        self._last: Callable[[], _Parcel | None] = lambda: None

    def pack(self, tensor: Tensor) -> Any:
        if not self._moves(tensor):
            return tensor
        parcels = self._known.setdefault(
            tensor.untyped_storage(), weakref.WeakValueDictionary[Any, _Parcel]()
        )
        # `version` counts in-place changes: a changed tensor is another one
        view = (tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype)
        parcel: _Parcel | None = parcels.get((view, version(tensor)))
        if parcel is None:
            parcel = parcels[view, version(tensor)] = _Parcel(tensor)
            # moved only when the next tensor is kept: the last one stays, backward needs it first
            before = self._last()
            if before is not None:
                before.move(self._copied)
            self._last = weakref.ref(parcel)
        return parcel

    def unpack(self, packed: Any) -> Tensor:
        return packed.open() if isinstance(packed, _Parcel) else packed

    def _moves(self, tensor: Tensor) -> bool:
        if tensor.device.type != self._device or tensor.layout is not torch.strided:
            return False
        return (
            SMALLEST <= tensor.nbytes <= tensor.untyped_storage().nbytes()
            and storage_key(tensor) not in self._stays
        )
