"""The sum W + B A, computed in blocks of a tensor's rows that are read, changed and written.

Blocks are small enough for a processor's cache, which makes them fast, and memory does not depend
on how large a tensor is. Several threads can work on one tensor: each has buffers of its own.
"""

from __future__ import annotations

import os
import threading
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from sora_cli.core.errors import SoraError
from sora_cli.merge.incoming import Content, Update
from sora_cli.merge.plan import Item
from sora_cli.model.tensors import torch_dtype

_BLOCK = 2**18  # numbers
_ROWS = 8  # at least, for the product of a single row is rounded in another order
_LARGEST_BLOCK = 2**24  # numbers, for rows that are very long
_SMALL = 1e9  # a sum of squares below it: all numbers are finite, also in float16

Range = tuple[int, int]
Shape = tuple[int, ...]


class Blocks:
    """Makes blocks of these tensors, in any thread."""

    def __init__(self, items: list[Item]) -> None:
        self._sizes = _sizes(items)
        self._own = threading.local()

    @staticmethod
    def memory(items: list[Item], threads: int) -> int:
        """Return the bytes that the buffers take."""
        return threads * sum(_sizes(items))

    @staticmethod
    def ranges(item: Item) -> list[Range]:
        """Return each block's rows (of what is added to) or numbers (of what is replaced)."""
        if item.update is None:
            count = torch.Size(item.shape).numel()
            blocks = -(-count // _BLOCK)
        else:
            count = item.shape[0]
            blocks = -(-count // _most_rows(item))
        # none is much smaller than the others; an empty tensor has none
        edges = [k * count // max(blocks, 1) for k in range(blocks + 1)]
        return list(pairwise(edges))

    def add(self, item: Item, update: Update, rows: Range, source: int) -> memoryview:
        """Read rows of a weight, add the update's in float32 (float64 if W is), cast them once.

        The product comes first, then the scaling, then the sum: as PEFT does it.

        Args:
            source: descriptor of the base's file.

        Returns:
            The bytes to write; this thread's next block takes their place.

        Raises:
            SoraError: the result is not finite, or the file got shorter meanwhile.
        """
        assert item.source is not None
        dtype, (start, stop), columns = _dtype(item), rows, item.shape[1]
        shape = (stop - start, columns)
        raw, stored = self._buffers.view("raw", dtype, shape)
        _read(source, raw, item.source.start + start * columns * dtype.itemsize, item)
        wide = dtype in (torch.float32, torch.float64)
        work = stored
        if not wide:
            work = self._buffers.view("wide", torch.float32, shape)[1].copy_(stored)
        work.add_(self._product(update, rows, transposed=item.transposed))
        _check(work, dtype, item)
        if not wide:
            stored.copy_(work)
        return raw

    def replace(
        self, item: Item, content: Content, numbers: Range, source: int | None
    ) -> memoryview:
        """Read some numbers that the adapter holds in full, and cast them to the item's dtype.

        Args:
            source: descriptor of the adapter's file; None if the content is in memory.

        Returns, raises: see `add`.
        """
        dtype, (start, stop) = _dtype(item), numbers
        if isinstance(content, Tensor):
            part = content.reshape(-1)[start:stop]
        else:
            kind = torch_dtype(content.dtype)
            assert kind is not None
            assert source is not None
            read, part = self._buffers.view("wide", kind, (stop - start,))
            _read(source, read, content.start + start * kind.itemsize, item)
        if dtype.is_floating_point:
            _check(part, dtype, item)
        raw, target = self._buffers.view("raw", dtype, (stop - start,))
        target.copy_(part)
        return raw

    def _product(self, update: Update, rows: Range, *, transposed: bool) -> Tensor:
        """Return rows of `(B A) * scaling`, or of its transpose."""
        a, b = update.A, update.B
        if transposed:
            a = a[:, slice(*rows)]
        else:
            b = b[slice(*rows)]
        out = self._buffers.view("delta", torch.float32, (b.shape[0], a.shape[1]))[1]
        delta = torch.mm(b, a, out=out)
        if update.scaling != 1:
            delta.mul_(update.scaling)
        return delta.T if transposed else delta

    @property
    def _buffers(self) -> _Buffers:
        """Return this thread's buffers."""
        buffers: _Buffers | None = getattr(self._own, "buffers", None)
        if buffers is None:
            buffers = self._own.buffers = _Buffers(*self._sizes)
        return buffers


class _Buffers:
    """Memory that is used again and again, and what it is looked at as."""

    def __init__(self, raw: int, wide: int, delta: int) -> None:
        sizes = {"raw": raw, "wide": wide, "delta": delta}
        self._memory = {name: torch.empty(n, dtype=torch.uint8) for name, n in sizes.items()}
        self._views: dict[tuple[str, torch.dtype, Shape], tuple[memoryview, Tensor]] = {}

    def view(self, name: str, dtype: torch.dtype, shape: Shape) -> tuple[memoryview, Tensor]:
        """Return the start of a buffer as bytes and as numbers; made once, as blocks are many."""
        key = (name, dtype, shape)
        if key not in self._views:
            used = self._memory[name][: torch.Size(shape).numel() * dtype.itemsize]
            self._views[key] = used.numpy().data, used.view(dtype).view(shape)
        return self._views[key]


def _sizes(items: list[Item]) -> tuple[int, int, int]:
    """Return the bytes of the three buffers."""
    numbers = max((_numbers(item) for item in items), default=0)
    raw = max((_numbers(item) * _dtype(item).itemsize for item in items), default=0)
    return raw, 8 * numbers, 4 * numbers


def _most_rows(item: Item) -> int:
    """Return the most rows of a weight that are in a block."""
    columns = item.shape[1]
    return max(_BLOCK // columns, min(_ROWS, _LARGEST_BLOCK // columns), 1)


def _numbers(item: Item) -> int:
    """Return how many numbers the largest block of a tensor has."""
    numbers = torch.Size(item.shape).numel()
    most = _BLOCK if item.update is None else _most_rows(item) * item.shape[1]
    return min(most, numbers)


def _read(source: int, raw: Any, offset: int, item: Item) -> None:
    if os.preadv(source, [raw], offset) != len(raw):
        raise SoraError(f"'{item.name}' ends too early: did its file change meanwhile?")


def _check(work: Tensor, dtype: torch.dtype, item: Item) -> None:
    """Refuse numbers that are not finite once they are cast: the extremes tell, NaN included."""
    flat = work.reshape(-1)
    if work.dtype == torch.float32 and float(torch.dot(flat, flat)) < _SMALL:
        return
    low, high = (extreme.to(dtype) for extreme in torch.aminmax(work))
    if not bool(low.isfinite() & high.isfinite()):
        what = item.update or item.head
        raise SoraError(f"'{what}' would hold NaN or infinity as {dtype}")


def _dtype(item: Item) -> torch.dtype:
    dtype = torch_dtype(item.dtype)
    assert dtype is not None  # the plan is made of no other
    return dtype
