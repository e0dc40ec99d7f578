"""The package gguf, and what this program does around it."""

from __future__ import annotations

import sys
from pathlib import Path

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
