"""One tensor at a time, a block of rows at a time: numbers read, changed and handed on for writing.

Blocks are small enough for a processor's cache, which makes them fast, and memory does not depend
on how large a tensor is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, BinaryIO

import torch
from torch import Tensor

from sora_cli.errors import SoraError
from sora_cli.merge_incoming import Content, Update
from sora_cli.merge_plan import Item
from sora_cli.tensor_file import torch_dtype

_BLOCK = 2**18  # numbers
_ROWS = 64  # a product of few rows is rounded in another order than the whole one
_LARGEST_BLOCK = 2**24  # numbers, for rows that are very long
_BUFFERS = 4  # one is filled, the others are being written
_SMALL = 1e9  # a sum of squares below it: all numbers are finite, also in float16

Emit = Callable[[Any], "Future[None]"]
"""Takes the bytes of a block; they may be overwritten once the future is done."""


class Blocks:
    """The buffers, and what is done in them.

    Args:
        items: all tensors that will be made here.
    """

    def __init__(self, items: list[Item]) -> None:
        numbers = max((_numbers(item) for item in items), default=0)
        width = max((_dtype(item).itemsize for item in items), default=0)
        self._free: deque[tuple[Tensor, Future[None] | None]] = deque(
            (torch.empty(numbers * width, dtype=torch.uint8), None) for _ in range(_BUFFERS)
        )
        self._wide, self._delta = (torch.empty(4 * numbers, dtype=torch.uint8) for _ in range(2))
        self._taken = self._wide
        self._views: dict[tuple[int, torch.dtype, tuple[int, ...]], tuple[Any, Tensor]] = {}

    @staticmethod
    def memory(items: list[Item]) -> int:
        """Bytes that the buffers take."""
        numbers = max((_numbers(item) for item in items), default=0)
        width = max((_dtype(item).itemsize for item in items), default=0)
        return numbers * (_BUFFERS * width + 8)

    def add(self, item: Item, update: Update, stream: BinaryIO, emit: Emit) -> None:
        """Read a weight, add its update in float32, cast it back once.

        The product comes first, then the scaling, then the sum: as PEFT does it.

        Args:
            stream: the base's file.

        Raises:
            SoraError: the result is not finite, or the file got shorter meanwhile.
        """
        assert item.source is not None
        dtype, columns = _dtype(item), item.shape[1]
        stream.seek(item.source.start)
        wide = dtype in (torch.float32, torch.float64)
        for start, stop in _blocks(item):
            shape = (stop - start, columns)
            raw, stored = self._take(dtype, shape)
            _read(stream, raw, item)
            work = stored
            if not wide:
                work = self._view(self._wide, torch.float32, shape)[1].copy_(stored)
            work.add_(self._product(update, start, stop, transposed=item.transposed))
            _check(work, dtype, item)
            if not wide:
                stored.copy_(work)
            self._give(raw, emit)

    def replace(self, item: Item, content: Content, emit: Emit) -> None:
        """Hand on a tensor that the adapter holds in full, cast to the item's dtype.

        Raises:
            SoraError: it holds NaN or infinity, or does in that dtype.
        """
        dtype = _dtype(item)
        for part in _parts(content, item):
            raw, target = self._take(dtype, tuple(part.shape))
            if dtype.is_floating_point:
                _check(part, dtype, item)
            target.copy_(part)
            self._give(raw, emit)

    def _product(self, update: Update, start: int, stop: int, *, transposed: bool) -> Tensor:
        """The rows of `(B A) * scaling`, or of its transpose."""
        a, b = update.A, update.B
        if transposed:
            a = a[:, start:stop]
        else:
            b = b[start:stop]
        shape = (b.shape[0], a.shape[1])
        delta = torch.mm(b, a, out=self._view(self._delta, torch.float32, shape)[1])
        if update.scaling != 1:
            delta.mul_(update.scaling)
        return delta.T if transposed else delta

    def _take(self, dtype: torch.dtype, shape: tuple[int, ...]) -> tuple[Any, Tensor]:
        """A buffer that is written by now: its bytes, and the numbers they stand for."""
        self._taken, written = self._free.popleft()
        if written is not None:
            written.result()
        return self._view(self._taken, dtype, shape)

    def _give(self, raw: Any, emit: Emit) -> None:
        self._free.append((self._taken, emit(raw)))

    def _view(
        self, buffer: Tensor, dtype: torch.dtype, shape: tuple[int, ...]
    ) -> tuple[Any, Tensor]:
        """The start of a buffer as bytes and as numbers; made once, the blocks are many."""
        key = (buffer.data_ptr(), dtype, shape)
        if key not in self._views:
            raw = buffer[: torch.Size(shape).numel() * dtype.itemsize]
            self._views[key] = raw.numpy().data, raw.view(dtype).view(shape)
        return self._views[key]


def _blocks(item: Item) -> Iterator[tuple[int, int]]:
    """Ranges of rows, all but the last of the same size and that not much smaller."""
    rows = item.shape[0]
    step = _rows(item)
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def _rows(item: Item) -> int:
    rows, columns = item.shape
    most = max(_BLOCK // columns, min(_ROWS, _LARGEST_BLOCK // columns), 1)
    blocks = -(-rows // most)
    return -(-rows // blocks)


def _numbers(item: Item) -> int:
    """In the largest block of a tensor."""
    if item.update is None:
        return min(_BLOCK, torch.Size(item.shape).numel())
    return min(_rows(item), item.shape[0]) * item.shape[1]


def _parts(content: Content, item: Item) -> Iterator[Tensor]:
    """A stored tensor's numbers, flat, little by little."""
    if isinstance(content, Tensor):
        flat = content.contiguous().reshape(-1)
        for start in range(0, flat.numel(), _BLOCK):
            yield flat[start : start + _BLOCK]
        return
    dtype = torch_dtype(content.dtype)
    assert dtype is not None
    with content.file.open("rb") as stream:
        stream.seek(content.start)
        left = torch.Size(content.shape).numel()
        buffer = torch.empty(min(left, _BLOCK) * dtype.itemsize, dtype=torch.uint8)
        while left:
            raw = buffer[: min(left, _BLOCK) * dtype.itemsize]
            _read(stream, raw.numpy().data, item)
            yield raw.view(dtype)
            left -= raw.numel() // dtype.itemsize


def _read(stream: BinaryIO, raw: Any, item: Item) -> None:
    if stream.readinto(raw) != len(raw):  # type: ignore[attr-defined]
        raise SoraError(f"'{item.name}' ends too early: {stream.name} is truncated or corrupt")


def _check(work: Tensor, dtype: torch.dtype, item: Item) -> None:
    """Whether all numbers are finite once they are cast: the extremes tell, and NaN is one."""
    flat = work.reshape(-1)
    if not work.numel() or (work.dtype == torch.float32 and float(torch.dot(flat, flat)) < _SMALL):
        return
    low, high = (extreme.to(dtype) for extreme in torch.aminmax(work))
    if not bool(low.isfinite() & high.isfinite()):
        what = item.update or item.head
        raise SoraError(f"'{what}' would hold NaN or infinity as {dtype}")


def _dtype(item: Item) -> torch.dtype:
    dtype = torch_dtype(item.dtype)
    assert dtype is not None  # the plan is made of no other
    return dtype
