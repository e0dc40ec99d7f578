"""The sum W + dW, computed in blocks of a tensor's rows.

The share of the update that survives rounding is measured block by block, too.

Blocks fit into a processor's cache, which makes them fast, and memory does not grow with the size
of a tensor. Several threads can work on one tensor: each has its own buffers.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from methods.updates import Rescaled, Update
from sora_cli.adapter.parts.part import Content
from sora_cli.adapter.survival import Overlap
from sora_cli.core.errors import SoraError
from sora_cli.merge.plan import NARROW, Item
from sora_cli.merge.rounding import Storing, inner, round_stochastically
from sora_cli.model.tensors import dtype_name, torch_dtype

_BLOCK = 2**18  # numbers
_ROWS = 8  # fewest rows in a block: the product of a single row is rounded in another order
_LARGEST_BLOCK = 2**24  # numbers; bounds blocks of very long rows
_RANDOM = 16  # bytes of temporaries for each number that is rounded stochastically
_SMALL = 1e9  # below this sum of squares all numbers are below 65504, finite also in float16

Range = tuple[int, int]
Shape = tuple[int, ...]
Block = tuple[memoryview, Overlap | None]
"""Bytes of a block, and the measured part of the update in it; None: nothing was measured."""


class Blocks:
    """Computes blocks of planned tensors, in any thread."""

    def __init__(self, items: list[Item], storing: Storing) -> None:
        self._sizes = _sizes(items)
        self._own = threading.local()
        self._storing = storing

    @staticmethod
    def memory(items: list[Item], threads: int, storing: Storing) -> int:
        """Return the bytes of all threads' buffers, with those for stochastic rounding."""
        random = _RANDOM * max((_numbers(item) for item in items), default=0)
        return threads * (
            sum(_sizes(items).values()) + (random if storing.rounding == "stochastic" else 0)
        )

    @staticmethod
    def ranges(item: Item) -> list[Range]:
        """Return the blocks of a tensor as ranges: of rows to add to, or of numbers to replace."""
        if item.update is None:
            count = torch.Size(item.shape).numel()
            blocks = -(-count // _BLOCK)
        else:
            count = item.rows
            blocks = -(-count // _most_rows(item))
        # blocks of nearly equal size; an empty tensor has no block
        edges = [k * count // max(blocks, 1) for k in range(blocks + 1)]
        return list(pairwise(edges))

    def add(
        self,
        item: Item,
        update: Update,
        rows: Range,
        *,
        content: Content,
        source: int | None,
        square_known: bool = False,
    ) -> Block:
        """Compute rows of W + dW in float32 (float64 if W is), rounded once to the item's dtype.

        As in PEFT, the product comes first, then the scaling, then the sum.

        Args:
            content: W, from the base, or the adapter's own tensor in its place.
            source: descriptor of W's file; None if W is in memory.
            square_known: ||dW||^2 is known already (see `Update.squared`) and is not summed again.

        Returns:
            The bytes to write (valid until this thread's next block), and the part of the update
            in them.
        """
        (start, stop), columns = rows, item.columns
        shape = (stop - start, columns)
        base = self._base(item, start * columns, shape, content, source)
        raw, total = self._buffers.view("total", base.dtype, shape)
        memory = self._buffers.view("delta", torch.float32, shape)[1]
        delta = update.add(base, rows, memory, total, transposed=item.transposed)
        if total.dtype != _dtype(item):
            raw = self._store(item, total, start * columns)
        change = torch.sub(total, base, out=base)  # dW' = W' - W, after rounding
        along = inner(change.float(), delta)
        if not math.isfinite(along):
            _check(total, _dtype(item), item)
        own = 0.0 if square_known else inner(delta, delta)
        return raw, Overlap(own, along, self._square(item, change))

    def with_norms(
        self, item: Item, update: Update, content: Content, source: int | None
    ) -> Update:
        """Give DoRA's update the norms of the whole weight, if it needs them before its first row.

        Args: see `add`. Other updates are returned unchanged.
        """
        if not isinstance(update, Rescaled) or not update.needs_norms(transposed=item.transposed):
            return update
        squares = torch.zeros(item.columns, dtype=torch.float64)
        for rows in self.ranges(item):
            (start, stop), columns = rows, item.columns
            shape = (stop - start, columns)
            base = self._base(item, start * columns, shape, content, source)
            memory = self._buffers.view("delta", torch.float32, shape)[1]
            delta = update.direction.delta(rows, memory, transposed=item.transposed)
            squares += (base + delta).double().square().sum(0)
        return update.with_norms(squares)

    def replace(
        self, item: Item, content: Content, numbers: Range, source: int | None, base: int | None
    ) -> Block:
        """Read numbers of a tensor stored in full, and cast them to the item's dtype.

        Args:
            source: descriptor of the content's file; None if the content is in memory.
            base: descriptor of the base's file, to measure the change of the base's numbers; None:
                not measured.

        Returns: see `add`.
        """
        dtype, (start, stop) = _dtype(item), numbers
        shape = (stop - start,)
        if isinstance(content, Tensor):
            part = content.reshape(-1)[start:stop]
        else:
            kind = torch_dtype(content.dtype)
            assert kind is not None
            assert source is not None
            read, part = self._buffers.view("read", kind, shape)
            _read(source, read, content.start + start * kind.itemsize, item)
        if item.head is None:
            return self._convert(item, part), None
        if dtype.is_floating_point:
            _check(part, dtype, item)
        if item.dtype not in NARROW:
            raw, target = self._buffers.view("stored", dtype, shape)
            target.copy_(part)
            return raw, None
        total = self._buffers.view("total", torch.float32, shape)[1].copy_(part)
        if base is None:
            return self._store(item, total, start), None
        assert item.source is not None
        before = self._base(item, start, shape, item.source, base)
        delta = torch.sub(total, before, out=self._buffers.view("delta", torch.float32, shape)[1])
        raw = self._store(item, total, start)
        change = total.sub_(before)
        return raw, Overlap(inner(delta, delta), inner(change, delta), self._square(item, change))

    def _convert(self, item: Item, part: Tensor) -> memoryview:
        """Cast numbers of the base that the adapter does not change."""
        dtype = _dtype(item)
        raw, target = self._buffers.view("stored", dtype, tuple(part.shape))
        target.copy_(part)
        if item.dtype in NARROW and not torch.equal(target.isfinite(), part.isfinite()):
            raise SoraError(
                f"'{item.name}' of the base model holds numbers too large for {dtype_name(dtype)}",
                hint="choose another --dtype",
            )
        return raw

    def _base(
        self, item: Item, start: int, shape: Shape, content: Content, source: int | None
    ) -> Tensor:
        """Read numbers of W, as float64 if W is stored and written as float64, else as float32."""
        known = content.dtype
        dtype = known if isinstance(known, torch.dtype) else torch_dtype(known)
        assert dtype is not None
        raw, base = self._buffers.view("base", dtype, shape)
        if isinstance(content, Tensor):
            base.copy_(content.reshape(-1)[start : start + base.numel()].view(shape))
        else:
            assert source is not None
            offset = start * dtype.itemsize
            there = max(min(len(raw), content.length - offset), 0)  # less before new rows
            _read(source, raw[:there], content.start + offset, item)
            raw[there:] = bytes(len(raw) - there)
        if dtype == torch.float32 or (dtype == torch.float64 and item.dtype == "F64"):
            return base
        return self._buffers.view("wide", torch.float32, shape)[1].copy_(base)

    def _store(self, item: Item, total: Tensor, start: int) -> memoryview:
        """Round `total` to the item's dtype, in place too, and return the bytes to write."""
        dtype = _dtype(item)
        if self._storing.rounding == "stochastic" and item.dtype in NARROW:
            _check(total, dtype, item)
            seed, name = self._storing.seed, item.name
            round_stochastically(total, dtype, seed=seed, name=name, start=start)
        raw, stored = self._buffers.view("stored", dtype, tuple(total.shape))
        stored.copy_(total)
        total.copy_(stored)
        return raw

    def _square(self, item: Item, change: Tensor) -> float:
        """Return <dW', dW'>, or 0 if rounding adds no noise worth measuring.

        Noise comes from stochastic rounding, and from rounding W itself to a narrower dtype.
        """
        other = item.source is not None and item.source.dtype != item.dtype
        other |= item.update is not None and item.head is not None
        noisy = item.dtype in NARROW and (other or self._storing.rounding == "stochastic")
        return inner(change, change) if noisy else 0.0

    @property
    def _buffers(self) -> _Buffers:
        """This thread's buffers."""
        buffers: _Buffers | None = getattr(self._own, "buffers", None)
        if buffers is None:
            buffers = self._own.buffers = _Buffers(self._sizes)
        return buffers


class _Buffers:
    """One thread's reusable memory, viewed as tensors of any dtype and shape."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self._memory = {name: torch.empty(n, dtype=torch.uint8) for name, n in sizes.items()}
        self._views: dict[tuple[str, torch.dtype, Shape], tuple[memoryview, Tensor]] = {}

    def view(self, name: str, dtype: torch.dtype, shape: Shape) -> tuple[memoryview, Tensor]:
        """Return the start of a buffer as bytes and as a tensor; cached for the next blocks."""
        key = (name, dtype, shape)
        if key not in self._views:
            used = self._memory[name][: torch.Size(shape).numel() * dtype.itemsize]
            self._views[key] = used.numpy().data, used.view(dtype).view(shape)
        return self._views[key]


def _sizes(items: list[Item]) -> dict[str, int]:
    """Return the size of each buffer in bytes: the largest that any item needs."""
    sizes = dict.fromkeys(("base", "wide", "delta", "total", "stored", "read"), 0)
    for item in items:
        known = None if item.source is None else torch_dtype(item.source.dtype)
        each = {
            "base": 8 if item.head else known.itemsize if known else 0,
            "wide": 4,
            "delta": 4,
            "total": max(4, _dtype(item).itemsize),
            "stored": _dtype(item).itemsize,
            "read": 0 if item.update else 8,
        }
        for name, bytes_each in each.items():
            sizes[name] = max(sizes[name], _numbers(item) * bytes_each)
    return sizes


def _most_rows(item: Item) -> int:
    """Return the largest number of a weight's rows in a block."""
    columns = item.columns
    return max(_BLOCK // columns, min(_ROWS, _LARGEST_BLOCK // columns), 1)


def _numbers(item: Item) -> int:
    """Return the size of a tensor's largest block, in numbers."""
    numbers = torch.Size(item.shape).numel()
    most = _BLOCK if item.update is None else _most_rows(item) * item.columns
    return min(most, numbers)


def _read(source: int, raw: Any, offset: int, item: Item) -> None:
    if os.preadv(source, [raw], offset) != len(raw):
        raise SoraError(f"'{item.name}' ends too early: did its file change meanwhile?")


def _check(work: Tensor, dtype: torch.dtype, item: Item) -> None:
    """Refuse numbers that are not finite after the cast."""
    flat = work.reshape(-1)
    # a dot product is faster than the extremes, and NaN fails the comparison
    if work.dtype == torch.float32 and float(torch.dot(flat, flat)) < _SMALL:
        return
    # the extremes are enough: aminmax returns NaN if there is one
    low, high = (extreme.to(dtype) for extreme in torch.aminmax(work))
    if not bool(low.isfinite() & high.isfinite()):
        if item.head is not None and not all(x.isfinite() for x in torch.aminmax(work)):
            raise SoraError(f"'{item.head}' of the adapter holds NaN or infinity")
        what = item.update or item.head
        raise SoraError(f"'{what}' would hold NaN or infinity as {dtype}")


def _dtype(item: Item) -> torch.dtype:
    dtype = torch_dtype(item.dtype)
    assert dtype is not None  # a plan holds no tensors in unknown dtypes
    return dtype
