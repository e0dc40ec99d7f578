"""The fingerprint of a model: any end of any tensor changes it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sora_cli.model.fingerprint import fingerprint


def _saved(folder: Path, **changes: float) -> str:
    folder.mkdir()
    weight = torch.zeros(5000)
    for place, value in changes.items():
        weight[{"first": 0, "middle": 2500, "last": -1}[place]] = value
    save_file({"other": torch.ones(3), "weight": weight}, folder / "model.safetensors")
    return fingerprint(folder)


@pytest.mark.parametrize("place", ["first", "last"])
def test_both_ends_of_a_tensor_are_looked_at(tmp_path: Path, place: str) -> None:
    assert _saved(tmp_path / "a") == _saved(tmp_path / "b")
    assert _saved(tmp_path / "c", **{place: 1.0}) != _saved(tmp_path / "d")
