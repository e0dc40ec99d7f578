"""The merged weights, written: what the base has copied by the kernel, the rest block by block."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import torch

from sora_cli.errors import SoraError
from sora_cli.fingerprint import INDEX_FILE, StoredTensor, read_header
from sora_cli.merge_blocks import Blocks
from sora_cli.merge_incoming import Incoming
from sora_cli.merge_plan import Item, Plan, PlannedFile
from sora_cli.sora_file import write_json
from sora_cli.spectra import one_thread

Progress = Callable[[int], None]
"""Called with the number of bytes that were written since the last call, from another thread."""

_STEP = 2**25  # bytes copied at a time
_BUFFER = 2**20  # bytes, where the kernel does not copy
_SAMPLE = 64  # bytes
_NOT_BY_KERNEL = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM)


def write_weights(
    folder: Path,
    plan: Plan,
    incoming: Incoming,
    *,
    index: dict[str, Any] | None,
    progress: Progress | None = None,
) -> None:
    """Write all files of weights and their index, and read back their headers and samples of bytes.

    Args:
        index: the base's index; None for a single file.

    Raises:
        SoraError: a result is not finite, the base changed meanwhile, or what was written reads
            back differently.
        OSError: the disk is full, or the like.
    """
    made = [item for item in plan.items if not item.copied]
    blocks = Blocks(made)
    with one_thread(), ThreadPoolExecutor(max_workers=1) as thread:
        for file in plan.files:
            job = _Job(folder / file.name, file, thread, progress)
            samples = job.run(blocks, incoming)
            _check_written(folder / file.name, file, samples)
    if index is not None:
        write_json(folder / INDEX_FILE, _index(index, plan))


def weights_bytes(plan: Plan) -> int:
    """What `write_weights` will write, but for the index."""
    return plan.bytes + sum(len(header_of(file)) for file in plan.files)


def header_of(file: PlannedFile) -> bytes:
    """The first bytes of a safetensors file: the length of the header, and the header."""
    header: dict[str, Any] = {"__metadata__": file.metadata} if file.metadata else {}
    end = 0
    for item in file.items:
        start, end = end, end + item.length
        header[item.name] = {
            "dtype": item.dtype,
            "shape": list(item.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


class _Job:
    """One file being written: blocks are made here, and go to the disk in another thread."""

    def __init__(
        self, path: Path, file: PlannedFile, thread: ThreadPoolExecutor, progress: Progress | None
    ) -> None:
        self._path, self._file, self._thread, self._progress = path, file, thread, progress
        self._pending: list[Future[None]] = []
        self._samples: dict[str, tuple[bytes, bytes]] = {}
        self._out = -1
        self._at = self._written = self._flushed = 0

    def run(self, blocks: Blocks, incoming: Incoming) -> dict[str, tuple[bytes, bytes]]:
        """Write the file; the first and last bytes of each tensor that was made anew."""
        header = header_of(self._file)
        with ExitStack() as stack:
            self._out = stack.enter_context(self._path.open("xb", buffering=0)).fileno()
            sources: dict[Path, BinaryIO] = {}
            for item in self._file.items:
                if item.source is not None and item.source.file not in sources:
                    stream = item.source.file.open("rb", buffering=0)
                    sources[item.source.file] = stack.enter_context(stream)  # type: ignore[assignment]
            stack.callback(self._abandon)
            self._submit(_write_all, self._out, header, 0)
            self._at = len(header)
            for run in _runs(self._file.items):
                first = run[0]
                if first.copied:
                    assert first.source is not None
                    length = sum(item.length for item in run)
                    self._copy(sources[first.source.file], first.source.start, length)
                else:
                    self._make(first, blocks, incoming, sources)
            for future in self._pending:
                future.result()
            if self._progress is not None:
                self._progress(self._written - self._flushed)
        return self._samples

    def _make(
        self, item: Item, blocks: Blocks, incoming: Incoming, sources: dict[Path, BinaryIO]
    ) -> None:
        def emit(block: memoryview) -> Future[None]:
            first, last = self._samples.get(item.name, (bytes(block[:_SAMPLE]), b""))
            self._samples[item.name] = (first, (last + bytes(block[-_SAMPLE:]))[-_SAMPLE:])
            future = self._submit(_write_all, self._out, block, self._at)
            self._at += len(block)
            return future

        if item.head is not None:
            blocks.replace(item, incoming.head(item.head), emit)
        else:
            assert item.update is not None
            assert item.source is not None
            blocks.add(item, incoming.update(item.update), sources[item.source.file], emit)

    def _copy(self, source: BinaryIO, start: int, length: int) -> None:
        for done in range(0, length, _STEP):
            step = min(_STEP, length - done)
            self._submit(_copy_range, source.fileno(), self._out, start + done, self._at, step)
            self._at += step

    def _submit(self, work: Callable[..., int], *arguments: Any) -> Future[None]:
        """Have something written after all that was before it."""
        for future in [f for f in self._pending if f.done()]:
            future.result()  # raises what went wrong
            self._pending.remove(future)
        future = self._thread.submit(self._write, work, *arguments)
        self._pending.append(future)
        return future

    def _write(self, work: Callable[..., int], *arguments: Any) -> None:
        self._written += work(*arguments)
        step = self._written - self._flushed
        if step >= _STEP:
            _begin_flush(self._out, self._flushed, step)
            self._flushed += step
            if self._progress is not None:
                self._progress(step)

    def _abandon(self) -> None:
        """Before the files are closed: what has not begun will not, what has begun ends."""
        for future in self._pending:
            future.cancel()
        for future in self._pending:
            if not future.cancelled():
                future.exception()


def _runs(items: tuple[Item, ...]) -> Iterator[list[Item]]:
    """Tensors that are copied and follow each other in the base, too, together; others alone."""
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


def _write_all(out: int, content: Any, offset: int) -> int:
    view = memoryview(content).cast("B")
    done = 0
    while done < len(view):
        done += os.pwrite(out, view[done:], offset + done)
    return len(view)


def _copy_range(source: int, out: int, start: int, offset: int, length: int) -> int:
    """Copy bytes from file to file, where possible without taking them into this process."""
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
    """Have the disk begin with what was written, so that the flush at the end is short."""
    if sys.platform == "linux":
        os.posix_fadvise(out, offset, length, os.POSIX_FADV_DONTNEED)


def _check_written(path: Path, file: PlannedFile, samples: dict[str, tuple[bytes, bytes]]) -> None:
    """Compare the header with the plan, and some bytes of each tensor with what they should be."""
    written = {tensor.name: tensor for tensor in read_header(path)}
    same = list(written) == [item.name for item in file.items]
    with path.open("rb") as stream:
        for item in file.items if same else ():
            tensor = written[item.name]
            same = same and (tensor.dtype, tensor.shape) == (item.dtype, item.shape)
            ends = _ends(stream, tensor)
            if item.name in samples:
                same = same and ends == samples[item.name]
            elif item.source is not None and item.copied:
                with item.source.file.open("rb") as source:
                    same = same and ends == _ends(source, item.source)
    if not same:
        raise SoraError("what was written reads back differently: is the disk all right?")


def _ends(stream: BinaryIO, tensor: StoredTensor) -> tuple[bytes, bytes]:
    """The first and the last bytes of a tensor."""
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
