"""The fingerprint of a base checkpoint, from at most a few kilobytes per tensor.

It covers every tensor's name, dtype, shape and some sampled bytes, and does not depend on the
checkpoint's division into shards. A change to a few numbers in a tensor can escape it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from sora_cli.core.errors import SoraError
from sora_cli.core.json_text import distinct
from sora_cli.model.files import MODEL_WEIGHTS, SAFE_WEIGHTS, TORCH_PICKLES, WEIGHTS_INDEX

_OTHER = ("*.gguf", TORCH_PICKLES)
_WINDOWS = 8
_WINDOW = 64  # bytes in each window
_LARGEST_HEADER = 100_000_000  # bytes; the format's own limit


@dataclass(frozen=True)
class StoredTensor:
    """A tensor's entry in the header of a safetensors file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    """First byte of the tensor in the file."""
    length: int
    """Length in bytes."""


def fingerprint(checkpoint: Path) -> str | None:
    """Return the fingerprint of a checkpoint's weights (directory or file); None: no weights."""
    # by name: independent of the order of tensors and shards
    tensors = sorted(stored_tensors(checkpoint), key=lambda tensor: tensor.name)
    if tensors:
        return f"safetensors-v1:{_tensors_digest(tensors)}"
    files = [checkpoint] if checkpoint.is_file() else _other_files(checkpoint)
    return f"files-v1:{_files_digest(files)}" if files else None


def weight_files(checkpoint: Path) -> list[Path]:
    """Return a checkpoint's safetensors files, in transformers' order of preference."""
    if checkpoint.is_file():
        return [checkpoint] if checkpoint.suffix == ".safetensors" else []
    if (checkpoint / MODEL_WEIGHTS).is_file():
        return [checkpoint / MODEL_WEIGHTS]
    if (checkpoint / WEIGHTS_INDEX).is_file():
        return _shards(checkpoint / WEIGHTS_INDEX)
    return sorted(checkpoint.glob(SAFE_WEIGHTS))


def stored_tensors(checkpoint: Path) -> list[StoredTensor]:
    """Return the header entries of all tensors in a checkpoint's safetensors files."""
    return [tensor for file in weight_files(checkpoint) for tensor in read_header(file)]


def read_header(file: Path) -> Iterator[StoredTensor]:
    """Yield the tensors of a safetensors file from its header, without reading their data."""
    length, header = _parse(file)
    header.pop("__metadata__", None)
    room = file.stat().st_size - 8 - length
    try:
        for name, entry in header.items():
            start, end = entry["data_offsets"]
            if not 0 <= start <= end <= room:
                raise ValueError(f"'{name}' reaches beyond the end of the file")
            shape = tuple(int(n) for n in entry["shape"])
            yield StoredTensor(
                name, str(entry["dtype"]), shape, file, 8 + length + start, end - start
            )
    except (ValueError, KeyError, TypeError) as error:
        raise SoraError(f"{file} is truncated or corrupt: {error}") from error


def read_metadata(file: Path) -> dict[str, str]:
    """Return the metadata of a safetensors file, such as {"format": "pt"}."""
    metadata = _parse(file)[1].get("__metadata__") or {}
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise SoraError(f"{file} is truncated or corrupt: its metadata are not text")
    return metadata


def _parse(file: Path) -> tuple[int, dict[str, Any]]:
    """Return the length of a safetensors header in bytes, and the header."""
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            # the format: 8 bytes with the header's length, the header as JSON, the tensors
            length = int.from_bytes(stream.read(8), "little")
            if not 0 < length <= min(_LARGEST_HEADER, size - 8):
                raise ValueError("impossible header length")
            header = json.loads(stream.read(length), object_pairs_hook=distinct)
        if not isinstance(header, dict):
            raise ValueError("its header is not a mapping")
    except (ValueError, RecursionError) as error:
        raise SoraError(f"{file} is truncated or corrupt: {error}") from error
    return length, header


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SoraError(f"{index} is not an index of shards: {error}") from error
    for name in names:
        # a name with directories could point anywhere on this disk
        if Path(name).name != name or not (index.parent / name).is_file():
            raise SoraError(f"{index} names '{name}', which is not there")
    return [index.parent / name for name in names]


def _other_files(directory: Path) -> list[Path]:
    return sorted(file for pattern in _OTHER for file in directory.glob(pattern))


def _tensors_digest(tensors: list[StoredTensor]) -> str:
    digest = hashlib.sha256()
    streams: dict[Path, BinaryIO] = {}
    try:
        for t in tensors:
            if t.file not in streams:
                streams[t.file] = t.file.open("rb")
            digest.update(f"{t.name}\0{t.dtype}\0{t.shape}\0".encode())
            _update_sampled(digest, streams[t.file], t.start, t.length)
    finally:
        for stream in streams.values():
            stream.close()
    return digest.hexdigest()


def _files_digest(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{size}\0".encode())
        with file.open("rb") as stream:
            # without a header to tell tensors apart, more windows: 512, or 32 KiB of each file
            _update_sampled(digest, stream, 0, size, windows=_WINDOWS * 64)
    return digest.hexdigest()


def _update_sampled(
    digest: Any, stream: BinaryIO, start: int, length: int, windows: int = _WINDOWS
) -> None:
    """Add evenly spaced windows of bytes to a digest, including the first and the last."""
    last = max(length - _WINDOW, 0)
    for i in range(windows):
        # window i of w begins at floor(last * i / (w - 1)): the first at 0, the last at the end
        stream.seek(start + last * i // (windows - 1))
        digest.update(stream.read(min(_WINDOW, length)))
