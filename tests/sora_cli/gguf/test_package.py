"""The package gguf, and what this program does around it."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from sora_cli.core.errors import SoraError
from sora_cli.gguf.package import check_package, parsed_once, reading
from sora_cli.gguf.places import places_in_file
from tests.sora_cli.gguf.test_merged_file import base_file


@pytest.mark.versions
def test_a_file_is_parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the configuration and the tokenizer, whoever asks; afterwards the reader is as it was."""
    gguf, source = pytest.importorskip("gguf"), "base.gguf"
    calls: list[str] = []

    def reader(path: str) -> list[str]:
        calls.append(path)
        return calls

    monkeypatch.setattr(gguf, "GGUFReader", reader)
    with parsed_once("no.safetensors"):
        assert gguf.GGUFReader is reader
    with parsed_once(source):
        with parsed_once(source):
            assert gguf.GGUFReader(Path(source)) is calls
        assert gguf.GGUFReader(source) is calls
        table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
        assert gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2) is table
    assert gguf.GGUFReader is reader
    assert calls == [source]


@pytest.mark.versions
def test_its_parts_are_plain_arrays_with_the_same_numbers(tmp_path: Path) -> None:
    gguf, file = pytest.importorskip("gguf"), base_file(tmp_path / "base.gguf")
    slow = gguf.GGUFReader(file)
    with parsed_once(str(file)):
        fast = gguf.GGUFReader(file)
    assert (type(slow.data), type(fast.data)) == (np.memmap, np.ndarray)
    assert fast.fields.keys() == slow.fields.keys()
    for name, field in slow.fields.items():
        for part, other in zip(field.parts, fast.fields[name].parts, strict=True):
            np.testing.assert_array_equal(part, other)
    for tensor, other in zip(slow.tensors, fast.tensors, strict=True):
        assert tensor.name == other.name
        np.testing.assert_array_equal(tensor.data, other.data)


def test_a_package_that_is_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    check_package()
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(SoraError, match=r"^writing GGUF files needs the package gguf"):
        check_package()


def test_files_that_the_package_cannot_read(tmp_path: Path) -> None:
    """It parses without checks of its own, and raises anything; our errors stay as they are."""
    file = base_file(tmp_path / "base.gguf")
    file.write_bytes(file.read_bytes()[:150])
    with pytest.raises(SoraError, match=r"base\.gguf cannot be read: "):
        places_in_file(file, {})
    with pytest.raises(SoraError, match=r"^ours$"), reading(file):
        raise SoraError("ours")
