"""The lazy reader: all about the tensors without them, and then one module at a time."""

from __future__ import annotations

import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from methods.factors import LowRankFactors
from sora_cli.adapter.adapter import Adapter
from sora_cli.adapter.directory import write_adapter
from sora_cli.adapter.metadata import AdapterMeta, BaseReference
from sora_cli.adapter.reading import open_adapter, read_adapter
from sora_cli.core.errors import SoraError
from sora_cli.model.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from sora_cli.model.tensors import TensorFile

MODULES = 20


def _layers(*, modules: int = MODULES) -> dict[str, LowRankFactors]:
    g = torch.Generator().manual_seed(0)
    return {
        f"layer.{i}.query": LowRankFactors(
            torch.randn(i % 4 + 1, 6, generator=g), torch.randn(5, i % 4 + 1, generator=g)
        )
        for i in range(modules)
    }


def _adapter(**changes: Any) -> Adapter:
    values: dict[str, Any] = {
        "layers": _layers(),
        "head": {"score.weight": torch.ones(2, 5), "score.n": torch.tensor(3)},
        "head_modules": ("score",),
        "task_type": "SEQ_CLS",
        "base": BaseReference("b", "b"),
        "meta": AdapterMeta(method="some method"),
    }
    return Adapter.of(**{**values, **changes})


@pytest.fixture
def written(tmp_path: Path) -> Path:
    write_adapter(tmp_path / "a", _adapter())
    return tmp_path / "a"


@pytest.fixture
def alive(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many of the tensors read so far are in memory, at each read."""
    read, seen, counts = TensorFile.read, weakref.WeakSet(), []

    def watched(self: TensorFile, key: str) -> Tensor:
        tensor = read(self, key)
        seen.add(tensor.untyped_storage())
        counts.append(len(seen))
        return tensor

    monkeypatch.setattr(TensorFile, "read", watched)
    return counts


def test_everything_but_the_numbers_comes_from_the_header(written: Path, alive: list[int]) -> None:
    with open_adapter(written) as file:
        assert file.source.directory == written
        assert file.paths == list(_layers())
        assert set(file.shapes.values()) == {(5, 6)}
        assert file.stored_ranks == {path: f.rank for path, f in _layers().items()}
        assert (file.source.kind, file.source.dtype, file.source.notes) == ("LoRA", "float32", ())
        assert sorted(file.full) == ["score.n", "score.weight"]
        assert {name: p.shape for name, p in file.full.items()} == {
            "score.n": (),
            "score.weight": (2, 5),
        }
        assert (file.head_modules, file.head_parameters) == (("score",), 11)
        assert file.parameters == _adapter().parameters
        assert (file.base.path, file.meta.method) == ("b", "some method")
        assert alive == []


def test_one_module_at_a_time(written: Path, tmp_path: Path, alive: list[int]) -> None:
    with open_adapter(written) as file:
        for path, meant in _layers().items():
            factors = file.layers[path]
            assert torch.equal(factors.A, meant.A)
            assert torch.equal(factors.B, meant.B)
        assert torch.equal(file.head["score.weight"], torch.ones(2, 5))
        write_adapter(tmp_path / "b", file)
    assert len(alive) > 4 * MODULES
    assert max(alive) <= 6  # a pair, what it is compared with, and the pair before
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS, "sora.json"):
        assert (written / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_lazy_and_whole_are_the_same(written: Path) -> None:
    whole = read_adapter(written)
    with open_adapter(written) as file:
        lazy = file
        assert list(lazy.layers) == list(whole.layers)
        assert list(lazy.head) == list(whole.head)
        assert len(lazy.layers) == MODULES
        assert lazy.ranks() == whole.ranks()
        with pytest.raises(KeyError):
            lazy.layers["layer.99.query"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("layout", ["exact", "padded"])
def test_layouts_and_dtypes(tmp_path: Path, layout: str, dtype: str) -> None:
    layers = {**_layers(modules=4), "dead": LowRankFactors(torch.ones(1, 6), torch.zeros(5, 1))}
    write_adapter(tmp_path / "a", _adapter(layers=layers), layout=layout, dtype=dtype)
    back = read_adapter(tmp_path / "a")
    for path, factors in layers.items():
        if path == "dead":
            assert path not in back.layers
            continue
        live = back.layers[path].drop_zeros()
        assert torch.equal(live.A, factors.A.to(getattr(torch, dtype)).float())
        assert torch.equal(live.B, factors.B.to(getattr(torch, dtype)).float())
        assert back.layers[path].rank == (4 if layout == "padded" else factors.rank)
    assert back.ranks() == {**{path: f.rank for path, f in layers.items()}, "dead": 0}
    config = json.loads((tmp_path / "a" / ADAPTER_CONFIG).read_text())
    assert (config["r"], config["lora_alpha"]) == (4, 4)
    assert len(config["rank_pattern"]) == (0 if layout == "padded" else 3)
    assert config["rank_pattern"] == config["alpha_pattern"]
    with open_adapter(tmp_path / "a") as file:
        assert file.source.dtype == dtype


def test_mixed_dtypes_count_as_float32(written: Path) -> None:
    tensors = load_file(written / ADAPTER_WEIGHTS)
    key = next(key for key in tensors if key.endswith("lora_A.weight"))
    tensors[key] = tensors[key].bfloat16()
    save_file(tensors, written / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    with open_adapter(written) as file:
        assert file.source.dtype == "float32"


@pytest.mark.parametrize("scale", [1e-5, 1e-9])
def test_small_factors_in_float16(tmp_path: Path, scale: float) -> None:
    """B alone would lose bits, or become zero; its product with A has room."""
    layers = {path: LowRankFactors(f.A, scale * f.B) for path, f in _layers(modules=4).items()}
    write_adapter(tmp_path / "a", _adapter(layers=layers), dtype="float16")
    for path, factors in read_adapter(tmp_path / "a").layers.items():
        expected = layers[path].B.double() @ layers[path].A.double()
        error = factors.B.double() @ factors.A.double() - expected
        assert error.norm() < 2e-3 * expected.norm()


def test_what_float16_can_not_hold(tmp_path: Path) -> None:
    large = {"a": LowRankFactors(torch.full((1, 6), 1e6), torch.ones(5, 1))}
    with pytest.raises(SoraError, match="too large for float16"):
        write_adapter(tmp_path / "a", _adapter(layers=large), dtype="float16")
    write_adapter(tmp_path / "a", _adapter(layers=large), dtype="bfloat16")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
