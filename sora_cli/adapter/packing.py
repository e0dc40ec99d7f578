"""Pack a rounded adapter directory into one small file, and unpack it: see `packed`."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from methods.grid import OnGrid, recognised
from sora_cli.adapter.companions import base_files
from sora_cli.adapter.packed import (
    OWN,
    VERSION,
    Contents,
    Opened,
    as_is,
    digest_of,
    is_own,
    opened,
    rows_of,
    sha256,
    unpack_for_reading,
)
from sora_cli.adapter.peft.layout import check_tensor, side_of
from sora_cli.adapter.places import PACKED, new_adapter_place
from sora_cli.adapter.reading import open_adapter
from sora_cli.core.atomic import check_read_back, new_file
from sora_cli.core.errors import SoraError, reason
from sora_cli.core.shell import quote
from sora_cli.model.files import ADAPTER_FILES, ADAPTER_WEIGHTS, CERTIFICATE, PROCESSOR_FILES
from sora_cli.model.tensors import header_of, open_tensors, write_tensors


@dataclass(frozen=True)
class Packed:
    """A packed file that was written.

    Attributes:
        bits: of the factors.
        factors: bytes of their integers and scales.
        head: bytes of everything else that is stored in full.
        texts: bytes of configuration, `sora.json`, card, and tokenizer if it is not the base's.
        size: bytes of the file.
        left_out: files of the tokenizer that are made again from the base model's.
    """

    bits: int
    factors: int
    head: int
    texts: int
    size: int
    left_out: tuple[str, ...]


def pack(directory: Path, output: Path) -> Packed:
    """Write a rounded adapter directory as one file, and check that it unpacks to the same bytes.

    Args:
        directory: the adapter directory.
        output: the file; an existing file is replaced.
    """
    with open_adapter(directory, as_stored=True) as file:
        meta, base = file.meta, file.base
    if meta.bits is None:
        raise _not_rounded(directory)
    tensors, table, factors = _packed_tensors(directory / ADAPTER_WEIGHTS)
    own = {name: (directory / name).read_bytes() for name in _others(directory)}
    again = base_files(meta.task, base, [name for name in own if name in PROCESSOR_FILES])
    same = {name: content for name, content in own.items() if again.get(name) == content}
    kept = {name: content for name, content in own.items() if name not in same}
    table.files = [(name, len(content)) for name, content in kept.items()]
    table.of_base = {name: sha256(content) for name, content in same.items()}
    line = json.dumps(table.model_dump(), separators=(",", ":")).encode() + b"\n"
    texts = zlib.compress(line + b"".join(kept.values()), 9)
    tensors["texts"] = torch.frombuffer(bytearray(texts), dtype=torch.uint8)
    metadata = {"format": PACKED, "version": VERSION, "sha256": digest_of(tensors)}
    try:
        with new_file(output) as temporary:
            write_tensors(temporary, {n: as_is(t) for n, t in tensors.items()}, metadata)
            read = opened(temporary)
            check_read_back(all(read.files[name] == content for name, content in kept.items()))
            _check_tensors(read, directory / ADAPTER_WEIGHTS)
    except OSError as error:
        raise SoraError(f"{output} cannot be written: {reason(error, output)}") from error
    size = output.stat().st_size
    head = sum(t.numel() * t.element_size() for n, t in tensors.items() if n not in OWN)
    packed_head = sum(tensors[n].nbytes for n in ("integers", "scales")) - factors
    return Packed(meta.bits, factors, head + packed_head, len(texts), size, tuple(same))


def unpack(file: Path, directory: Path, *, force: bool = False) -> tuple[str, ...]:
    """Write the adapter directory of a packed file, the same as before byte by byte.

    Returns:
        The files of the tokenizer that could not be made again from the base model's.
    """
    try:
        with new_adapter_place(directory, force=force) as folder:
            missing = unpack_for_reading(file, folder)
            with open_adapter(folder, as_stored=True):  # checks what the files say
                return missing
    except OSError as error:
        raise SoraError(f"{directory} cannot be written: {reason(error, directory)}") from error


def _packed_tensors(weights: Path) -> tuple[dict[str, Tensor], Contents, int]:
    """Return the tensors of a packed file, their table, and the bytes of the factors."""
    integers: list[np.ndarray] = []
    scales: list[Tensor] = []
    tensors: dict[str, Tensor] = {}
    entries, factors = [], 0
    with open_tensors(weights) as file:
        for name in file.keys:
            stored = file.read(name)
            check_tensor(name, stored, str(weights))
            grid = recognised(rows_of(name, stored)) if _may_be_on_grid(stored) else None
            if grid is None:
                tensors[name] = stored
                continue
            bits = grid.bits
            stream = _bits(grid, bits)
            integers.append(stream)
            scales.append(grid.scales.flatten())
            entries.append((name, list(stored.shape), bits))
            if side_of(name) is not None:
                factors += stream.nbytes + grid.scales.nbytes
    if not entries:  # whatever `sora.json` says
        raise _not_rounded(weights.parent)
    tensors["integers"] = torch.from_numpy(np.concatenate(integers))
    tensors["scales"] = torch.cat(scales)
    return tensors, Contents(tensors=entries, files=[], of_base={}), factors


def _not_rounded(directory: Path) -> SoraError:
    return SoraError(
        f"{directory} is not rounded: only numbers on a grid can be packed",
        hint=f"sora prune {quote(str(directory))} -o OUT --bits 4",
    )


def _may_be_on_grid(tensor: Tensor) -> bool:
    return tensor.dtype == torch.float32 and tensor.ndim > 1 and tensor.numel() > 0


def _bits(grid: OnGrid, bits: int) -> np.ndarray:
    codes = ((grid.odd + (2**bits - 1)) // 2).to(torch.uint8).flatten().numpy()
    return np.packbits(np.unpackbits(codes[:, None], axis=1)[:, 8 - bits :].ravel())


def _check_tensors(read: Opened, weights: Path) -> None:
    """Compare the tensors that a packed file gives with the directory's, byte by byte."""
    header = header_of(read.tensors)
    with weights.open("rb") as stream:
        if stream.read(len(header)) != header:
            raise SoraError(
                f"{weights} was written anew by another program: packed, it would not be the same",
                hint=f"sora prune {quote(str(weights.parent))} -o OUT writes it anew",
            )
    with open_tensors(weights) as file:
        same = set(file.keys) == set(read.tensors)
        for name in file.keys if same else ():
            before, after = file.read(name), read.tensors[name].make()
            same = same and _bytes(before) == _bytes(after)
    check_read_back(same)


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _others(directory: Path) -> list[str]:
    names = []
    for place in (
        directory / name for name in (*ADAPTER_FILES, CERTIFICATE) if name != ADAPTER_WEIGHTS
    ):
        inside = sorted(place.iterdir()) if place.is_dir() else [place]  # one is a folder of files
        names += [file.relative_to(directory).as_posix() for file in inside if file.is_file()]
    return [name for name in names if is_own(name)]  # not what a file manager left there
