"""Writes the merged weights: unchanged tensors are copied by the kernel, others made in blocks.

Several threads write at once, each at its own place in the file, because the layout is planned
before.
"""

from __future__ import annotations

import errno
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from methods.updates import Product
from sora_cli.adapter.metadata import write_json
from sora_cli.adapter.peft.parameters import parameter_of
from sora_cli.adapter.survival import Overlap, Survival, total
from sora_cli.core.errors import SoraError
from sora_cli.merge.blocks import Block, Blocks, Range
from sora_cli.merge.incoming import Incoming
from sora_cli.merge.plan import Item, Plan, PlannedFile
from sora_cli.merge.rounding import Storing
from sora_cli.model.files import WEIGHTS_INDEX
from sora_cli.model.fingerprint import StoredTensor, read_header
from sora_cli.model.tensors import header_bytes, write_at
from sora_cli.model.threads import one_thread

Progress = Callable[[int], None]
"""Called with the number of bytes that were written since the last call."""

_STEP = 2**25  # bytes copied at a time
_BUFFER = 2**20  # bytes copied at a time if the kernel cannot copy
_SAMPLE = 64  # bytes at both ends of a tensor that are read back
_THREADS = 4  # more would wait for the disk
_WAITING = 16  # queued pieces of work; each may hold a layer's factors
_NOT_BY_KERNEL = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM)


def write_weights(
    folder: Path,
    plan: Plan,
    incoming: Incoming,
    *,
    index: dict[str, Any] | None,
    storing: Storing,
    progress: Progress | None = None,
) -> Survival:
    """Write all weight files and their index, and read back headers and samples of bytes.

    Args:
        index: the base's index; None for a single file.

    Returns:
        The part of the adapter in the written weights.

    Raises:
        OSError: the disk is full, for example.
    """
    blocks = Blocks([item for item in plan.items if not item.copied], storing)
    layers: dict[str, Overlap] = {}
    heads: dict[str, Overlap] = {}
    with one_thread(), ThreadPoolExecutor(max_workers=threads()) as pool:
        for file in plan.files:
            path = folder / file.name
            with path.open("xb", buffering=0) as out:
                job = _Job(file, out.fileno(), pool, progress)
                ends = job.run(blocks, incoming)
            _check_written(path, file, ends)
            for item in file.items:
                if item.measured:
                    into, name = (layers, item.update) if item.update else (heads, item.head)
                    overlap, name = job.overlap(item), name or item.name
                    if item.part is not None:  # of one expert: the parameter's line has them all
                        name = parameter_of(name)
                        overlap += into.get(name, Overlap())
                    into[name] = overlap
    if index is not None:
        write_json(folder / WEIGHTS_INDEX, _index(index, plan))
    return Survival(layers, heads)


def threads() -> int:
    """Return the number of writing threads."""
    # the cores of this process, which a scheduler may restrict; not those of the machine
    return min(_THREADS, len(os.sched_getaffinity(0)) if sys.platform == "linux" else 2)


def weights_bytes(plan: Plan) -> int:
    """Return the number of bytes that `write_weights` will write, without the index."""
    return plan.bytes + sum(len(header_of(file)) for file in plan.files)


def header_of(file: PlannedFile) -> bytes:
    """Return the header of a planned file; see `header_bytes`."""
    entries = ((item.name, item.dtype, item.shape, item.length) for item in file.items)
    return header_bytes(entries, file.metadata)


class _Job:
    """The writing of one file by several threads, each at its own place in the file."""

    def __init__(
        self, file: PlannedFile, out: int, threads: ThreadPoolExecutor, progress: Progress | None
    ) -> None:
        self._file, self._out, self._threads, self._progress = file, out, threads, progress
        self._pending: deque[Future[int]] = deque()
        self._ends: dict[str, list[bytes]] = {}
        self._overlaps: dict[str, dict[int, Overlap]] = {}
        self._written = self._flushed = 0

    def run(self, blocks: Blocks, incoming: Incoming) -> dict[str, list[bytes]]:
        """Write the file; return the first and last bytes of each computed tensor."""
        header = header_of(self._file)
        # `running` ends first: on an error, threads stop before the files that they read close
        with ExitStack() as stack, ExitStack() as running:
            sources = _Sources(stack)
            running.callback(self._abandon)
            self._submit(write_at, self._out, header, 0)
            at = len(header)
            for run in _runs(self._file.items):
                length = sum(item.length for item in run)
                if run[0].copied:
                    assert run[0].source is not None
                    self._copy(
                        sources.descriptor(run[0].source.file), run[0].source.start, at, length
                    )
                else:
                    self._make(run[0], at, blocks, incoming, sources)
                at += length
            while self._pending:
                self._finish_one()
        return self._ends

    def overlap(self, item: Item) -> Overlap:
        """Return the surviving part of an update.

        Blocks are added in their order, so that the sum does not depend on the threads.
        """
        blocks = self._overlaps.get(item.name, {})
        return total(blocks[start] for start in sorted(blocks))

    def _make(
        self, item: Item, at: int, blocks: Blocks, incoming: Incoming, sources: _Sources
    ) -> None:
        """Compute and write a tensor, block by block."""
        make: Callable[[Range], Block]
        content = item.source if item.head is None else incoming.content(item.head)
        assert content is not None
        file = None if isinstance(content, Tensor) else sources.descriptor(content.file)
        if item.update is not None:
            update = blocks.with_norms(item, incoming.changes[item.update](), content, file)
            if item.part is not None:
                assert isinstance(update, Product)
                update = update.part(item.part, transposed=item.transposed)
            squared = update.squared()
            self._overlaps[item.name] = {} if squared is None else {-1: Overlap(squared)}
            square_known = squared is not None
            make = partial(
                blocks.add, item, update, content=content, source=file, square_known=square_known
            )
        else:
            measured = item.source if item.measured else None
            base = None if measured is None else sources.descriptor(measured.file)
            self._overlaps[item.name] = {}
            make = partial(blocks.replace, item, content, source=file, base=base)
        ranges = blocks.ranges(item)
        self._ends[item.name] = [b"", b""]
        per_step = item.length // ranges[-1][1] if ranges else 0  # bytes of a row, or of a number
        for start, stop in ranges:
            first, last = start == 0, stop == ranges[-1][1]
            offset = at + start * per_step
            self._submit(self._make_block, make, (start, stop), offset, item.name, first, last)

    def _make_block(
        self,
        make: Callable[[Range], Block],
        rows: Range,
        offset: int,
        name: str,
        first: bool,
        last: bool,
    ) -> int:
        content, overlap = make(rows)
        if overlap is not None:
            self._overlaps[name][rows[0]] = overlap  # each block has a key of its own
        if first:
            self._ends[name][0] = bytes(content[:_SAMPLE])
        if last:
            self._ends[name][1] = bytes(content[-_SAMPLE:])
        return write_at(self._out, content, offset)

    def _copy(self, source: int, start: int, at: int, length: int) -> None:
        for done in range(0, length, _STEP):
            step = min(_STEP, length - done)
            self._submit(_copy_range, source, self._out, start + done, at + done, step)

    def _submit(self, work: Callable[..., int], *arguments: Any) -> None:
        """Queue a piece of work; wait while the queue is full, because its work holds factors."""
        while len(self._pending) >= _WAITING:
            self._finish_one()
        self._pending.append(self._threads.submit(work, *arguments))

    def _finish_one(self) -> None:
        self._written += self._pending.popleft().result()  # raises what the thread raised
        step = self._written - self._flushed
        if step >= _STEP or not self._pending:
            _begin_flush(self._out, self._flushed, step)
            self._flushed += step
            if self._progress is not None:
                self._progress(step)

    def _abandon(self) -> None:
        """Cancel queued work and wait for running work."""
        for future in self._pending:
            future.cancel()
        wait(self._pending)


class _Sources:
    """The open source files; the stack closes them."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._open: dict[Path, int] = {}

    def descriptor(self, file: Path) -> int:
        """Open a file for reading, once, and return its descriptor."""
        if file not in self._open:
            self._open[file] = self._stack.enter_context(file.open("rb", buffering=0)).fileno()
        return self._open[file]


def _runs(items: tuple[Item, ...]) -> Iterator[list[Item]]:
    """Group copied tensors that are also adjacent in the base; other tensors stay alone."""
    run: list[Item] = []
    for item in items:
        if run and not (item.copied and run[-1].copied and _follows(item.source, run[-1].source)):
            yield run
            run = []
        run.append(item)
    if run:
        yield run


def _follows(tensor: StoredTensor | None, other: StoredTensor | None) -> bool:
    if tensor is None or other is None or tensor.file != other.file:
        return False
    return tensor.start == other.start + other.length


def _copy_range(source: int, out: int, start: int, offset: int, length: int) -> int:
    """Copy bytes from file to file, inside the kernel if possible."""
    done = 0
    while done < length:
        step = _copy_some(source, out, start + done, offset + done, length - done)
        if not step:
            raise SoraError("a file of the base model ends too early: did it change meanwhile?")
        done += step
    return length


def _copy_some(source: int, out: int, start: int, offset: int, length: int) -> int:
    if sys.platform == "linux":
        try:
            done = os.copy_file_range(source, out, length, start, offset)
        except OSError as error:
            if error.errno not in _NOT_BY_KERNEL:
                raise
        else:
            if done:
                return done
    content = os.pread(source, min(length, _BUFFER), start)
    return os.pwrite(out, content, offset) if content else 0


def _begin_flush(out: int, offset: int, length: int) -> None:
    """Start writing the file's dirty pages to disk, so that the final flush is short."""
    if sys.platform == "linux":
        # Linux writes dirty pages before it drops them; Python has no sync_file_range
        os.posix_fadvise(out, offset, length, os.POSIX_FADV_DONTNEED)


def _check_written(path: Path, file: PlannedFile, ends: dict[str, list[bytes]]) -> None:
    """Compare the header with the plan, and sampled bytes with the intended bytes."""
    written = {tensor.name: tensor for tensor in read_header(path)}
    same = list(written) == [item.name for item in file.items]
    with path.open("rb") as stream:
        for item in file.items if same else ():
            tensor = written[item.name]
            same = same and (tensor.dtype, tensor.shape) == (item.dtype, item.shape)
            first, last = _ends(stream, tensor)
            if item.name in ends:
                same = same and first == ends[item.name][0] and last.endswith(ends[item.name][1])
            elif item.source is not None:
                with item.source.file.open("rb") as source:
                    same = same and (first, last) == _ends(source, item.source)
    if not same:
        raise SoraError("the written weights read back differently: is the disk damaged?")


def _ends(stream: BinaryIO, tensor: StoredTensor) -> tuple[bytes, bytes]:
    """Return the first and the last bytes of a tensor."""
    length = min(_SAMPLE, tensor.length)
    stream.seek(tensor.start)
    first = stream.read(length)
    stream.seek(tensor.start + tensor.length - length)
    return first, stream.read(length)


def _index(index: dict[str, Any], plan: Plan) -> dict[str, Any]:
    old = index.get("metadata")
    metadata = dict(old) if isinstance(old, dict) else {}
    metadata["total_size"] = plan.bytes
    if "total_parameters" in metadata:
        metadata["total_parameters"] = sum(torch.Size(item.shape).numel() for item in plan.items)
    weight_map = {item.name: file.name for file in plan.files for item in file.items}
    return {"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))}
