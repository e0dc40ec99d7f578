"""The adapter directory: what is written, what is read, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from methods.factors import LowRankFactors
from sora_cli.adapter.adapter import Adapter
from sora_cli.adapter.directory import write_adapter
from sora_cli.adapter.metadata import AdapterMeta, BaseReference
from sora_cli.adapter.on_demand import OnDemand
from sora_cli.adapter.parts.low_rank import StoredPair
from sora_cli.adapter.peft.layout import written_config
from sora_cli.adapter.places import locate_adapter
from sora_cli.adapter.reading import read_adapter
from sora_cli.core.errors import SoraError
from sora_cli.model.files import ADAPTER_CONFIG, ADAPTER_PICKLE, ADAPTER_WEIGHTS, SORA_FILE

BASE = BaseReference("package://some_package/model", "/somewhere/model", "main", "x:1")
QUERY, KEY = "enc.layer.0.query", "enc.layer.10.key"


def _factors(rank: int, n_in: int = 6, n_out: int = 5, *, seed: int = 0) -> LowRankFactors:
    g = torch.Generator().manual_seed(seed)
    return LowRankFactors(
        torch.randn(rank, n_in, generator=g), torch.randn(n_out, rank, generator=g)
    )


def _adapter(**changes: Any) -> Adapter:
    values: dict[str, Any] = {
        "layers": {KEY: _factors(4, seed=1), QUERY: _factors(2)},
        "head": {"classifier.weight": torch.randn(3, 5), "classifier.bias": torch.randn(3)},
        "head_modules": ("classifier",),
        "task_type": "SEQ_CLS",
        "base": BASE,
        "meta": AdapterMeta(method="sora", labels=("a", "b", "c"), max_length=128),
    }
    return Adapter.of(**{**values, **changes})


def _edit(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))


def _edit_tensors(directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    tensors = load_file(directory / ADAPTER_WEIGHTS)
    change(tensors)
    save_file(tensors, directory / ADAPTER_WEIGHTS, metadata={"format": "pt"})


@pytest.fixture
def written(tmp_path: Path) -> Path:
    write_adapter(tmp_path / "a", _adapter())
    return tmp_path / "a"


def test_what_is_written_comes_back(written: Path) -> None:
    adapter, back = _adapter(), read_adapter(written)
    assert list(back.layers) == [KEY, QUERY]  # the model's order, not the file's
    for path, factors in adapter.layers.items():
        assert torch.equal(back.layers[path].A, factors.A)
        assert torch.equal(back.layers[path].B, factors.B)
    assert back.head.keys() == adapter.head.keys()
    assert (back.base, back.task_type, back.head_modules) == (BASE, "SEQ_CLS", ("classifier",))
    assert (back.meta.method, back.meta.labels, back.meta.max_length) == (
        "sora",
        ("a", "b", "c"),
        128,
    )
    assert back.ranks() == back.ranks_start() == {KEY: 4, QUERY: 2}
    assert sorted(p.name for p in written.iterdir()) == sorted(
        [ADAPTER_CONFIG, ADAPTER_WEIGHTS, SORA_FILE]
    )


@pytest.mark.usefixtures("two_threads")
def test_each_layer_is_asked_for_twice(tmp_path: Path) -> None:
    """Once for its live terms, once to be written; what is read back is compared by digests."""
    layers = {path: LowRankFactors(torch.ones(2, 4), torch.ones(3, 2)) for path in "ab"}
    asked: list[str] = []

    def make(path: str) -> LowRankFactors:
        assert torch.get_num_threads() == 1  # more are slower at thin factors
        asked.append(path)
        return layers[path]

    base = BaseReference(path="", resolved="")
    adapter = Adapter.of(OnDemand(list(layers), make), {}, (), None, base)
    write_adapter(tmp_path / "out", adapter, dtype="bfloat16")
    assert torch.get_num_threads() == 2
    assert asked == ["a", "b", "a", "b"]


def test_files_that_read_back_differently_are_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = {"a": LowRankFactors(torch.ones(2, 4), torch.ones(3, 2))}
    adapter = Adapter.of(layers, {}, (), None, BaseReference(path="", resolved=""))
    factors = StoredPair.factors

    def damaged(self: StoredPair) -> LowRankFactors:
        found = factors(self)
        found.B[0, 0] = 1.5
        return found

    monkeypatch.setattr(StoredPair, "factors", damaged)
    with pytest.raises(SoraError, match="reads back differently"):
        write_adapter(tmp_path / "out", adapter)
    assert not (tmp_path / "out").exists()


def test_zero_terms_and_dead_modules_are_left_out(tmp_path: Path) -> None:
    some, dead = _factors(4), _factors(3)
    some.A[1] = 0
    some.B[:, 2] = 0
    dead.B.zero_()
    write_adapter(tmp_path / "a", _adapter(layers={QUERY: some, KEY: dead}))
    back = read_adapter(tmp_path / "a")
    assert {path: f.rank for path, f in back.layers.items()} == {QUERY: 2}
    assert torch.equal(back.layers[QUERY].dense(), some.dense())
    assert back.ranks() == {QUERY: 2, KEY: 0}
    assert back.ranks_start() == {QUERY: 4, KEY: 3}
    config = json.loads((tmp_path / "a" / ADAPTER_CONFIG).read_text())
    assert config["target_modules"] == [QUERY]
    assert config["base_model_name_or_path"] == BASE.resolved


def test_all_dead_adapter_keeps_one_zero_pair(tmp_path: Path) -> None:
    layers = {path: LowRankFactors(torch.ones(2, 6), torch.zeros(5, 2)) for path in (QUERY, KEY)}
    write_adapter(tmp_path / "a", _adapter(layers=layers))
    back = read_adapter(tmp_path / "a")
    assert {path: f.rank for path, f in back.layers.items()} == {QUERY: 1}
    assert back.layers[QUERY].norm() == 0
    assert back.ranks() == {QUERY: 0, KEY: 0}
    write_adapter(tmp_path / "b", back)
    assert read_adapter(tmp_path / "b").ranks() == {QUERY: 0, KEY: 0}


def test_existing_directory(tmp_path: Path, written: Path) -> None:
    with pytest.raises(SoraError, match="exists"):
        write_adapter(written, _adapter())
    write_adapter(written, _adapter(layers={QUERY: _factors(1)}), force=True)
    assert list(read_adapter(written).layers) == [QUERY]
    other = tmp_path / "other"
    other.mkdir()
    (other / "precious.txt").write_text("x")
    with pytest.raises(SoraError, match="even with --force"):
        write_adapter(other, _adapter(), force=True)
    assert (other / "precious.txt").read_text() == "x"


def test_failed_write_leaves_the_old_one_and_nothing_else(
    tmp_path: Path, written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sora_cli.adapter.directory.write_tensors", full_disk)
    with pytest.raises(SoraError, match="no space left"):
        write_adapter(written, _adapter(layers={QUERY: _factors(1)}), force=True)
    assert list(read_adapter(written).layers) == [KEY, QUERY]
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_values_are_neither_written_nor_read(
    tmp_path: Path, written: Path, bad: float
) -> None:
    factors = _factors(2)
    factors.A[0, 0] = bad
    with pytest.raises(SoraError, match="NaN or infinity"):
        write_adapter(tmp_path / "b", _adapter(layers={QUERY: factors}))
    assert not (tmp_path / "b").exists()
    _edit_tensors(written, lambda t: t[f"base_model.model.{KEY}.lora_B.weight"].fill_(bad))
    with pytest.raises(SoraError, match="NaN or infinity"):
        read_adapter(written)


def test_head_must_be_complete(tmp_path: Path) -> None:
    with pytest.raises(SoraError, match="belongs to none"):
        write_adapter(tmp_path / "b", _adapter(head_modules=("score",)))
    with pytest.raises(SoraError, match="no tensors"):
        write_adapter(tmp_path / "b", _adapter(head_modules=("classifier", "score")))
    with pytest.raises(SoraError, match="no adapted layer"):
        write_adapter(tmp_path / "b", _adapter(layers={}))


def test_pattern_keys_match_one_module_each() -> None:
    ranks = {"a.query": 1, "b.a.query": 2, "aXquery": 3, "c+d.(x)": 4, "e": 5}
    options: dict[str, Any] = {"base": "b", "revision": None, "task_type": None, "more": {}}
    config = written_config(ranks, fan_in_fan_out=False, **options)
    assert set(config["rank_pattern"].values()) == {1, 2, 3, 4}
    assert (config["r"], config["modules_to_save"]) == (5, None)


def test_run_directory_is_read_through(written: Path, tmp_path: Path) -> None:
    written.rename(tmp_path / "adapter")
    assert locate_adapter(tmp_path) == tmp_path / "adapter"
    assert read_adapter(tmp_path).ranks() == {KEY: 4, QUERY: 2}


def test_no_such_directory_and_no_adapter(tmp_path: Path) -> None:
    with pytest.raises(SoraError, match="there is no directory"):
        read_adapter(tmp_path / "nowhere")
    with pytest.raises(SoraError, match="is not an adapter directory"):
        read_adapter(tmp_path)


def test_pickled_weights_are_refused_with_the_reason(written: Path) -> None:
    (written / ADAPTER_WEIGHTS).rename(written / ADAPTER_PICKLE)
    with pytest.raises(SoraError, match="can run any code"):
        read_adapter(written)
    (written / ADAPTER_PICKLE).unlink()
    with pytest.raises(SoraError, match=f"holds no {ADAPTER_WEIGHTS}"):
        read_adapter(written)


@pytest.mark.parametrize("keep", [0, 5, 200, -1])
def test_truncated_file(written: Path, keep: int) -> None:
    content = (written / ADAPTER_WEIGHTS).read_bytes()
    (written / ADAPTER_WEIGHTS).write_bytes(content[:keep])
    with pytest.raises(SoraError, match="truncated or corrupt"):
        read_adapter(written)


CONFIG_DAMAGE: list[tuple[dict[str, Any], str]] = [
    ({"peft_type": "VERA"}, "VERA"),
    ({"use_dora": True}, "no magnitude"),
    ({"init_lora_weights": "olora"}, "init_lora_weights"),
    ({"r": 3}, "not a pair of rank 3"),
    ({"r": 0}, "at least 1"),
    ({"r": "many"}, "r: "),
    ({"rank_pattern": {"(": 2}}, "not a regular expression"),
    ({"lora_alpha": float("inf")}, "above 0 and finite"),
    ({"modules_to_save": None, "task_type": None}, "below modules_to_save"),
]


@pytest.mark.parametrize(("change", "message"), CONFIG_DAMAGE)
def test_damaged_configuration(written: Path, change: dict[str, Any], message: str) -> None:
    _edit(written / ADAPTER_CONFIG, lambda config: config.update(change))
    _edit(written / ADAPTER_CONFIG, lambda c: "r" in change and c.update(rank_pattern={}))
    with pytest.raises(SoraError, match=message):
        read_adapter(written)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}"])
def test_no_configuration(written: Path, text: str) -> None:
    (written / ADAPTER_CONFIG).write_text(text)
    with pytest.raises(SoraError):
        read_adapter(written)


def test_damaged_tensors(written: Path) -> None:
    key = f"base_model.model.{QUERY}.lora_A.weight"

    def rename(tensors: dict[str, Any]) -> None:
        tensors["somewhere.lora_A.weight"] = tensors.pop("base_model.model.classifier.bias")

    _edit_tensors(written, lambda t: t.update({key: torch.zeros(2, 3, 1)}))
    with pytest.raises(SoraError, match="not a pair"):
        read_adapter(written)
    _edit_tensors(written, lambda t: t.pop(key))
    with pytest.raises(SoraError, match="a B but no A"):
        read_adapter(written)
    _edit_tensors(written, rename)
    with pytest.raises(SoraError, match="does not start with"):
        read_adapter(written)


def test_sora_file_of_another_time(written: Path) -> None:
    _edit(written / SORA_FILE, lambda data: data.update(something_new=1))
    assert read_adapter(written).meta.method == "sora"
    _edit(written / SORA_FILE, lambda data: data.update(labels=3))
    with pytest.raises(SoraError, match="labels"):
        read_adapter(written)
    _edit(written / SORA_FILE, lambda data: data.update(labels=None, format_version=2))
    with pytest.raises(SoraError, match="newer sora"):
        read_adapter(written)
    (written / SORA_FILE).unlink()
    back = read_adapter(written)
    assert back.meta == AdapterMeta()
    assert back.base == BaseReference(BASE.resolved, BASE.resolved, "main")


def test_lower_precision_is_written_as_float32(tmp_path: Path) -> None:
    half = LowRankFactors(_factors(2).A.bfloat16(), _factors(2).B.double())
    write_adapter(tmp_path / "a", _adapter().with_layers({QUERY: half}))
    assert read_adapter(tmp_path / "a").layers[QUERY].B.dtype == torch.float32
