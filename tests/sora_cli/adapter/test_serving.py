"""The command lines for other people's servers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from methods.factors import LowRankFactors
from sora_cli.adapter.adapter import Adapter
from sora_cli.adapter.consumers import Consumer
from sora_cli.adapter.directory import write_adapter
from sora_cli.adapter.metadata import BaseReference
from sora_cli.adapter.serving import servers
from sora_cli.app import run
from tests.golden import NUMBER, told

YES = (Consumer("vLLM", True, "vllm serve b --enable-lora"),
       Consumer("llama.cpp", True, "convert_lora_to_gguf.py my/a --base b"))  # fmt: skip


def _commands(*verdicts: Consumer, base: str | None = "b") -> dict[str, tuple[str, ...]]:
    found = servers(verdicts, task_type="CAUSAL_LM", directory="my/a", base=base)
    return {server.name: server.commands for server in found}


def test_who_takes_the_adapter_as_it_is() -> None:
    assert _commands(*YES) == {
        "vLLM": ("vllm serve b --enable-lora",),
        "transformers serve": ("sora merge my/a -o merged", "transformers serve merged"),
        "llama.cpp": (
            "convert_lora_to_gguf.py my/a --base b --outfile adapter.gguf",
            "llama-server -m BASE.gguf --lora adapter.gguf",
        ),
    }


def test_what_comes_before() -> None:
    padded = Consumer("llama.cpp", False, "why", "padded")
    found = _commands(Consumer("vLLM", False, "no"), padded)
    assert found["vLLM"] == ("sora merge my/a -o merged", "vllm serve merged")
    assert found["llama.cpp"][:2] == (
        "sora export my/a -o padded --layout padded",
        "convert_lora_to_gguf.py padded --base b --outfile adapter.gguf",
    )
    assert "--base BASE " in _commands(padded, base="x.GGUF")["llama.cpp"][1]
    uneven = Consumer("llama.cpp", False, "why", "gguf")
    assert _commands(uneven)["llama.cpp"] == (
        "sora export my/a -o adapter.gguf --format gguf",
        "llama-server -m BASE.gguf --lora adapter.gguf",
    )
    merged = _commands(Consumer("llama.cpp", False, "refuses lm_head", "merge"))
    assert merged["llama.cpp"][-1] == "llama-server -m merged.gguf"
    assert servers(YES, task_type="SEQ_CLS", directory="a", base="b") == ()


def test_inspect_prints_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    layers = {"model.layers.0.q": LowRankFactors(torch.rand(2, 6), torch.rand(5, 2))}
    base = BaseReference("goo/llama", "goo/llama")
    write_adapter(tmp_path / "a", Adapter.of(layers, {}, (), "CAUSAL_LM", base))
    assert run(["inspect", str(tmp_path / "a")]) == 0
    told(capsys.readouterr().out, hide=NUMBER)
    with pytest.raises(ValueError, match="model_type"):  # as transformers serve would meet it
        AutoConfig.from_pretrained(tmp_path / "a")
