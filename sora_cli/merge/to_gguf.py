"""Merges an adapter into a base model's GGUF file, and writes a new GGUF file.

Metadata and tensors that the adapter does not change are copied byte for byte. Changed weights are
dequantised, the update is added in float32, and the package gguf or llama.cpp quantises the sum.
"""

from __future__ import annotations

import ctypes
import hashlib
import struct
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from methods.factors import LowRankFactors
from sora_cli.adapter.adapter import Adapter
from sora_cli.adapter.base_check import OR_FORCE, check_weights
from sora_cli.adapter.gguf_places import Place, places_in_file
from sora_cli.adapter.serving import beside_base
from sora_cli.adapter.survival import LEAST, Overlap, Survival
from sora_cli.core.atomic import check_read_back, new_file
from sora_cli.core.checks import MERGED_GGUF, check_choice
from sora_cli.core.errors import SoraError, reason
from sora_cli.merge.rounding import inner, shown_survival

_FILE_TYPE = "general.file_type"
_K_QUANTS = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
"""Types that llama.cpp writes and the package gguf does not. llama.cpp ends the process if it is
given a type that needs statistics of the activations (IQ1_S, IQ2_XXS), so no others are tried."""


@dataclass(frozen=True)
class GgufMerged:
    """The result of a merge into a GGUF file.

    Attributes:
        modules: number of changed weights.
        copied: number of copied tensors.
        stored: types of the changed weights, such as "q4_1, q6_k".
        base_note: a note on the base; None if the adapter is known to be trained on this base.
        survival: the part of the update in the stored weights.
    """

    modules: int
    copied: int
    stored: str
    base_note: str | None
    survival: Survival


def merge_to_gguf(
    adapter: Adapter,
    source: Path,
    output: Path,
    *,
    type: str = MERGED_GGUF[0],
    accept_loss: bool = False,
    force: bool = False,
) -> GgufMerged:
    """Write a merged GGUF file, with one tensor in memory at a time, and read it back.

    Args:
        source: the base model's GGUF file.
        output: the new file; an existing file is replaced.
        type: of the changed weights, one of `core.checks.MERGED_GGUF`.
        accept_loss: write the file, however little of the update survives.
        force: accept a base with other weights than the adapter was trained on.
    """
    check_choice("type", type, MERGED_GGUF)
    adapter.check_all_in_factors()
    _, places = places_in_file(adapter, source)
    note = check_weights(
        adapter.base, source, str(source), "the adapter", force=force, hint=OR_FORCE
    )
    merged_file = _MergedFile(adapter, source, places, type)
    try:
        with new_file(output) as temporary:
            merged_file.write(temporary)
            survival = Survival(merged_file.overlaps, {})
            if survival.share < LEAST and not accept_loss:
                more, apart = ways_out_gguf(adapter, source, merged_file.stored)
                raise SoraError(
                    f"{shown_survival(survival, merged_file.stored)}: nothing was written",
                    where=apart,
                    hint=f"{more}; --accept-loss writes it anyway",
                )
            merged_file.check(temporary)
    except OSError as error:
        raise SoraError(f"{output} cannot be written: {reason(error, output)}") from error
    return GgufMerged(len(places), merged_file.copied, merged_file.stored, note, survival)


def ways_out_gguf(adapter: Adapter, source: Path, stored: str) -> tuple[str, str]:
    """Return hints that lose less of the update: a wider type; no merge at all."""
    wider = "f32" if "f16" in stored else "f16"
    commands = "; ".join(beside_base(str(adapter.source.directory), str(source)))
    return f"--type {wider} keeps more of it", f"serve base and adapter apart: {commands}"


class _MergedFile:
    """The content of a merged GGUF file."""

    def __init__(self, adapter: Adapter, source: Path, places: dict[str, Place], type: str) -> None:
        import gguf

        self._adapter, self._reader = adapter, gguf.GGUFReader(source)
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
        self.overlaps: dict[str, Overlap] = {}
        self.copied = len(self._reader.tensors) - len(self._changed)

    def write(self, file: Path) -> None:
        """Write the file, and measure the surviving part of each update."""
        with file.open("wb") as out:
            out.write(self._head + self._padding(len(self._head)))
            for tensor in self._reader.tensors:
                data = self._data(tensor)
                self._digests[tensor.name] = hashlib.sha256(data).digest()
                out.write(data)
                out.write(self._padding(data.nbytes))

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

    def _data(self, tensor: Any) -> Any:
        """Return a tensor's stored form in the new file."""
        import gguf

        if tensor.name not in self._changed:
            return np.ascontiguousarray(tensor.data)
        kind = self._kind(tensor)
        path, place = self._changed[tensor.name]
        factors = self._adapter.layers[path]
        if place.rows is not None:
            factors = LowRankFactors(factors.A, factors.B[place.rows])
        base = torch.from_numpy(_numbers(tensor))
        update = factors.B @ factors.A  # (out, in)
        merged = base + update
        data = _quantised(tensor.name, merged.numpy(), kind)
        stored = torch.from_numpy(np.array(gguf.dequantize(data, kind), np.float32))
        # the sum, too: llama.cpp's Q4_K of a NaN is a finite number
        if not bool((merged + stored).isfinite().all()):
            raise SoraError(f"'{path}': merged, {tensor.name} holds NaN or infinity",
                            hint="--type f32, or check the adapter with sora inspect")  # fmt: skip
        change = stored.sub_(base)
        # in float32 nothing is lost but the last bit of the sum
        noise = 0.0 if kind.name == "F32" else inner(change, change)
        self.overlaps[path] = Overlap(inner(update, update), inner(change, update), noise)
        return np.ascontiguousarray(data)


def _numbers(tensor: Any) -> Any:
    """Return a weight of the base in float32, dequantised by the package gguf."""
    import gguf

    try:
        return np.array(gguf.dequantize(tensor.data, tensor.tensor_type), np.float32)
    except NotImplementedError as error:
        raise SoraError(
            f"{tensor.name} is stored as {tensor.tensor_type.name}, which the package gguf cannot "
            "turn into numbers",
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
