"""Safetensors files one tensor at a time: read lazily, written without holding all in memory.

Written files equal those of `safetensors.torch.save_file` to the last byte: tensors of wider dtypes
first, then by name (https://github.com/huggingface/safetensors, format).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from sora_cli.core.errors import SoraError, reason
from sora_cli.model.fingerprint import StoredTensor, read_header
from sora_cli.model.threads import by_cores

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_ORDER = [
    "BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "I16", "F16", "BF16", "I32", "F32", "F64", "I64",
]  # fmt: skip
"""The format's ranking of dtypes."""
_COMPARED = 2**22  # numbers compared at a time


def torch_dtype(stored: str) -> torch.dtype | None:
    """Return torch's dtype for a safetensors dtype, for example "BF16"; None: torch has none."""
    return _DTYPES.get(stored)


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a torch dtype without its prefix: "bfloat16" of torch.bfloat16."""
    return str(dtype).removeprefix("torch.")


def stored_dtype(dtype: torch.dtype) -> str:
    """Return the safetensors name of a torch dtype."""
    return _NAMES[dtype]


class TensorFile:
    """An open safetensors file; only `read` reads tensor data.

    Args:
        file: its path.
        entries: name -> header entry.
        stream: the file, open for reading; several threads may call `read`.
    """

    def __init__(
        self,
        file: Path,
        entries: Mapping[str, StoredTensor],
        stream: BinaryIO,
    ) -> None:
        self.file = file
        self._entries = entries
        self._stream = stream
        self._lock = Lock()  # for reads from the shared stream

    @property
    def keys(self) -> list[str]:
        """Names of all tensors, in the order of the file."""
        return list(self._entries)

    def entry(self, key: str) -> StoredTensor:
        """Return a tensor's header entry."""
        return self._entries[key]

    def shape(self, key: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        return self._entries[key].shape

    def dtype(self, key: str) -> torch.dtype:
        """Return a tensor's dtype; dtypes unknown to torch are refused."""
        name = self._entries[key].dtype
        if name not in _DTYPES:
            raise SoraError(f"'{key}' is stored as {name}, which cannot be read",
                            where=str(self.file))  # fmt: skip
        return _DTYPES[name]

    def read(self, key: str) -> Tensor:
        """Read one tensor in its stored dtype."""
        entry, dtype = self._entries[key], self.dtype(key)
        content = bytearray(entry.length)
        with self._lock:
            self._stream.seek(entry.start)
            done = self._stream.readinto(content)  # type: ignore[attr-defined]
        if done != entry.length:
            raise SoraError(f"{self.file} is truncated or corrupt: '{key}' ends too early")
        if not content:
            return torch.empty(entry.shape, dtype=dtype)
        flat = torch.frombuffer(content, dtype=dtype)
        return flat.reshape(entry.shape)


def read_tensor(entry: StoredTensor) -> Tensor:
    """Read one tensor, given its header entry, in its stored dtype."""
    with entry.file.open("rb") as stream:
        return TensorFile(entry.file, {entry.name: entry}, stream).read(entry.name)


def same_numbers(a: StoredTensor, b: StoredTensor) -> bool:
    """Return True if two stored tensors hold the same numbers, possibly in different dtypes."""
    kinds = [_DTYPES.get(t.dtype) for t in (a, b)]
    if a.shape != b.shape or None in kinds:
        return False
    wide = torch.promote_types(*kinds)  # type: ignore[arg-type]
    count = torch.Size(a.shape).numel()
    for start in range(0, count, _COMPARED):
        numbers = min(_COMPARED, count - start)
        first, second = (read_tensor(_part(t, start, numbers)).to(wide) for t in (a, b))
        if not torch.equal(first, second):
            return False
    return True


def _part(tensor: StoredTensor, start: int, numbers: int) -> StoredTensor:
    width = _DTYPES[tensor.dtype].itemsize
    begin = tensor.start + start * width
    return replace(tensor, shape=(numbers,), start=begin, length=numbers * width)


@contextmanager
def open_tensors(file: Path) -> Iterator[TensorFile]:
    """Check a safetensors file's header, and open the file for reading."""
    try:
        _check_readable(file)
        with safe_open(str(file), framework="pt"):  # checks the whole header, reads no tensor
            pass
        entries = {entry.name: entry for entry in read_header(file)}
        stream = file.open("rb")
    except SafetensorError as error:
        raise SoraError(f"{file} is truncated or corrupt: {error}") from error
    except OSError as error:
        raise SoraError(f"{file} cannot be read: {reason(error, file)}") from error
    with stream:
        yield TensorFile(file, entries, stream)


def load_tensors(file: Path) -> dict[str, Tensor]:
    """Read all tensors of a safetensors file.

    Raises:
        OSError: the file is missing or may not be read.
        SafetensorError: the file is truncated or corrupt.
    """
    _check_readable(file)
    tensors: dict[str, Tensor] = load_file(file)
    return tensors


def _check_readable(file: Path) -> None:
    """Raise the system's own error; safetensors would claim that an unreadable file is missing."""
    with file.open("rb"):
        pass


@dataclass(frozen=True)
class NewTensor:
    """A tensor to be written.

    Attributes:
        dtype, shape: of the tensor that `make` will return.
        make: computes the tensor in its turn; other threads compute others at the same time.
        group: tensors of one group are computed in turn by one thread; None: a group of its own.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    make: Callable[[], Tensor]
    group: str | None = None

    @property
    def length(self) -> int:
        """Length in bytes."""
        return self.dtype.itemsize * int(torch.Size(self.shape).numel())


def write_tensors(
    file: Path, tensors: Mapping[str, NewTensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file, holding at most one tensor per core in memory at a time.

    Args:
        metadata: texts in its header; None: {"format": "pt"}, as PEFT and transformers need.

    Raises:
        OSError: for example, the disk is full.
    """
    order, header = _order(tensors), header_of(tensors, metadata)
    ends = accumulate((tensors[name].length for name in order), initial=len(header))
    places = dict(zip(order, ends, strict=False))
    groups: dict[str, list[str]] = {}
    for name in order:
        groups.setdefault(tensors[name].group or name, []).append(name)

    # threads write with pwrite at known places: no order among them, no lock
    with file.open("xb", buffering=0) as stream:
        out = stream.fileno()

        def write(group: str) -> None:
            for name in groups[group]:
                write_at(out, _content(name, tensors[name]), places[name])

        write_at(out, header, 0)
        by_cores(groups, write)


def header_of(tensors: Mapping[str, NewTensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """Return the header that `write_tensors` writes."""
    entries = ((name, _NAMES[tensors[name].dtype], tensors[name].shape, tensors[name].length)
               for name in _order(tensors))  # fmt: skip
    return header_bytes(entries, metadata or {"format": "pt"})


def _order(tensors: Mapping[str, NewTensor]) -> list[str]:
    """Return the names, widest dtype first as safetensors writes: each is aligned to its width."""
    return sorted(tensors, key=lambda name: (-_rank(tensors[name].dtype), name))


def write_at(out: int, content: Any, offset: int) -> int:
    """Write all bytes at an offset of a file, given by its descriptor; return their number."""
    view = memoryview(content)
    view = view.cast("B") if view.nbytes else view
    done = 0
    while done < len(view):
        done += os.pwrite(out, view[done:], offset + done)
    return len(view)


def header_bytes(
    entries: Iterable[tuple[str, str, tuple[int, ...], int]], metadata: Mapping[str, str] | None
) -> bytes:
    """Return the first bytes of a safetensors file: the length of the header, and the header.

    Args:
        entries: name, safetensors dtype, shape and number of bytes of each tensor, in file order.
    """
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name, dtype, shape, length in entries:
        start, end = end, end + length
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    # safetensors pads its header with spaces to a multiple of 8 bytes, to align the tensors
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _rank(dtype: torch.dtype) -> int:
    return _ORDER.index(_NAMES[dtype])


def _content(name: str, new: NewTensor) -> Any:
    """Return a tensor's bytes, without a copy."""
    tensor = new.make().detach().cpu().contiguous()
    if tensor.dtype != new.dtype or tuple(tensor.shape) != new.shape:
        raise ValueError(f"'{name}' is {tensor.dtype} {tuple(tensor.shape)}, not as announced")
    return tensor.reshape(-1).view(torch.uint8).numpy().data
