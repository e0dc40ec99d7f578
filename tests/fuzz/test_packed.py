"""Damaged packed files: refused politely, or read as docs/reference/packed.md says."""

from __future__ import annotations

import hashlib
import json
import math
import struct
import tempfile
import zlib
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from methods.factors import LowRankFactors
from methods.grid import round_factors
from sora_cli.adapter.adapter import Adapter
from sora_cli.adapter.directory import write_adapter
from sora_cli.adapter.metadata import BaseReference
from sora_cli.adapter.packing import pack
from sora_cli.app import run
from tests.fuzz.odd_adapters import NUMBERS
from tests.fuzz.outcome import Outcome, cases, outcome
from tests.helpers_runs import files_of

LONG, SHORT = 1000, 100
HEAD = "base_model.model.score.weight"
FACTOR = "base_model.model.l.0.lora_A.weight"
DTYPES = ("U8", "I8", "I16", "I64", "F16", "BF16", "F32", "F64", "BOOL", "F8_E4M3", "F8_E5M2",
          "U16", "F4", "x", "", 3, None)  # fmt: skip
TORCH = (torch.int8, torch.int16, torch.int64, torch.float16, torch.bfloat16, torch.float32,
         torch.float64, torch.bool, torch.uint8, torch.uint16, torch.float8_e4m3fn)  # fmt: skip
SHAPES: tuple[Any, ...] = (
    [], [0], [1], [2, 3], [-1], [-2, -35], [0, 5], [10**30, 2], [2, 10**18], [1] * 70, [2.0, 35],
    ["2", 35], [True, 70], None, 3,
)  # fmt: skip
NAMES = ("integers", "scales", "texts", "x", "", "../x", "/etc/passwd", "a\0b", "a\nb", "\ud800",
         "x" * 300, HEAD, FACTOR, "base_model.model.l.9.lora_A.weight", "adapter_config.json",
         "adapter_model.safetensors", "sora.json", "README.md", "tokenizer.json", "vocab.json/x",
         "tokenizer.json/../x", "additional_chat_templates", "additional_chat_templates/",
         "additional_chat_templates/a.jinja", "additional_chat_templates/\0",
         "additional_chat_templates/..", "additional_chat_templates/a/b",
         f"additional_chat_templates/{'x' * 300}")  # fmt: skip
ODD: tuple[Any, ...] = (*NUMBERS, *NAMES, None, True, "2", [], {}, [[]], "0" * 64, "g" * 64)


@dataclass
class Damaged:
    """A packed file to be: its metadata, tensors, table and contents of files.

    Attributes:
        after: damages the bytes of the file, at last.
        honest: the metadata name the digest of what the file holds.
    """

    metadata: dict[str, Any]
    tensors: dict[str, Tensor]
    table: Any
    contents: bytes
    texts: Callable[[bytes], bytes] = lambda compressed: compressed
    retyped: list[tuple[str, torch.dtype]] = field(default_factory=list)
    after: list[Callable[[bytes], bytes]] = field(default_factory=list)
    honest: bool = True
    steps: list[str] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"<{'; '.join(self.steps)}>"

    def bytes(self) -> bytes:
        """The content of the file."""
        line = self.table if isinstance(self.table, bytes) else json.dumps(self.table).encode()
        texts = self.texts(zlib.compress(line + b"\n" + self.contents))
        tensors = {**self.tensors, "texts": torch.frombuffer(bytearray(texts), dtype=torch.uint8)}
        for name, dtype in self.retyped:
            if name in tensors:
                tensors[name] = tensors[name].to(dtype)
        if self.honest:
            self.metadata["sha256"] = digest(tensors)
        names = {name: name.encode(errors="replace").decode() for name in tensors}
        made: bytes = save({names[n]: t.contiguous() for n, t in tensors.items()}, self.metadata)
        for damage in self.after:
            made = damage(made)
        return made


def digest(tensors: dict[str, Tensor]) -> str:
    """As the page says, in its own words."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode(errors="replace"))
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def by_the_page(content: bytes) -> dict[str, bytes]:
    """The adapter directory of a packed file, without the base's tokenizer, number by number."""
    tensors = load(content)
    integers, scales = tensors.pop("integers").tolist(), tensors.pop("scales").tolist()
    line, _, rest = zlib.decompress(tensors.pop("texts").numpy().tobytes()).partition(b"\n")
    table = json.loads(line)
    for name, shape, bits in table["tensors"]:
        by_column = name.endswith((".lora_B.weight", ".lora_embedding_B"))
        sides = [shape[0], math.prod(shape[1:])]
        rows, length = reversed(sides) if by_column else sides
        used = -(-rows * length * bits // 8)
        stream = "".join(f"{byte:08b}" for byte in integers[:used])
        groups = -(-length // 64)
        numbers = torch.tensor([
            [scales[row * groups + i // 64]
             * (2 * int(stream[(row * length + i) * bits :][:bits], 2) - (2**bits - 1))
             for i in range(length)]
            for row in range(rows)
        ])  # fmt: skip
        integers, scales = integers[used:], scales[rows * groups :]
        tensors[name] = (numbers.T if by_column else numbers).contiguous().reshape(shape)
    files = {}
    for name, size in table["files"]:
        files[name], rest = rest[:size], rest[size:]
    return {**files, "adapter_model.safetensors": save(tensors, {"format": "pt"})}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A packed file of a layer, an embedding and a head."""
    root = tmp_path_factory.mktemp("packed")
    g = torch.Generator().manual_seed(0)
    layers = {
        name: round_factors(
            LowRankFactors(torch.randn(r, n, generator=g), torch.randn(m, r, generator=g)), bits
        )
        for name, r, n, m, bits in (("l.0", 2, 35, 70, 3), ("l.1", 1, 6, 4, 4))
    }
    base = BaseReference(str(root / "gone"), str(root / "gone"))
    head = {"score.weight": torch.randn(2, 5, generator=g)}
    write_adapter(root / "a", Adapter.of(layers, head, ("score",), "SEQ_CLS", base))
    pack(root / "a", root / "a.safetensors")
    return (root / "a.safetensors").read_bytes()


def case_of(content: bytes) -> Damaged:
    """A packed file taken apart."""
    length = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + length])["__metadata__"]
    tensors = load(content)
    text = zlib.decompress(tensors.pop("texts").numpy().tobytes())
    line, _, contents = text.partition(b"\n")
    return Damaged(metadata, tensors, json.loads(line), contents)


def _metadata(draw: Any, case: Damaged) -> None:
    key = draw(st.sampled_from(["format", "version", "sha256", "x"]))
    value = draw(st.sampled_from(["", "1", "2", "x", "sora-packed", "0" * 64]))
    case.metadata[key] = value
    case.honest = case.honest and key != "sha256"


def _tensor(draw: Any, case: Damaged) -> None:
    """A tensor of the file has another dtype, shape, name or content, or is not there."""
    name = draw(st.sampled_from(["integers", "scales", HEAD]))
    if name not in case.tensors:
        return
    tensor = case.tensors[name]
    flat, what = tensor.reshape(-1), draw(st.integers(0, 5))
    if what == 0:
        case.tensors[name] = tensor.to(draw(st.sampled_from(TORCH)))
    elif what == 1:
        sides = (flat.numel(),)
        case.tensors[name] = flat.reshape(draw(st.sampled_from([(1, *sides), (*sides, 1), sides])))
    elif what == 2:
        case.tensors[name] = draw(st.sampled_from([flat[:0], flat[:-1], flat[:1].squeeze()]))
    elif what == 3:
        case.tensors[draw(st.sampled_from(NAMES))] = case.tensors.pop(name)
    elif what == 4:
        del case.tensors[name]
    else:
        value = draw(st.sampled_from([0.0, -1.0, float("nan"), float("inf"), 3e38, 200.0]))
        case.tensors[name] = torch.full_like(tensor.float(), value).to(tensor.dtype)


def _texts(draw: Any, case: Damaged) -> None:
    if draw(st.booleans()):
        case.retyped.append(("texts", draw(st.sampled_from(TORCH))))
        return
    cut = draw(st.integers(1, 60))
    case.texts = draw(st.sampled_from([
        lambda data: data[:-cut], lambda data: data + bytes(cut), lambda data: data + data,
        lambda data: data[cut:], lambda data: data[:0],
    ]))  # fmt: skip


def _table(draw: Any, case: Damaged) -> None:
    """One place in the table holds something else."""
    if not isinstance(case.table, dict):
        return
    odd = deepcopy(draw(st.sampled_from(ODD)))  # it may be changed in its turn
    key = draw(st.sampled_from(["tensors", "files", "of_base"]))
    entries, what = case.table.get(key), draw(st.integers(0, 7))
    if what == 0 or not isinstance(entries, list | dict):
        case.table[key] = odd
    elif what == 1:
        case.table.pop(key)
    elif what == 2:
        case.table[draw(st.sampled_from(NAMES))] = odd
    elif what == 3:
        case.table = draw(st.sampled_from([b"", b"[1]", b"\xff", b"[" * 10**5, b'{"tensors": 1}',
                          json.dumps(case.table).encode()[:-1] + b', "files": []}']))  # fmt: skip
    elif isinstance(entries, dict):
        entries[draw(st.sampled_from(NAMES))] = odd
    elif entries:
        _entry(draw, entries, odd)


def _entry(draw: Any, entries: list[Any], odd: Any) -> None:
    """An entry of the table is there twice, not at all, elsewhere, or holds something else."""
    at = draw(st.integers(0, len(entries) - 1))
    what = draw(st.integers(0, 6))
    entry = entries[at]
    if what == 0:
        entries.append(entry)
    elif what == 1:
        entries.pop(at)
    elif what == 2:
        entries.insert(0, entries.pop(at))
    elif what == 3 or not isinstance(entry, list) or not entry:
        entries.append([draw(st.sampled_from(NAMES)), 0])
    else:
        part = draw(st.integers(0, len(entry) - 1))
        numbers: tuple[Any, ...] = (odd, -1, 0, 5, 8, 9)
        fitting: dict[type, tuple[Any, ...]] = {list: SHAPES, str: NAMES}
        entry[part] = draw(st.sampled_from(fitting.get(type(entry[part]), numbers)))


def _header(draw: Any, case: Damaged) -> None:
    """A field of the header of the safetensors file holds something else, or is there twice."""
    index, what = draw(st.integers(0, 20)), draw(st.integers(0, 5))
    odd, dtype, shape = (draw(st.sampled_from(v)) for v in (ODD, DTYPES, SHAPES))

    def damage(content: bytes) -> bytes:
        length = int.from_bytes(content[:8], "little")
        try:
            header = json.loads(content[8 : 8 + length])
        except ValueError:
            return content
        name = sorted(header)[index % len(header)]
        if what < 3 and isinstance(header[name], dict):
            key = ("dtype", "shape", "data_offsets")[what]
            header[name][key] = (dtype, shape, [odd, odd])[what]
        elif what == 3:
            header[name] = odd
        text = json.dumps(header)
        if what == 4:
            text = f"{{{json.dumps(name)}: {json.dumps(header[name])}, {text[1:]}"
        data = text.encode()
        size = (0, 2**62, len(data) + 1)[index % 3] if what == 5 else len(data)
        return struct.pack("<Q", size) + data + content[8 + length :]

    case.after.append(damage)


def _bytes(draw: Any, case: Damaged) -> None:
    """A byte is another one, or the file is cut short or longer."""
    place, value = draw(st.floats(0, 1, exclude_max=True)), draw(st.integers(0, 255))

    def damage(content: bytes) -> bytes:
        at = int(place * len(content))
        if value % 3 == 0:
            return content[:at]
        return content[:at] + bytes([value]) + content[at + value % 3 - 1 :]

    case.after.append(damage)


_KINDS = (_metadata, _tensor, _tensor, _texts, _table, _table, _table, _header, _bytes)


@st.composite
def damaged(draw: Any, source: bytes) -> Damaged:
    """The packed file, damaged in one or two ways."""
    case = case_of(source)
    for _ in range(draw(st.sampled_from([1, 1, 2]))):
        kind = draw(st.sampled_from(_KINDS))
        kind(draw, case)
        case.steps.append(kind.__name__)
    return case


def check(case: Damaged) -> Outcome:
    """Unpack and inspect a file: both refuse it by its name, or both read what the page says."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        file, out = place / "K.safetensors", place / "out"
        content = case.bytes()
        file.write_bytes(content)
        result = outcome(lambda: run(["export", str(file), "-o", str(out)]))
        shown = outcome(lambda: run(["inspect", str(file)]))
        assert "/sora-" not in result.err + shown.err + shown.out
        if not result.good:
            assert str(file) in result.err
            assert sorted(place.iterdir()) == [file]
            return result
        assert shown.good, shown.err
        assert files_of(out) == by_the_page(content)
        return result


def test_without_damage(source: bytes) -> None:
    assert check(case_of(source)).good


@given(data=st.data())
@cases(SHORT)
def test_damaged_files(source: bytes, data: st.DataObject) -> None:
    _check(data.draw(damaged(source)))


@pytest.mark.long
def test_many_damaged_files(source: bytes, record_property: Any) -> None:
    counts = {True: 0, False: 0}

    @given(data=st.data())
    @cases(LONG)
    def many(data: st.DataObject) -> None:
        result = _check(data.draw(damaged(source)))
        counts[result is not None and result.good] += 1

    many()
    record_property("counts", str(counts))
    assert min(counts.values()) > LONG // 100


def _check(case: Damaged) -> Outcome | None:
    try:
        case.bytes()
    except (SafetensorError, ValueError, TypeError):  # no file can hold it
        return None
    return check(case)
