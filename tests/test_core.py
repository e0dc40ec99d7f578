"""`docs/core.py`, the run in one flat file, finds the adapter of `sora train`."""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.helpers_chat import instruct_rows, write_chat_recipe
from tests.helpers_runs import train, write_rows

FILE = Path(__file__).parents[1] / "docs" / "core.py"
ROWS, SEED = 44, 7  # the last step has fewer rows


@pytest.fixture
def core(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The file as a module, for one epoch: `sora train` draws another order for each."""
    module = ModuleType("core")
    exec(compile(FILE.read_text(encoding="utf-8"), str(FILE), "exec"), vars(module))
    monkeypatch.setattr(module, "EPOCHS", 1)
    monkeypatch.setattr(module, "SEED", SEED)
    return module


def _recipe(folder: Path, core: ModuleType) -> Path:
    """The same run as a recipe, with the values that stand in the file."""
    training = {
        "epochs": core.EPOCHS, "batch_size": core.BATCH, "learning_rate": core.RATE,
        "warmup": core.WARMUP, "weight_decay": core.WEIGHT_DECAY, "max_grad_norm": core.CLIP,
        "seed": core.SEED, "length_grouping": False, "evaluate": "no", "keep_best": False,
    }  # fmt: skip
    path = write_chat_recipe(
        folder,
        rows=ROWS,
        task={"prompt": core.PROMPT, "metrics": ["loss"]},
        training=training,
    )
    text = path.read_text(encoding="utf-8")
    before = "method:\n  name: sora\n  r_max: 4\n  threshold: 0.01\n"
    assert before in text
    path.write_text(text.replace(before, f"method: {json.dumps({'name': 'cut', **core.METHOD})}\n"))
    return path


def _updates(folder: Path) -> dict[str, Any]:
    """The update B A of each layer, with its rank: its factors may have other signs."""
    tensors = load_file(folder / "adapter_model.safetensors")
    paths = sorted(name.removesuffix(".lora_A.weight") for name in tensors if "lora_A" in name)
    pairs = {p: (tensors[f"{p}.lora_A.weight"], tensors[f"{p}.lora_B.weight"]) for p in paths}
    return {path: (len(A), B.double() @ A.double()) for path, (A, B) in pairs.items()}


def test_the_flat_file_finds_the_adapter_of_sora_train(
    tmp_path: Path, core: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    train(_recipe(tmp_path, core))
    capsys.readouterr()
    # the order of the run's only epoch: train/batches.py
    order = np.random.default_rng([SEED, 0]).permutation(ROWS)
    rows = instruct_rows(ROWS)
    drawn = write_rows(tmp_path / "drawn.jsonl", [rows[i] for i in order])
    out = tmp_path / "core"
    core.main(str(tmp_path / "base"), str(drawn), str(out))
    ours, flat = _updates(tmp_path / "out" / "adapter"), _updates(out)
    assert {path: rank for path, (rank, _) in flat.items()} == {
        path: rank for path, (rank, _) in ours.items()}  # fmt: skip
    for path, (_, update) in ours.items():
        assert update.norm() > 1e-3, "the adapter has learned something"
        assert torch.allclose(flat[path][1], update, rtol=0, atol=1e-6), path
    kept = sum(rank for rank, _ in flat.values())
    assert capsys.readouterr().out.startswith(f"{kept} of 112 components, ")
    assert kept == 28, "a mean of two components in 14 layers"
    _check_peft(tmp_path / "base", tmp_path / "out" / "adapter", out)


def _check_peft(base: Path, *adapters: Path) -> None:
    """PEFT loads the adapters, and they give the same outputs."""
    ids = torch.arange(4, 20)[None]
    outputs = []
    for adapter in adapters:
        model = AutoModelForCausalLM.from_pretrained(base)
        with torch.no_grad():
            before = model(ids).logits
            outputs.append(PeftModel.from_pretrained(model, adapter).eval()(ids).logits)
        assert not torch.allclose(before, outputs[-1], atol=1e-3)
    assert torch.allclose(*outputs, rtol=0, atol=1e-5)


def test_the_file_is_short_and_needs_little() -> None:
    text = FILE.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 200
    names = {"torch", "transformers", "safetensors", "methods", *sys.stdlib_module_names}
    imports = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)]
    modules = [str(node.module) for node in imports]
    modules += [alias.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import)
                for alias in node.names]  # fmt: skip
    assert {module.split(".")[0] for module in modules} <= names
