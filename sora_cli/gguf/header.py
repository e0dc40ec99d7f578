"""The header of a GGUF file, and the place of a new file: checks before anything is loaded."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Any

from sora_cli.core.errors import SoraError
from sora_cli.core.outputs import check_new_file
from sora_cli.core.shell import quote
from sora_cli.core.words import shown_value

MAGIC = b"GGUF"
MODELFILE_MARK = "# Written by sora"
"""The start of a Modelfile of this tool; see `use/modelfile`."""
_VERSIONS = (2, 3)
_ELSEWHERE = "choose another place: -o OUT"
_NUMBERS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
_TEXT, _LIST = 8, 9
"""The format's numbers for types of values; `_NUMBERS` maps numeric types to `struct` letters."""


def check_gguf(reference: str, file: Path) -> None:
    """Check a GGUF file's header for a whole model.

    If the header gives no sizes (as for a file with an adapter), transformers would build a model
    of default sizes: some 27 GB for a Llama.

    Args:
        reference: the file as the user named it.
    """
    header = _read(reference, file)
    if header.version not in _VERSIONS:
        raise _refused(f"the GGUF file {reference} is of version {header.version}, not 2 or 3",
                       "convert the model again with a current llama.cpp")  # fmt: skip
    kind, parts = header.fields.get("general.type", "model"), header.fields.get("split.count", 1)
    # until: transformers > 5.24
    layers = f"{header.fields.get('general.architecture')}.block_count"
    if kind != "model":
        raise _refused(
            f"the GGUF file {reference} holds no model: its general.type is {shown_value(kind)}"
        )
    if parts not in (0, 1):
        raise _refused(f"the GGUF file {reference} is one of the {parts} files of a model",
                       "join them with llama.cpp's llama-gguf-split --merge")  # fmt: skip
    if not header.tensors or layers not in header.fields:
        lacks = "weights" if not header.tensors else f"number of layers ({layers})"
        raise _refused(f"the GGUF file {reference} holds no model: it has no {lacks}")


def gguf_fields(file: Path) -> dict[str, Any]:
    """Return the keys and values of a GGUF file's header; lists are left out."""
    return _read(str(file), file).fields


def _read(reference: str, file: Path) -> _Header:
    with file.open("rb") as stream:
        if stream.read(len(MAGIC)) != MAGIC:
            raise _refused(f"{reference} is not a GGUF file, despite its name")
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                return _Header(data)
            except (struct.error, ValueError, OverflowError, KeyError) as error:
                raise _refused(f"the GGUF file {reference} is cut off or damaged",
                               "copy or download it again") from error  # fmt: skip


def check_gguf_place(output: Path, *, force: bool) -> None:
    """Check that a GGUF file may be written to this path, and a Modelfile beside it."""
    if output.suffix.lower() != ".gguf":
        raise SoraError(f"--format gguf writes a .gguf file: {output} must end in .gguf",
                        hint=f"-o {quote(str(output))}.gguf")  # fmt: skip
    for file, start, kind in (
        (output, MAGIC, "GGUF file"),
        (modelfile_of(output), MODELFILE_MARK.encode(), "Modelfile of sora"),
    ):
        check_new_file("-o", file, force=force, hint=_ELSEWHERE)
        if not file.exists():
            continue
        with file.open("rb") as stream:
            if stream.read(len(start)) != start:
                raise SoraError(f"{file} is not a {kind}: it is not replaced, even with --force",
                                hint=_ELSEWHERE)  # fmt: skip


def modelfile_of(gguf: Path) -> Path:
    """Return the place of the Modelfile that belongs to a GGUF file."""
    return gguf.with_suffix(".Modelfile")


def _refused(what: str, hint: str = "name a model's own file, or its directory") -> SoraError:
    return SoraError(what, hint=hint, key="model.path")


class _Header:
    """The header of a GGUF file. The package gguf takes 3 s to read one with a vocabulary.

    Attributes:
        fields: keys and values; lists are skipped.
        tensors: number of tensors.
    """

    def __init__(self, data: mmap.mmap) -> None:
        """Read the header.

        Raises:
            struct.error, ValueError, OverflowError, KeyError: it is damaged, or the file is shorter
                than the header states.
        """
        self._data, self._at, self._order = data, len(MAGIC), "<"
        self.version = self._number("I")
        if self.version & 0xFFFF == 0:  # the file has the other byte order
            self._order, self._at = ">", len(MAGIC)
            self.version = self._number("I")
        self.fields: dict[str, Any] = {}
        self.tensors = 0
        if self.version not in _VERSIONS:
            return
        self.tensors, fields = self._number("Q"), self._number("Q")
        for _ in range(fields):
            name = self._text()
            self.fields[name] = self._value(self._number("I"))
        starts = [self._tensor() for _ in range(self.tensors)]
        # starts count from the end of the header: a cut-off file ends before its last tensor
        if starts and self._at + max(starts) >= len(data):
            raise ValueError("the last tensor is not there")

    def _number(self, kind: str) -> Any:
        form = self._order + kind
        (number,) = struct.unpack_from(form, self._data, self._at)
        self._at += struct.calcsize(form)
        return number

    def _text(self) -> str:
        length = self._number("Q")
        self._skip(length)
        return self._data[self._at - length : self._at].decode("utf-8", errors="replace")

    def _value(self, kind: int) -> Any:
        if kind == _TEXT:
            return self._text()
        if kind != _LIST:
            return self._number(_NUMBERS[kind])
        inner, count = self._number("I"), self._number("Q")
        if inner in _NUMBERS:
            self._skip(count * struct.calcsize(self._order + _NUMBERS[inner]))
            return None
        for _ in range(count):
            if inner == _TEXT:
                self._skip(self._number("Q"))
            else:
                self._value(inner)
        return None

    def _skip(self, length: int) -> None:
        self._at += length

    def _tensor(self) -> int:
        """Read a tensor's name, shape and type; return its offset in the tensor data."""
        self._text()
        self._skip(8 * self._number("I"))
        self._number("I")
        start: int = self._number("Q")
        return start
