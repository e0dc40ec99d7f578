"""Singular values read with numpy are those that `sora inspect` takes with torch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sora_cli.adapter.facts import facts_of
from sora_cli.adapter.modules import cuts
from sora_cli.adapter.reading import open_adapter
from sora_cli.adapter.singular_values import components_for, read_modules
from sora_cli.core.errors import SoraError
from tests.sora_cli.adapter.test_spectra import write_peft

SHAPES = {"layers.0.q": (24, 16), "layers.0.up": (40, 16), "layers.1.q": (24, 16)}
WEIGHTS = "adapter_model.safetensors"


def _change(folder: Path, change: object) -> None:
    tensors = load_file(folder / WEIGHTS)
    assert callable(change)
    save_file({name: change(name, t) for name, t in tensors.items()}, folder / WEIGHTS)


def _without_a_term(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if name.endswith("layers.0.q.lora_A.weight"):
        tensor[1] = 0
    return tensor


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_the_same_numbers(tmp_path: Path, dtype: torch.dtype) -> None:
    write_peft(tmp_path / "a", SHAPES)
    _change(tmp_path / "a", lambda name, t: _without_a_term(name, t).to(dtype))
    with open_adapter(tmp_path / "a") as file:
        facts = facts_of(file)
    modules = read_modules(tmp_path / "a")
    assert modules.keys() == facts.spectra.keys()
    for path, module in modules.items():
        expected, ranks = facts.spectra[path], facts.ranks[path]
        assert module.values == pytest.approx(expected.values.tolist(), rel=1e-6, abs=1e-9)
        assert (module.stored, module.live) == (ranks.stored, ranks.live)
        assert module.cost == sum(expected.shape)
        for energy, name in ((0.9, "rank_low"), (0.99, "rank_high")):
            assert components_for(module.values, energy) == getattr(expected, name)
    assert modules["layers.0.q"].live == modules["layers.0.q"].stored - 1
    assert [cut.ranks for cut in cuts(modules)] == [cut.ranks for cut in facts.cuts]
    energies = [cut.energy for cut in facts.cuts]
    assert [cut.energy for cut in cuts(modules)] == pytest.approx(energies)


def test_nothing_holds_nothing() -> None:
    assert components_for([], 0.9) == components_for([0.0, 0.0], 0.9) == 0
    assert components_for([3.0, 1.0], 0.9) == 1
    assert components_for([3.0, 1.0], 0.91) == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda _, t: t * float("nan"), "holds NaN or infinity"),
        (lambda _, t: t.to(torch.int8), "is stored as I8"),
        (lambda name, t: t[:1] if "lora_A" in name else t, "does not fit its B"),
    ],
)
def test_what_cannot_be_read(tmp_path: Path, change: object, said: str) -> None:
    write_peft(tmp_path / "a", SHAPES)
    _change(tmp_path / "a", change)
    with pytest.raises(SoraError, match=said):
        read_modules(tmp_path / "a")


def test_damaged_and_missing_files(tmp_path: Path) -> None:
    write_peft(tmp_path / "a", SHAPES)
    file = tmp_path / "a" / WEIGHTS
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(SoraError, match="truncated or corrupt"):
        read_modules(tmp_path / "a")
    file.unlink()
    with pytest.raises(SoraError, match="cannot be read"):
        read_modules(tmp_path / "a")
