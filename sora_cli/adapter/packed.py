"""The packed file, and how it is read: a rounded adapter directory in one small file.

A safetensors file with the metadata format, version and sha256, and with the tensors

integers  U8    the odd integers of all packed tensors, one after another, each number as its code
                (q + 2^b - 1) / 2 in b bits, the highest bit first; each tensor begins with a byte
scales    BF16  their scales, in the same order
texts     U8    zlib: a line of JSON (`Contents`), then the directory's other files, in turn
NAME      any   a tensor that is not packed, under its name

A tensor is packed row by row, B and `lora_embedding_B` column by column: groups lie within a
component. docs/reference/packed.md describes it for other programs.
"""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from methods.grid import OnGrid, stored_sizes
from sora_cli.adapter.companions import base_files
from sora_cli.adapter.metadata import LARGEST_JSON, read_sora_file
from sora_cli.adapter.moved import located
from sora_cli.adapter.peft.layout import check_tensor, side_of
from sora_cli.core.errors import SoraError, first_line, first_mistake
from sora_cli.core.json_text import distinct
from sora_cli.core.unpacked import stands_for
from sora_cli.model.files import (
    ADAPTER_CONFIG,
    ADAPTER_FILES,
    ADAPTER_WEIGHTS,
    CERTIFICATE,
    PROCESSOR_FILES,
    SORA_FILE,
    TEMPLATES,
)
from sora_cli.model.fingerprint import read_metadata
from sora_cli.model.tensors import NewTensor, dtype_name, open_tensors, write_tensors

VERSION = "1"
OWN = {"integers": torch.uint8, "scales": torch.bfloat16, "texts": torch.uint8}
"""The tensors of a packed file that its adapter has not."""
_LARGEST = torch.finfo(torch.float32).max
_LONGEST_NAME = 255  # bytes of a file's name on most disks
_Length = Annotated[int, Field(ge=0)]
_Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Contents(BaseModel):
    """The directory's content beside the numbers.

    Attributes:
        tensors: name, shape and bits of each packed tensor, in the order of integers and scales.
        files: name and bytes of each other file.
        of_base: name -> SHA-256 of files of the tokenizer that are left out, because saving the
            base model's tokenizer gives the same.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    tensors: list[tuple[str, list[int], int]]
    files: list[tuple[str, _Length]]
    of_base: dict[str, _Sha256]


@dataclass(frozen=True)
class Opened:
    """A packed file in memory, checked.

    Attributes:
        tensors: name -> shape, dtype, and a function that makes the tensor.
        files: name -> content of the directory's other files.
        of_base: see `Contents`.
    """

    tensors: Mapping[str, NewTensor]
    files: Mapping[str, bytes]
    of_base: Mapping[str, str]

    def write(self, folder: Path) -> None:
        """Write the directory's files."""
        write_tensors(folder / ADAPTER_WEIGHTS, self.tensors)
        for name, content in self.files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)


def unpack_for_reading(file: Path, folder: Path, *, tokenizer: bool = True) -> tuple[str, ...]:
    """Write a packed file's adapter into an empty directory, which then stands for the file.

    Args:
        tokenizer: make the files that saving the base model's tokenizer gives, too.

    Returns:
        The files of the tokenizer that could not be made again from the base model's.
    """
    read = opened(file)
    stands_for(folder, file)
    read.write(folder)
    meta, base = read_sora_file(folder / SORA_FILE)
    if not tokenizer or base is None:
        return tuple(read.of_base) if tokenizer else ()
    made = base_files(meta.task, located(base), list(read.of_base))
    same = {name: made[name] for name in made if sha256(made[name]) == read.of_base[name]}
    for name, content in same.items():
        (folder / name).write_bytes(content)
    return tuple(name for name in read.of_base if name not in same)


def rows_of(name: str, tensor: Tensor) -> Tensor:
    """Return a tensor as a matrix whose rows are split into groups."""
    rows = tensor.flatten(1)
    return rows.T.contiguous() if side_of(name) == "B" else rows


def _unpacked(name: str, shape: list[int], bits: int, stream: np.ndarray, scales: Tensor) -> Tensor:
    rows, columns = _matrix(name, shape)
    each = np.unpackbits(stream, count=rows * columns * bits).reshape(-1, bits)
    codes = np.packbits(each, axis=1).ravel() >> (8 - bits)
    odd = torch.from_numpy(codes.astype(np.int16)).reshape(rows, columns) * 2 - (2**bits - 1)
    values = OnGrid(odd, scales.reshape(rows, -1)).values()
    return (values.T if side_of(name) == "B" else values).contiguous().reshape(shape)


def _matrix(name: str, shape: list[int]) -> tuple[int, int]:
    rows, columns = shape[0], math.prod(shape[1:])
    return (columns, rows) if side_of(name) == "B" else (rows, columns)


def opened(file: Path) -> Opened:
    """Read a packed file and check all of it, before anything is written."""
    version = read_metadata(file).get("version")
    if version != VERSION:
        raise SoraError(
            f"{file} is a packed adapter of version {version}, not {VERSION}",
            hint="pip install --upgrade sora-cli",
        )
    with open_tensors(file) as stored:
        tensors = {name: stored.read(name) for name in stored.keys}
    for name, tensor in tensors.items():
        check_tensor(name, tensor, str(file))
    if read_metadata(file).get("sha256") != digest_of(tensors):
        raise SoraError(f"{file} is damaged: its content has another SHA-256 than it names",
                        hint="copy or download it again")  # fmt: skip
    try:
        return _parsed(tensors)
    except ValidationError as error:
        raise SoraError(f"{file} is no valid packed adapter: {first_mistake(error)}") from error
    except (ValueError, RecursionError, zlib.error) as error:
        raise SoraError(f"{file} is no valid packed adapter: {first_line(error)}") from error


def _parsed(tensors: dict[str, Tensor]) -> Opened:
    """Check the content, and take it apart; a contradiction is a ValueError."""
    for name, dtype in OWN.items():
        found = tensors.get(name)
        if found is None or found.dtype != dtype or found.ndim != 1:
            raise ValueError(f"it has no '{name}' of {dtype_name(dtype)} in one dimension")
    integers, scales, texts = (tensors.pop(name) for name in OWN)
    table, rest = _texts(texts.numpy().tobytes())
    new: dict[str, NewTensor] = {}
    stream, at_byte, at_scale = integers.numpy(), 0, 0
    for name, shape, bits in table.tensors:
        if not 1 <= bits <= 8 or len(shape) < 2 or min(shape) < 1:
            raise ValueError(f"{name[:80]!r} has the shape {shape} and {bits} bits")
        length, groups = stored_sizes(*_matrix(name, shape), bits)
        if at_byte + length > len(stream) or at_scale + groups > len(scales):
            raise ValueError(f"{name[:80]!r} ends too early")
        own = stream[at_byte : at_byte + length]
        own_scales = scales[at_scale : at_scale + groups]
        if float(own_scales.abs().max()) * (2**bits - 1) > _LARGEST:
            raise ValueError(f"{name[:80]!r} holds numbers beyond float32")
        if name in new or name in tensors:
            raise ValueError(f"{name[:80]!r} is there twice")
        at_byte, at_scale = at_byte + length, at_scale + groups
        make: Callable[[], Tensor] = partial(_unpacked, name, shape, bits, own, own_scales)
        new[name] = NewTensor(torch.float32, tuple(shape), make)
    files, at = {}, 0
    for name, length in table.files:
        if name in files:
            raise ValueError(f"{name[:80]!r} is there twice")
        files[name], at = rest[at : at + length], at + length
    if (at, at_byte, at_scale) != (len(rest), len(stream), len(scales)):
        raise ValueError("its parts do not fit together")
    _check_names(files, table.of_base)
    return Opened({**{n: as_is(t) for n, t in tensors.items()}, **new}, files, table.of_base)


def _texts(compressed: bytes) -> tuple[Contents, bytes]:
    """Return the table, and the contents of the files that follow it."""
    inflate = zlib.decompressobj()
    text = inflate.decompress(compressed, LARGEST_JSON)
    if inflate.unconsumed_tail:
        raise ValueError("its texts are too large")
    if not inflate.eof or inflate.unused_data:
        raise ValueError("its texts are cut off, or something follows them")
    line, _, rest = text.partition(b"\n")
    json.loads(line, object_pairs_hook=distinct)
    return Contents.model_validate_json(line), rest


def as_is(tensor: Tensor) -> NewTensor:
    """Return a tensor in memory as one to be written."""
    return NewTensor(tensor.dtype, tuple(tensor.shape), lambda: tensor)


def _check_names(files: Mapping[str, bytes], of_base: Mapping[str, str]) -> None:
    """Refuse names that are no files of an adapter: anybody may have written the packed file."""
    foreign = [name for name in files if not is_own(name)]
    foreign += [name for name in of_base if name not in PROCESSOR_FILES or name == TEMPLATES]
    for name in foreign:
        raise ValueError(f"{name[:80]!r} is no file of an adapter")
    for name in files.keys() & of_base.keys():
        raise ValueError(f"{name!r} is there twice")
    for name in {ADAPTER_CONFIG, SORA_FILE} - files.keys():
        raise ValueError(f"it holds no {name}")


def is_own(name: str) -> bool:
    """Return true if this is the name of a file of an adapter, without its weights."""
    folder, _, inside = name.rpartition("/")
    if folder == TEMPLATES:
        short = 0 < len(inside.encode()) <= _LONGEST_NAME
        return short and inside.isprintable() and not inside.startswith(".")
    return name in (*ADAPTER_FILES, CERTIFICATE) and name not in (ADAPTER_WEIGHTS, TEMPLATES)


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of names, dtypes, shapes and bytes of tensors."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def sha256(content: bytes) -> str:
    """Return the SHA-256 of a file's content."""
    return hashlib.sha256(content).hexdigest()
