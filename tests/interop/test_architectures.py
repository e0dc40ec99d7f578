"""Tiny models of many architectures: trained, loaded by PEFT, merged; and what is left out is said.

`docs/explanation/architectures.md` has a row for each of them, which is compared with the outcome.
`pytest -n 0 -s -m "long or not long"` of this file prints a row of the differences for each.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor

from methods.inject import remove
from sora_cli.adapter.consumers import consumers_of
from sora_cli.adapter.reading import open_adapter
from sora_cli.commands._training import run as run_training
from sora_cli.commands.merge import merge
from sora_cli.core.console import emit
from sora_cli.core.errors import SoraError
from sora_cli.recipe.load import load_recipe
from sora_cli.run.layers import left_out_lines, other_weights
from sora_cli.run.prepare import Prepared
from tests.architectures import ARCHITECTURES, CAUSAL, CLASSES, tiny
from tests.helpers_chat import chat_tokenizer, instruct_rows
from tests.helpers_runs import pair_rows, save_base, write_rows
from tests.shared_files import ROOT

SHORT = {
    ("falcon_h1", CAUSAL),  # PEFT refuses some of it, its configuration holds an infinity
    ("longformer", CLASSES),  # changes what a layer gave it
    ("mamba", CAUSAL),  # multiplies by a layer's weight itself
    ("qwen3_next", CAUSAL),  # fused experts, and shared ones whose factors PEFT loses
    ("t5", CLASSES),
    ("xlnet", CLASSES),  # attention without linear layers
}
PAGE = ROOT / "docs" / "explanation" / "architectures.md"
CASES = [
    pytest.param(kind, task, id=f"{kind}-{task}",
                 marks=() if (kind, task) in SHORT else pytest.mark.long)
    for kind, known in ARCHITECTURES.items()
    for task in known.tasks
]  # fmt: skip


def _recipe(folder: Path, model_type: str, task: str) -> Path:
    """Two steps of training; the learning rate is large, so that they have an effect."""
    model = tiny(model_type, task)
    if task == CAUSAL:
        model.save_pretrained(folder / "base")
        chat_tokenizer().save_pretrained(folder / "base")
    else:
        save_base(model, folder / "base")
    make = instruct_rows if task == CAUSAL else pair_rows
    recipe = {
        "model": {"path": str(folder / "base")},
        "task": {"name": task} | ({"metrics": ["loss"]} if task == CAUSAL else {}),
        "data": {
            "files": {
                "train": write_rows(folder / "train.jsonl", make(8)),
                "validation": write_rows(folder / "validation.jsonl", make(4, seed=1)),
            },
            "max_length": 32,
        },
        "method": {"name": "sora", "r_max": 4, "threshold": 1e-4},
        "training": {"epochs": 1, "batch_size": 4, "learning_rate": 0.05},
        "output": {"dir": str(folder / "out")},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return path


def _train(recipe: Path) -> Prepared:
    """The run's model, as it was saved."""
    began = time.perf_counter()
    return run_training(load_recipe(recipe), [str(recipe)], began=began, resume=False, force=False)[
        0
    ]


def _load(directory: Path, task: str) -> Any:
    """Whatever the directory does not hold is drawn anew."""
    if task == CAUSAL:
        return transformers.AutoModelForCausalLM.from_pretrained(directory)
    return transformers.AutoModelForSequenceClassification.from_pretrained(directory, num_labels=2)


@torch.no_grad()
def _logits(model: Any) -> Tensor:
    ids = torch.randint(4, 22, (3, 9), generator=torch.Generator().manual_seed(5))
    ids[:, -1] = 3  # ends: classifiers with a decoder read their answer there
    given: Tensor = model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    return given


def _stored(directory: Path) -> tuple[Any, set[str]]:
    """The class that a checkpoint names, and its tensors."""
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    return config["architectures"], set(load_file(directory / "model.safetensors"))


def _off(actual: Tensor, expected: Tensor) -> float:
    """The largest difference, as a share of the largest logit."""
    assert actual.shape == expected.shape
    return float((actual - expected).abs().max() / expected.abs().max())


def _row(model_type: str, ready: Prepared) -> str:
    """The page's row of a kind of model."""
    known = ARCHITECTURES[model_type]
    tasks = [*known.tasks, *(f"no {task}" for task in known.refused)]
    reasons: dict[str, list[str]] = {}
    for path, why in ready.left_out.items():
        reasons.setdefault(why, []).append(path)
    left = [f"{_names(paths)}: {why}" for why, paths in reasons.items()]
    others = {".".join(g.pattern.split(".")[-2:]) for g in other_weights(ready.base.model)}
    cells = (f"`{model_type}`", ", ".join(tasks), _names(ready.layers), "; ".join(left),
             _names(others, parts=2))  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _names(paths: Any, *, parts: int = 1) -> str:
    return ", ".join(f"`{n}`" for n in sorted({".".join(p.split(".")[-parts:]) for p in paths}))


@pytest.mark.parametrize(("model_type", "task"), CASES)
def test_trained_loaded_by_peft_and_merged(
    model_type: str, task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ready = _train(_recipe(tmp_path, model_type, task))
    said = capsys.readouterr().err
    lines = left_out_lines(ready.left_out, ready.base.model)
    assert all(f"note: {line}\n" in said for line in lines)
    model, base, adapter = ready.base.model, tmp_path / "base", tmp_path / "out" / "adapter"
    row, trained = _row(model_type, ready), _logits(model)
    remove(model, ready.layers)
    assert _off(_logits(model), trained) > 1e-3, "no difference could be seen"
    with open_adapter(adapter) as file:
        assert {c.name for c in consumers_of(file) if c.loads} >= {"PEFT", "transformers"}
    by_transformers = _load(base, task)
    by_transformers.load_adapter(str(adapter))
    merge(adapter, tmp_path / "merged", no_verify=True)
    off = {
        "PEFT": _off(_logits(PeftModel.from_pretrained(_load(base, task), adapter)), trained),
        "transformers": _off(_logits(by_transformers), trained),
        "merged": _off(_logits(_load(tmp_path / "merged", task)), trained),
    }
    shown = " | ".join(f"{value:.1e}" for value in off.values())
    emit(f"| {model_type} | {task} | {shown} | {len(ready.layers)} | {len(ready.left_out)} |")
    assert max(off.values()) <= 1e-5, off
    if task == CAUSAL:
        assert _stored(tmp_path / "merged") == _stored(base), "whatever the base holds, too"
    assert row in PAGE.read_text(encoding="utf-8").splitlines(), row


def test_the_page_has_a_row_for_each() -> None:
    rows = [x for x in PAGE.read_text(encoding="utf-8").splitlines() if x.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == list(ARCHITECTURES) == sorted(ARCHITECTURES)


@pytest.mark.parametrize("model_type", [k for k, known in ARCHITECTURES.items() if known.refused])
def test_what_is_refused_is_refused_before_the_first_step(model_type: str, tmp_path: Path) -> None:
    (task,) = ARCHITECTURES[model_type].refused
    with pytest.raises(SoraError, match="reads text in both directions"):
        _train(_recipe(tmp_path, model_type, task))
