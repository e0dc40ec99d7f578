"""Two gloo processes train on preferences as one process does, after the reference was computed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sora_cli.app import run
from tests.helpers_families import FAMILIES, thumb_rows
from tests.helpers_runs import write_rows
from tests.launched import launch_commands

pytestmark = pytest.mark.long


@pytest.mark.parametrize("kind", ["preference", "thumbs"])
def test_two_processes_give_what_one_gives(tmp_path: Path, kind: str) -> None:
    recipe = FAMILIES[kind](tmp_path)
    if kind == "thumbs":  # a last step of 5 rows fills no two micro-batches on either process
        write_rows(tmp_path / "train.jsonl", thumb_rows(45))
    words = ["train", str(recipe), "--no-verify", "method={name: lora, r: 4}"]
    words += ["training.max_steps=6", "training.model_dropout=0", "training.evaluate=no"]
    assert run([*words, f"output.dir={tmp_path}/one"]) == 0
    launch_commands(tmp_path, [{"words": [*words, f"output.dir={tmp_path}/two"], "stop": None}])
    for file in ("reference.safetensors", "adapter/adapter_model.safetensors"):
        one, two = (load_file(tmp_path / name / file) for name in ("one", "two"))
        assert one.keys() == two.keys()
        for name, tensor in one.items():
            torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-4)
