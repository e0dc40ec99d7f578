"""`sora combine` through the app: sums that are exact, cuts, TIES and DARE, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from methods.combining import ties
from methods.factors import LowRankFactors
from sora_cli.adapter import combine as combining
from sora_cli.adapter.adapter import Adapter
from sora_cli.adapter.directory import write_adapter
from sora_cli.adapter.metadata import AdapterMeta, BaseReference
from sora_cli.adapter.reading import read_adapter
from sora_cli.app import run
from tests.helpers_errors import refused

PATHS = ("layer.0.query", "layer.1.query", "layer.1.value")


def _write(
    directory: Path,
    seed: int,
    *,
    ranks: Mapping[str, int] | None = None,
    n_in: int = 10,
    fingerprint: str | None = "x:1",
    hub_id: str | None = None,
    head: float | None = None,
    task_type: str = "CAUSAL_LM",
    **meta: Any,
) -> str:
    g = torch.Generator().manual_seed(seed)
    layers = {
        path: LowRankFactors(
            torch.randn(rank, n_in, generator=g), torch.randn(8, rank, generator=g)
        )
        for path, rank in (ranks or dict.fromkeys(PATHS, 2)).items()
    }
    adapter = Adapter.of(
        layers=layers,
        head={} if head is None else {"score.weight": torch.full((2, 5), head)},
        head_modules=() if head is None else ("score",),
        task_type=task_type,
        base=BaseReference("some/where", "/not/there", None, fingerprint, hub_id),
        meta=AdapterMeta(**meta),
    )
    write_adapter(directory, adapter)
    return str(directory)


def _three(tmp_path: Path) -> list[str]:
    """Adapters of different ranks, on different modules."""
    ranks = [{PATHS[0]: 2, PATHS[1]: 3}, {PATHS[0]: 1, PATHS[2]: 2}, dict.fromkeys(PATHS, 4)]
    return [_write(tmp_path / f"a{i}", i, ranks=each) for i, each in enumerate(ranks)]


def _combine(capsys: Any, *words: str) -> dict[str, Any]:
    capsys.readouterr()
    assert run(["combine", *words, "--json"]) == 0
    facts: dict[str, Any] = json.loads(capsys.readouterr().out)
    return facts


def _dense(directory: str | Path) -> dict[str, Tensor]:
    layers, zero = read_adapter(Path(directory)).layers, torch.zeros(8, 10, dtype=torch.float64)
    return {path: layers[path].dense() if path in layers else zero for path in PATHS}


def _sum(directories: list[str], weights: list[float]) -> dict[str, Tensor]:
    every = [_dense(directory) for directory in directories]
    return {
        path: sum((w * each[path] for each, w in zip(every, weights, strict=True)),
                  torch.zeros(8, 10, dtype=torch.float64))
        for path in PATHS
    }  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("weights", [None, [0.5, -2.0, 1e-3]])
def test_a_sum_is_exact_and_ranks_add_up(
    tmp_path: Path, capsys: Any, weights: list[float] | None, dtype: str
) -> None:
    adapters, out = _three(tmp_path), tmp_path / "out"
    options = [] if weights is None else [f"--weights={','.join(map(str, weights))}"]
    facts = _combine(capsys, *adapters, "-o", str(out), *options, "--dtype", dtype)
    assert facts["verified"]
    meant = _sum(adapters, weights or [1 / 3] * 3)
    tolerance = {"float32": 1e-6, "bfloat16": 3e-2, "float16": 4e-3}[dtype]
    for path, dense in _dense(out).items():
        assert float((dense - meant[path]).norm() / meant[path].norm()) < tolerance
    assert read_adapter(out).ranks() == {PATHS[0]: 7, PATHS[1]: 7, PATHS[2]: 6}
    assert read_adapter(out).meta.lineage[0]["command"] == "combine"
    for command in (["inspect", str(out)], ["prune", str(out), "-o", str(tmp_path / "p")]):
        assert run(command) == 0


def test_one_cut_over_all_layers(tmp_path: Path, capsys: Any) -> None:
    """Equal to pruning the exact sum, and the error is the distance."""
    adapters, out, whole = _three(tmp_path), tmp_path / "out", tmp_path / "whole"
    _combine(capsys, *adapters, "-o", str(whole))
    facts = _combine(capsys, *adapters, "-o", str(out), "--mean-rank", "2")
    assert not facts["verified"]
    assert run(["prune", str(whole), "-o", str(tmp_path / "pruned"), "--mean-rank", "2"]) == 0
    found, pruned, meant = _dense(out), _dense(tmp_path / "pruned"), _dense(whole)
    for path in PATHS:
        torch.testing.assert_close(found[path], pruned[path], rtol=0, atol=1e-5)
    missing = sum(float((found[path] - meant[path]).square().sum()) for path in PATHS)
    norm = sum(float(meant[path].square().sum()) for path in PATHS)
    assert facts["relative_error"] == pytest.approx((missing / norm) ** 0.5, rel=1e-4)
    assert sum(module["rank"] for module in facts["modules"].values()) == 6


def test_a_sum_that_is_wrong_is_not_written(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = combining.Combination.stacked

    def wrong(self: combining.Combination, path: str) -> LowRankFactors:
        factors = right(self, path)
        return LowRankFactors(factors.A, factors.B * (1 + 1e-4))

    monkeypatch.setattr(combining.Combination, "stacked", wrong)
    refused(capsys, "combine", *_three(tmp_path), "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_ties_is_that_of_the_dense_updates(tmp_path: Path, capsys: Any) -> None:
    adapters, out = _three(tmp_path), tmp_path / "out"
    options = ("--method", "ties", "--density", "0.4", "--energy", "1", "-o", str(out))
    facts = _combine(capsys, *adapters, *options)
    every = [_dense(directory) for directory in adapters]
    for path, dense in _dense(out).items():
        meant = ties([each[path] for each in every], [1 / 3] * 3, 0.4)
        torch.testing.assert_close(dense, meant, rtol=0, atol=1e-5)
    assert facts["relative_error"] < 1e-5
    assert not facts["verified"]
    cut = _combine(capsys, *adapters, *options, "--force", "--energy", "0.5")
    assert 0.1 < cut["relative_error"] < 0.5**0.5 + 1e-3


def test_dare_drops_by_its_seed(tmp_path: Path, capsys: Any) -> None:
    adapters = _three(tmp_path)
    options = ("--method", "dare", "--energy", "1")
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        _combine(capsys, *adapters, *options, "--seed", seed, "-o", str(tmp_path / name))
    a, b, c = (_dense(tmp_path / name) for name in "abc")
    assert all(torch.equal(a[path], b[path]) for path in PATHS)
    assert not torch.allclose(a[PATHS[0]], c[PATHS[0]], atol=1e-3)
    # of the only adapter with two of the modules, half is left, doubled
    one = _combine(capsys, adapters[0], adapters[0], "--weights", "1,1e-9", *options,
                   "-o", str(tmp_path / "one"))  # fmt: skip
    assert one["relative_error"] < 1e-5
    update, kept = _dense(adapters[0])[PATHS[0]], _dense(tmp_path / "one")[PATHS[0]]
    share = (kept / update).round(decimals=3)
    assert set(share.unique().abs().tolist()) == {0.0, 2.0}


def test_heads_that_are_the_same_stay(tmp_path: Path, capsys: Any) -> None:
    options = {"task_type": "SEQ_CLS", "labels": ("a", "b"), "task": "sequence-classification"}
    a, b = (_write(tmp_path / n, i, head=1.0, **options) for i, n in enumerate("ab"))
    other = _write(tmp_path / "other", 3, head=2.0, **options)
    out = tmp_path / "out"
    _combine(capsys, a, b, "-o", str(out))
    done = read_adapter(out)
    assert torch.equal(done.head["score.weight"], torch.ones(2, 5))
    assert (done.meta.labels, done.meta.task) == (("a", "b"), "sequence-classification")
    refused(capsys, "combine", a, other, "-o", out, "--force")


def test_adapters_that_do_not_belong_together(tmp_path: Path, capsys: Any) -> None:
    a = _write(tmp_path / "a", 0)
    for other in (
        _write(tmp_path / "base", 1, fingerprint="x:2"),
        _write(tmp_path / "shape", 1, n_in=11),
        _write(tmp_path / "task", 1, task_type="SEQ_2_SEQ_LM"),
    ):
        refused(capsys, "combine", a, other, "-o", tmp_path / "out")
    unknown = _write(tmp_path / "unknown", 2, fingerprint=None)
    another = _write(tmp_path / "another", 3, fingerprint=None)
    for first in (a, another):  # one base is known, or none
        notes = _combine(capsys, unknown, first, "-o", str(tmp_path / "out"), "--force")["notes"]
        sides = (first, unknown) if first == a else (unknown, first)
        said = (
            "the base model of {} may not be the base model of {}: its fingerprint is not recorded"
        )
        assert notes == [said.format(*sides)]
    hub = [_write(tmp_path / n, 3, fingerprint=None, hub_id=f"me/{n}") for n in ("x", "y")]
    refused(capsys, "combine", *hub, "-o", tmp_path / "out", "--force")
