"""What is refused before a run begins, because the data do not fit the model."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import pytest

from sora_cli.app import run
from sora_cli.recipe.load import load_recipe
from sora_cli.run.prepare import prepare
from tests.helpers_errors import refused
from tests.helpers_models import tiny_bert
from tests.helpers_runs import write_recipe, write_rows


def test_rows_longer_than_the_model_has_positions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path, tiny_bert(num_labels=2), data={"max_length": 100})
    long = {"sentence1": "cat " * 90, "sentence2": "dog", "label": 1}
    with (tmp_path / "train.jsonl").open("a", encoding="utf-8") as rows:
        rows.write(json.dumps(long) + "\n")
    refused(capsys, "train", recipe)
    assert not (tmp_path / "out").exists()
    assert run(["train", str(recipe), "data.max_length=64", "training.max_steps=1"]) == 0


def test_row_without_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_recipe(tmp_path, tiny_bert(num_labels=2))
    rows = [
        {"sentence1": text, "sentence2": "dog", "label": i} for i, text in enumerate(["cat", None])
    ]
    write_rows(tmp_path / "validation.jsonl", rows)
    refused(capsys, "train", recipe)
    assert not (tmp_path / "out").exists()


def test_layers_of_one_input_are_computed_together(tmp_path: Path) -> None:
    recipe = load_recipe(str(write_recipe(tmp_path, tiny_bert(num_labels=2)))).recipe
    layers = prepare(recipe, lambda _: nullcontext()).layers
    groups = {siblings for layer in layers.values() if (siblings := layer.siblings) is not None}
    together = {tuple(p for p, m in layers.items() if m in group.layers) for group in groups}
    attention = [f"bert.encoder.layer.{i}.attention.self" for i in (0, 1)]
    assert together == {tuple(f"{a}.{n}" for n in ("query", "key", "value")) for a in attention}
