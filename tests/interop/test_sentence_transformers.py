"""sentence-transformers opens what this tool writes, with the same vectors, and the other way."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from sentence_transformers import SentenceTransformer

from sora_cli.app import run
from tests.helpers_families import retrieval_rows, write_family_recipe
from tests.helpers_models import tiny_llama
from tests.helpers_runs import write_rows
from tests.helpers_vectors import write_sentence_model

NEAR = 1e-5
ROWS = retrieval_rows(12, seed=2)


def _recipe(folder: Path, base: Path) -> Path:
    files = {
        "train": write_rows(folder / "train.jsonl", retrieval_rows(32)),
        "validation": write_rows(folder / "validation.jsonl", retrieval_rows(12, seed=1)),
    }
    task, data = {"name": "embedding"}, {"files": files, "max_length": 32}
    training = {"max_steps": 4, "learning_rate": 0.02}
    return write_family_recipe(
        folder, model={"path": str(base)}, task=task, data=data, training=training
    )


@pytest.fixture(scope="module", params=["encoder", "decoder"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a base model with prompts and a dense layer."""
    folder = tmp_path_factory.mktemp(request.param)
    decoder = request.param == "decoder"
    base = write_sentence_model(
        folder, model=tiny_llama() if decoder else None, dense=12,
        pooling="lasttoken" if decoder else "mean", prompts={"query": "the ", "document": "not "},
    )  # fmt: skip
    assert run(["train", str(_recipe(folder, base))]) == 0
    return folder


def _encoded(model: Any) -> np.ndarray:
    texts = ([row[part] for row in ROWS] for part in ("query", "positive"))
    encode = (model.encode_query, model.encode_document)
    return np.stack([one(own) for one, own in zip(encode, texts, strict=True)])


def _with_adapter(base: Path, adapter: Path) -> np.ndarray:
    model = SentenceTransformer(str(base), device="cpu")
    before = _encoded(model)
    model.load_adapter(str(adapter))
    after = _encoded(model)
    assert np.abs(after - before).max() > 1e-3
    return after


def _predicted(folder: Path, target: Path) -> np.ndarray:
    rows = write_rows(folder / "rows.jsonl", ROWS)
    out = folder / "vectors.jsonl"
    assert run(["predict", str(target), rows, "-o", str(out), "--force"]) == 0
    made = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    return np.array([[row[n] for row in made] for n in ("query_vector", "document_vector")])


def test_an_adapter_and_a_merged_model_give_the_vectors_of_predict(trained: Path) -> None:
    ours = _predicted(trained, trained / "out")
    assert np.abs(_with_adapter(trained / "base", trained / "out/adapter") - ours).max() < NEAR
    merged = trained / "merged"
    assert run(["merge", str(trained / "out"), "-o", str(merged)]) == 0
    model = SentenceTransformer(str(merged), device="cpu")
    assert model.prompts["query"] == "the "
    assert len(model) == 4
    assert np.abs(_encoded(model) - ours).max() < NEAR
    assert np.abs(_predicted(trained, merged) - ours).max() < NEAR


def test_a_rounded_adapter_gives_the_vectors_of_predict(trained: Path) -> None:
    small = trained / "small"
    words = ["prune", str(trained / "out"), "-o", str(small), "--rank", "2", "--bits", "4"]
    assert run(words) == 0
    theirs = _with_adapter(trained / "base", small)
    assert np.abs(theirs - _predicted(trained, small)).max() < NEAR


def test_anybodys_adapter_is_inspected_rounded_and_merged(trained: Path, tmp_path: Path) -> None:
    model = SentenceTransformer(str(trained / "base"), device="cpu")
    targets = ["q_proj", "v_proj", "query", "value"]
    # `model.add_adapter` of transformers 5.40 wants PEFT 0.22; it does the same
    config = LoraConfig("FEATURE_EXTRACTION", r=3, target_modules=targets)
    peft = get_peft_model(model[0].model, config)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(generator=generator)
    theirs = _encoded(model)
    peft.save_pretrained(str(tmp_path / "theirs"))
    for name in ("modules.json", "config_sentence_transformers.json"):  # beside it, as it does
        shutil.copyfile(trained / "base" / name, tmp_path / "theirs" / name)
    adapter = str(tmp_path / "theirs")
    assert run(["inspect", adapter]) == 0
    assert run(["merge", adapter, "-o", str(tmp_path / "merged")]) == 0
    merged = _encoded(SentenceTransformer(str(tmp_path / "merged"), device="cpu"))
    assert np.abs(merged - theirs).max() < NEAR
    assert run(["prune", adapter, "-o", str(tmp_path / "small"), "--rank", "3", "--bits", "8"]) == 0
    rounded = _with_adapter(trained / "base", tmp_path / "small")
    assert np.abs(rounded - theirs).max() < 0.05
