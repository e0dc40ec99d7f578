"""`sora extract --max-drop`: the smallest adapter that is shown to score as the model does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sora_cli.adapter.directory import read_adapter
from sora_cli.app import run
from tests.helpers_models import tiny_bert
from tests.helpers_runs import pair_rows, train, write_recipe, write_rows

ROWS = 60


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe with 60 rows to choose on, with which a whole model was trained."""
    folder = tmp_path_factory.mktemp("trained")
    training = {"learning_rate": 1e-3, "epochs": 6}
    recipe = write_recipe(folder, tiny_bert(num_labels=2), training=training)
    write_rows(folder / "validation.jsonl", pair_rows(ROWS, seed=1))
    train(recipe, "method.name=full")
    return recipe


def _extract(recipe: Path, out: Path, *words: str) -> int:
    model, base = recipe.parent / "out", recipe.parent / "base"
    return run(["extract", str(model), "--base", str(base), "-o", str(out), *words])


def _accuracy(recipe: Path, target: Path, capsys: Any) -> float:
    capsys.readouterr()
    assert run(["eval", str(target), "--recipe", str(recipe), "--json"]) == 0
    return float(json.loads(capsys.readouterr().out)["validation"]["accuracy"])


def test_the_smallest_size_that_is_certified_is_written(
    trained: Path, tmp_path: Path, capsys: Any
) -> None:
    out = tmp_path / "small"
    assert _extract(trained, out, "--max-drop", "30pt", "--recipe", str(trained)) == 0
    said = capsys.readouterr()
    (entry,) = read_adapter(out).meta.lineage
    assert (entry["command"], entry["max_drop"], entry["certified"]) == ("extract", 0.3, True)
    assert entry["drop"] <= entry["bound"] <= 0.3
    assert (entry["rows"], entry["bound_kind"]) == (ROWS, "exact")
    kept = sum(read_adapter(out).ranks().values())
    assert f"certified: {kept} components lose at most" in said.out
    assert "the model" in said.out
    assert entry["relative_error"] > 0.05  # most of the difference is not needed
    assert "60 rows of validation can certify a drop of" in said.err
    lost = _accuracy(trained, trained.parent / "out", capsys) - _accuracy(trained, out, capsys)
    assert lost == pytest.approx(entry["drop"], abs=1e-9)
    assert not list(tmp_path.glob(".small*"))


def test_nothing_is_certified(trained: Path, tmp_path: Path, capsys: Any) -> None:
    words = ("--max-drop", "0", "--confidence", "0.99", "--recipe", str(trained), "--json")
    assert _extract(trained, tmp_path / "out", *words) == 3
    facts = json.loads(capsys.readouterr().out)
    assert (facts["rule"]["certified"], facts["rule"]["confidence"]) == (False, 0.99)
    assert sum(read_adapter(tmp_path / "out").ranks().values()) > 0


def test_the_smallest_adapter_that_answers_as_the_model_does(
    trained: Path, tmp_path: Path, capsys: Any
) -> None:
    inputs = write_rows(tmp_path / "inputs.jsonl", pair_rows(ROWS, seed=3))
    out = tmp_path / "alike"
    assert _extract(trained, out, "--max-differ", "25%", "--unlabelled", inputs) == 0
    said = capsys.readouterr()
    (entry,) = read_adapter(out).meta.lineage
    assert (entry["max_differ"], entry["certified"], entry["metric"]) == (0.25, True, "agreement")
    assert entry["drop"] <= entry["bound"] <= 0.25
    assert "of the answers differ from the model's (bound " in said.out
    assert f"{inputs}: answers to the columns 'sentence1', 'sentence2' are compared" in said.err
    words = ("--max-differ", "25%", "--unlabelled", inputs, "--recipe", str(trained), "--json")
    assert _extract(trained, tmp_path / "again", *words) == 0
    assert json.loads(capsys.readouterr().out)["rule"]["max_differ"] == 0.25
