"""Two gloo processes prune to a promise as one does: the first one's scores decide for both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from sora_cli.app import run
from tests.helpers_models import tiny_bert
from tests.helpers_runs import pair_rows, train, write_recipe, write_rows
from tests.launched import launch_commands

pytestmark = pytest.mark.long


def test_two_processes_choose_the_size_that_one_chooses(tmp_path: Path) -> None:
    model = tiny_bert(num_labels=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    recipe = write_recipe(
        tmp_path, model, method={"threshold": 0.0}, training={"max_steps": 8, "batch_size": 8}
    )
    write_rows(tmp_path / "validation.jsonl", pair_rows(60, seed=1))
    train(recipe)

    def words(name: str) -> list[str]:
        return ["prune", f"{tmp_path}/out", "-o", f"{tmp_path}/{name}", "--max-drop", "40pt",
                "--heal", "2", "--no-verify"]  # fmt: skip

    assert run(words("one")) == 0
    said = launch_commands(tmp_path, [{"words": words("two"), "stop": None}], timeout=500)
    codes = [json.loads((tmp_path / f"commands.{rank}.json").read_text()) for rank in (0, 1)]
    assert [told[0]["code"] for told in codes] == [0, 0]
    assert said.count("certified: ") == 1
    one, two = (_record(tmp_path / name) for name in ("one", "two"))
    assert one["status"] == "certified"
    sizes = one["candidates"], two["candidates"]
    for mine, theirs in zip(*sizes, strict=True):
        assert mine["components"] == theirs["components"]
        assert abs(mine["test"]["score"] - theirs["test"]["score"]) <= 1 / 60  # a row, by rounding
    weights = [
        load_file(tmp_path / name / "adapter" / "adapter_model.safetensors")
        for name in ("one", "two")
    ]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        assert float((tensor - weights[1][name]).abs().max()) < 1e-4


def _record(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "certificate.json").read_text())
    return found
