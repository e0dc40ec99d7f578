"""The GGUF file of a base model with an update in it.

Metadata and tensors that the update does not change are copied byte for byte. Changed weights are
dequantised, the update is added in float32, and the package gguf or llama.cpp quantises the sum.
"""

from __future__ import annotations

import ctypes
import hashlib
import struct
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from methods.factors import LowRankFactors
from sora_cli.core.atomic import check_read_back
from sora_cli.core.errors import SoraError
from sora_cli.gguf.places import Place

_FILE_TYPE = "general.file_type"
_K_QUANTS = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
"""Types that llama.cpp writes and the package gguf does not. llama.cpp ends the process if it is
given a type that needs statistics of the activations (IQ1_S, IQ2_XXS), so no others are tried."""

Measure = Callable[[str, Tensor, Tensor, bool], None]
"""Takes a module's path, its update and the change of its stored weight, both (out, in) with rows
in the file's order, and true if that weight is stored in float32."""


class MergedFile:
    """The content of a file, of which one tensor is in memory at a time.

    Args:
        source: the base model's file.
        places: module path -> place of a changed weight.
        factors: a module's factors, in the order of the model's own rows.
        type: of the changed weights, one of `core.checks.MERGED_GGUF`.

    Attributes:
        stored: types of the changed weights, such as "q4_1, q6_k".
        copied: number of copied tensors.
    """

    def __init__(
        self,
        source: Path,
        places: Mapping[str, Place],
        factors: Callable[[str], LowRankFactors],
        type: str,
    ) -> None:
        import gguf

        self._factors, self._reader = factors, gguf.GGUFReader(source)
        if self._reader.byte_order != "I":
            raise SoraError(f"the numbers in {source} are in another byte order",
                            hint="use a GGUF file for this kind of machine")  # fmt: skip
        self._type = None if type == "base" else gguf.GGMLQuantizationType[type.upper()]
        self._file_type = {
            "f32": gguf.LlamaFileType.ALL_F32,
            "f16": gguf.LlamaFileType.MOSTLY_F16,
            "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
        }.get(type)
        self._changed = {f"{place.name}.weight": (path, place) for path, place in places.items()}
        self._head = self._metadata() + self._directory()
        kinds = {self._kind(t).name for t in self._reader.tensors if t.name in self._changed}
        self.stored = ", ".join(sorted(kinds)).lower()
        self._digests: dict[str, bytes] = {}
        self.copied = len(self._reader.tensors) - len(self._changed)

    def write(self, file: Path, measure: Measure) -> None:
        """Write the file, and have the part of each update measured that survives in it."""
        with file.open("wb") as out:
            out.write(self._head + self._padding(len(self._head)))
            for tensor in self._reader.tensors:
                is_changed = tensor.name in self._changed
                data = self._merged(tensor, measure) if is_changed else tensor.data
                content = np.ascontiguousarray(data).data
                self._digests[tensor.name] = hashlib.sha256(content).digest()
                out.write(content)
                out.write(self._padding(content.nbytes))

    def check(self, file: Path) -> None:
        """Read the file back, and compare it with the digests taken during writing."""
        import gguf

        back = gguf.GGUFReader(file)
        same = back.data[: len(self._head)].tobytes() == self._head
        for tensor in back.tensors if same else ():
            same = same and hashlib.sha256(tensor.data).digest() == self._digests[tensor.name]
        check_read_back(same)

    def _metadata(self) -> bytes:
        """Return the base's file up to its list of tensors, with `general.file_type` updated."""
        content = bytearray(self._reader.data[: self._reader.tensors[0].field.offset])
        field = self._reader.fields.get(_FILE_TYPE)
        if field is not None and self._file_type is not None:
            *before, number = field.parts
            start = field.offset + sum(part.nbytes for part in before)
            content[start : start + number.nbytes] = int(self._file_type).to_bytes(
                number.nbytes, "little"
            )
        return bytes(content)

    def _directory(self) -> bytes:
        """Return the list of tensors: the base's, with the new types and places in the file."""
        content, place = b"", 0
        for tensor in self._reader.tensors:
            kind, size = self._stored_as(tensor)
            # an entry: length of the name, name, number of dimensions, dimensions, type, offset
            name_and_sides = tensor.field.parts[:4]
            content += b"".join(part.tobytes() for part in name_and_sides)
            content += struct.pack("<IQ", kind, place)
            place += size + len(self._padding(size))
        return content

    def _kind(self, tensor: Any) -> Any:
        """Return a tensor's type in the new file."""
        changed = tensor.name in self._changed
        return self._type if changed and self._type is not None else tensor.tensor_type

    def _stored_as(self, tensor: Any) -> tuple[int, int]:
        """Return a tensor's type and its size in bytes in the new file."""
        import gguf

        kind = self._kind(tensor)
        if tensor.name not in self._changed:
            return kind, int(tensor.n_bytes)
        block, size = gguf.GGML_QUANT_SIZES[kind]
        columns = int(tensor.shape[0])
        if columns % block:
            raise SoraError(
                f"{tensor.name} has rows of {columns} numbers, which {kind.name} cannot "
                f"divide into blocks of {block}",
                hint="store it with --type f16",
            )
        return kind, int(tensor.n_elements) // block * size

    def _padding(self, size: int) -> bytes:
        return bytes(-size % int(self._reader.alignment))

    def _merged(self, tensor: Any, measure: Measure) -> Any:
        """Return the stored form of a changed weight."""
        kind = self._kind(tensor)
        path, place = self._changed[tensor.name]
        factors = place.in_order(self._factors(path))
        base = _numbers(tensor.name, tensor.data, tensor.tensor_type)
        update = factors.B @ factors.A  # (out, in)
        merged = base + update
        data = _quantised(tensor.name, merged.numpy(), kind)
        stored = _numbers(tensor.name, data, kind)
        # the sum, too: llama.cpp's Q4_K of a NaN is a finite number
        if not bool((merged + stored).isfinite().all()):
            raise SoraError(f"'{path}': merged, {tensor.name} holds NaN or infinity",
                            hint="--type f32, or check the adapter with sora inspect")  # fmt: skip
        measure(path, update, stored.sub_(base), kind.name == "F32")
        return data


def _numbers(name: str, data: Any, kind: Any) -> Tensor:
    """Return a stored weight in float32, dequantised by the package gguf."""
    import gguf

    try:
        return torch.from_numpy(np.array(gguf.dequantize(data, kind), np.float32))
    except NotImplementedError as error:
        raise SoraError(
            f"{name} is stored as {kind.name}, which the package gguf cannot turn into numbers",
            hint="llama.cpp's llama-quantize --allow-requantize writes another type",
        ) from error


def _quantised(name: str, numbers: Any, kind: Any) -> Any:
    """Return a weight in a type of GGUF, by the package gguf or by llama.cpp."""
    import gguf

    try:
        return gguf.quantize(numbers, kind)
    except NotImplementedError as error:
        is_k_quant = kind.name in _K_QUANTS
        quantise = _llama_cpp() if is_k_quant else None
        if quantise is None:
            install = "pip install xllamacpp, which contains it; or " if is_k_quant else ""
            raise SoraError(
                f"{name} is stored as {kind.name}, which "
                + ("only llama.cpp can write" if is_k_quant else "cannot be written here"),
                hint=f"{install}take another type: --type f16",
            ) from error
    rows, columns = numbers.shape
    block, size = gguf.GGML_QUANT_SIZES[kind]
    data = np.empty((rows, columns // block * size), np.uint8)
    quantise(kind, numbers.ctypes.data, data.ctypes.data, 0, rows, columns, None)
    return data


@cache
def _llama_cpp() -> Any:
    """Return llama.cpp's `ggml_quantize_chunk` from the package xllamacpp; None if it is absent.

    The package has no Python function for it, but its library exports this function of ggml.h.
    """
    try:
        import xllamacpp.xllamacpp as library

        function = ctypes.CDLL(library.__file__).ggml_quantize_chunk
    except (ImportError, OSError, AttributeError):
        return None
    # type, numbers, result, start, rows, numbers of a row, statistics of the activations
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    function.argtypes = [ctypes.c_int, pointer, pointer, count, count, count, pointer]
    function.restype = ctypes.c_size_t
    return function
