"""Activation offload: what the backward pass needs waits in the machine's memory, not the GPU's.

torch lets hooks decide how the tensors are stored that a forward pass keeps
(https://docs.pytorch.org/docs/stable/autograd.html#torch.autograd.graph.saved_tensors_hooks). Its
own `save_on_cpu` copies all of them, frozen weights too, and waits for each copy. Here the weights
stay, and so do small tensors and those that repeat a smaller one; a storage that several operations
keep is copied once; and the last tensor kept, which the backward pass asks for first, is not moved.
Copies go to pinned memory, in the order of the GPU's own work: neither side waits for the other,
and copies and products do not overlap.

The bytes that come back are those that went. Adapted layers keep their input itself while such
hooks are there (`methods.kept`), so their gradients are those of a plain run up to rounding.
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
from sora_cli.core.errors import SoraError
from sora_cli.core.processes import check_alone
from sora_cli.recipe.recipe import TrainingBlock

KEY = "training.activation_offload"
SMALLEST = 1 << 18
"""Bytes from which a tensor is moved: copying less takes about as long as starting a copy."""
_OFF = f"{KEY}=false"


def check_offload(block: TrainingBlock) -> None:
    """Check that there is a GPU, and one process.

    Raises:
        SoraError: there is not.
    """
    if not block.activation_offload:
        return
    check_alone(KEY, _OFF)
    if not torch.cuda.is_available():
        raise SoraError(
            f"{KEY} moves tensors from a GPU to the machine's memory, and there is no GPU",
            hint=f"{_OFF}; less memory: training.gradient_checkpointing=true",
            key=KEY,
        )


def to_host(tensor: Tensor) -> Tensor:
    """Return a copy in the machine's memory, pinned where there is a GPU."""
    pinned = torch.cuda.is_available()
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
    """Move what a forward pass in this block keeps, until its backward pass asks for it.

    Args:
        stays: tensors whose storages stay where they are: parameters and buffers.
        device: the type of the device that tensors are moved away from.
        move: makes the copy that waits elsewhere.
    """
    if not on:
        yield
        return
    moving = _Moving(frozenset(map(storage_key, stays)), device, move)
    with saved_tensors_hooks(moving.pack, moving.unpack):
        yield


class _Parcel:
    """A kept tensor: itself, until `move` puts a copy in its place."""

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
    """The hooks of one forward pass.

    Args:
        stays: keys of storages that are not moved.
    """

    def __init__(self, stays: frozenset[int], device: str, copied: Callable[[Tensor], Tensor]):
        self._stays, self._device, self._copied = stays, device, copied
        # storage -> what of it is kept, for as long as the storage is there
        self._known: Any = WeakIdKeyDictionary(ref_type=weakref.ref)
        self._last: Callable[[], _Parcel | None] = lambda: None

    def pack(self, tensor: Tensor) -> Any:
        if not self._goes(tensor):
            return tensor
        parcels = self._known.setdefault(
            tensor.untyped_storage(), weakref.WeakValueDictionary[Any, _Parcel]()
        )
        view = (tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype)
        parcel: _Parcel | None = parcels.get((view, version(tensor)))
        if parcel is None:
            parcel = parcels[view, version(tensor)] = _Parcel(tensor)
            before = self._last()
            if before is not None:
                before.move(self._copied)
            self._last = weakref.ref(parcel)
        return parcel

    def unpack(self, packed: Any) -> Tensor:
        return packed.open() if isinstance(packed, _Parcel) else packed

    def _goes(self, tensor: Tensor) -> bool:
        if tensor.device.type != self._device or tensor.layout is not torch.strided:
            return False
        return (
            SMALLEST <= tensor.nbytes <= tensor.untyped_storage().nbytes()
            and storage_key(tensor) not in self._stays
        )
