"""The package gguf, and what this program does around it."""

from __future__ import annotations

import pytest

from sora_cli.gguf.package import parsed_once


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
            assert gguf.GGUFReader(source) is calls
        assert gguf.GGUFReader(source) is calls
        table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
        assert gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2) is table
    assert gguf.GGUFReader is reader
    assert calls == [source]
