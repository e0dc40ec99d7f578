"""Adapters whose base model is a GGUF file: merged into an ordinary checkpoint."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel

from sora_cli.app import run
from sora_cli.core.errors import SoraError
from sora_cli.merge import base
from tests import smollm2

PROMPTS = ("The capital of France is", "def add(a, b):")


def written(model: Any, tokenizer: Any, prompt: str) -> list[int]:
    """16 tokens, greedily."""
    inputs = tokenizer(prompt, return_tensors="pt")
    with torch.no_grad():
        ids = model.generate(**inputs, do_sample=False, max_new_tokens=16)
    tokens: list[int] = ids[0].tolist()
    return tokens


@pytest.mark.long
@pytest.mark.parametrize("short", ["memory", "disk"])
def test_a_gguf_file_too_large_is_refused_before_it_is_loaded(
    short: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = smollm2.small(tmp_path_factory)
    usage = SimpleNamespace(free=10 if short == "disk" else 10**15)
    monkeypatch.setattr(base.shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr(base, "free_memory", lambda: 10 if short == "memory" else None)
    monkeypatch.setattr(base, "_write_unpacked", None)
    with smollm2.read(file), pytest.raises(SoraError) as caught:
        base.open_base(str(file), None)
    assert f" of {short} as float32, 10 B are free" in caught.value.what
    assert (caught.value.hint == "set TMPDIR to a larger disk") == (short == "disk")


@pytest.mark.long
def test_the_merged_model_writes_what_the_adapted_one_does(
    tmp_path_factory: pytest.TempPathFactory,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On real weights: from a GGUF base to safetensors, the same tokens, and the tie kept."""
    file, out = smollm2.small(tmp_path_factory), tmp_path / "merged"
    tokenizer = smollm2.tokenizer()
    adapter = smollm2.write_adapter(tmp_path / "adapter", strength=0.05, base=file)
    model = smollm2.model(file)
    plain = [written(model, tokenizer, prompt) for prompt in PROMPTS]
    adapted = PeftModel.from_pretrained(model, adapter).eval()
    expected = [written(adapted, tokenizer, prompt) for prompt in PROMPTS]
    assert expected != plain
    del adapted, model
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    with smollm2.read(file):
        assert run(["merge", str(adapter), "-o", str(out)]) == 0
    assert not list((tmp_path / "scratch").iterdir())
    said = capsys.readouterr().err
    assert "verified: " in said
    assert "the GGUF file are written out in full, as float32" in said
    merged, info = transformers.AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert merged.config.tie_word_embeddings
    assert merged.lm_head.weight is merged.model.embed_tokens.weight
    own = transformers.AutoTokenizer.from_pretrained(out)
    assert [written(merged.eval(), own, prompt) for prompt in PROMPTS] == expected
