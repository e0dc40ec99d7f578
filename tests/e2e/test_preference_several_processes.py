"""Two gloo processes train on preferences as one process does, after the reference was computed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sora_cli.app import run
from tests.helpers_families import write_preference_recipe
from tests.launched import launch_commands

pytestmark = pytest.mark.long


def test_two_processes_give_what_one_gives(tmp_path: Path) -> None:
    recipe = write_preference_recipe(tmp_path)
    words = ["train", str(recipe), "--no-verify", "method={name: lora, r: 4}"]
    words += ["training.max_steps=6", "training.model_dropout=0", "training.evaluate=no"]
    assert run([*words, f"output.dir={tmp_path}/one"]) == 0
    launch_commands(tmp_path, [{"words": [*words, f"output.dir={tmp_path}/two"], "stop": None}])
    for file in ("reference.safetensors", "adapter/adapter_model.safetensors"):
        one, two = (load_file(tmp_path / name / file) for name in ("one", "two"))
        assert one.keys() == two.keys()
        for name, tensor in one.items():
            torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-4)
