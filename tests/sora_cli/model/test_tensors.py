"""Safetensors files one tensor at a time: the same bytes as the library's own."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Barrier, get_ident
from typing import BinaryIO, cast

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sora_cli.core.errors import SoraError
from sora_cli.model.tensors import NewTensor, TensorFile, open_tensors, write_tensors

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn,
    torch.float8_e5m2, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
]  # fmt: skip


def _tensors() -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    tensors = {
        name.format(i): (torch.rand(3, 5, generator=g) * 9).to(dtype)
        for i, dtype in enumerate(DTYPES)
        for name in ("z.{}", 'a"é{}')
    }
    return {**tensors, "none": torch.zeros(0, 4), "scalar": torch.tensor(3.0)}


def _write(file: Path, tensors: dict[str, Tensor]) -> None:
    new = {
        name: NewTensor(t.dtype, tuple(t.shape), partial(tensors.__getitem__, name))
        for name, t in tensors.items()
    }
    write_tensors(file, new)


def test_the_bytes_are_those_of_the_library(tmp_path: Path) -> None:
    tensors = _tensors()
    save_file(tensors, tmp_path / "theirs", metadata={"format": "pt"})
    _write(tmp_path / "ours", tensors)
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_tensors_come_back(tmp_path: Path) -> None:
    tensors = {**_tensors(), "view": torch.arange(12.0).reshape(3, 4).T}
    _write(tmp_path / "x", tensors)
    assert load_file(tmp_path / "x").keys() == tensors.keys()
    with open_tensors(tmp_path / "x") as file:
        assert set(file.keys) == set(tensors)
        for name, tensor in tensors.items():
            assert (file.shape(name), file.dtype(name)) == (tuple(tensor.shape), tensor.dtype)
            assert torch.equal(file.read(name).double(), tensor.double())


def test_what_was_announced_must_come(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not as announced"):
        write_tensors(tmp_path / "x", {"a": NewTensor(torch.float32, (2,), lambda: torch.zeros(3))})
    _write(tmp_path / "y", {"a": torch.zeros(1)})
    with pytest.raises(FileExistsError):
        _write(tmp_path / "y", {"a": torch.ones(1)})


def test_file_that_shrinks_while_it_is_open(tmp_path: Path) -> None:
    _write(tmp_path / "x", {"a": torch.zeros(100)})
    with open_tensors(tmp_path / "x") as file:
        (tmp_path / "x").write_bytes((tmp_path / "x").read_bytes()[:200])
        with pytest.raises(SoraError, match="'a' ends too early"):
            file.read("a")


def test_groups_are_written_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    both = Barrier(2, timeout=120)
    makers: dict[str, list[int]] = {"x": [], "y": []}
    tensors = {f"{half}{group}": torch.rand(3, 2) for half in "ab" for group in "xy"}

    def make(name: str) -> Tensor:
        both.wait()
        makers[name[1]].append(get_ident())
        return tensors[name]

    new = {
        name: NewTensor(torch.float32, (3, 2), partial(make, name), group=name[1])
        for name in tensors
    }
    write_tensors(tmp_path / "ours", new)
    save_file(tensors, tmp_path / "theirs", metadata={"format": "pt"})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert [len(set(threads)) for threads in makers.values()] == [1, 1]


class _Slow:
    """A file in which another thread may come between a place and what is read there."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def seek(self, place: int) -> int:
        found = self._stream.seek(place)
        time.sleep(0.01)
        return found

    def readinto(self, buffer: bytearray) -> int:
        return self._stream.readinto(buffer)  # type: ignore[attr-defined,no-any-return]


def test_several_threads_may_read(tmp_path: Path) -> None:
    tensors = {str(i): torch.full((1000,), i) for i in range(8)}
    _write(tmp_path / "x", tensors)
    with open_tensors(tmp_path / "x") as file:
        entries = {name: file.entry(name) for name in file.keys}
        with (tmp_path / "x").open("rb") as stream:
            slow = TensorFile(tmp_path / "x", entries, cast(BinaryIO, _Slow(stream)))
            with ThreadPoolExecutor(4) as pool:
                read = pool.map(slow.read, tensors)
                assert all(map(torch.equal, read, tensors.values()))
