"""The tokens of SmolLM2's GGUF file are llama.cpp's, in training too."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from sora_cli.app import run
from sora_cli.data.gguf_tokenizer import load_tokenizer
from tests import smollm2
from tests.interop.helpers_llama_cpp import NEEDS, LlamaCpp

PIECES = (
    " ", "  ", "\n", "\n\n", "\n\n\n", "\t", "\r\n", "0", "7", "42", "1,234.5", "2026-11-30", "1st",
    "x1y2", "\u00b2\u2084", "\u0663", "def f(x):", "    return x+10", "[0]*3", "don't", "it's 5",
    "caf\u00e9", "na\u00efve", "\u65e5\u672c\u8a9e", "\u4f60\u597d3", "\ud55c\uad6d\uc5b4",
    "\U0001f600", "\U0001f468\u200d\U0001f469", "a", "The", "...", "!?", "#", "e\u0301", "\u00a0",
    "\u3000",
)  # fmt: skip


def texts(number: int) -> list[str]:
    rng = random.Random(0)
    return ["".join(rng.choices(PIECES, k=rng.randint(1, 30))) for _ in range(number)]


@pytest.mark.long
def test_a_thousand_texts_are_the_same_tokens() -> None:
    pytest.importorskip("xllamacpp", reason=NEEDS)
    tokenizer, llama = smollm2.tokenizer(), LlamaCpp(smollm2.file())
    for text in texts(1000):
        assert tokenizer(text, add_special_tokens=False).input_ids == llama.ids_of(text), text


@pytest.mark.long
def test_a_model_that_is_written_keeps_them(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    base = smollm2.small(tmp_path_factory)
    adapter = smollm2.write_adapter(tmp_path / "adapter", strength=0.01, base=base)
    with smollm2.read(base):
        assert run(["merge", str(adapter), "-o", str(tmp_path / "merged"), "--no-verify"]) == 0
    written, read = load_tokenizer(str(tmp_path / "merged")), smollm2.tokenizer()
    for text in texts(50):
        assert written(text).input_ids == read(text).input_ids
