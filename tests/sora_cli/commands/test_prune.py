"""`sora prune`: what is kept, what is lost, and that the printed loss is true."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from methods.budgets import strongest
from methods.factors import Decomposition, LowRankFactors
from methods.grid import round_factors
from methods.keep import Keep
from sora_cli.adapter.adapter import Adapter
from sora_cli.adapter.directory import write_adapter
from sora_cli.adapter.metadata import BaseReference
from sora_cli.adapter.pruning import prune_layers
from sora_cli.adapter.reading import open_adapter, read_adapter
from sora_cli.adapter.survival import LEAST
from sora_cli.app import run
from sora_cli.commands.prune import prune
from tests.golden import NUMBER, told
from tests.helpers_errors import refused
from tests.helpers_models import tiny_bert
from tests.helpers_runs import train, write_recipe
from tests.present import present
from tests.sora_cli.commands.promises import Makers, finished
from tests.sora_cli.experiments.auto.support import certificate_of


def _layer(rank: int, n_in: int, n_out: int, scale: float, seed: int) -> LowRankFactors:
    g = torch.Generator().manual_seed(seed)
    A = torch.randn(rank, n_in, generator=g) * torch.linspace(1, 0.1, rank)[:, None]
    return LowRankFactors(A, torch.randn(n_out, rank, generator=g) * scale)


@pytest.fixture
def layers() -> dict[str, LowRankFactors]:
    made = {
        "l.0.big": _layer(6, 40, 30, 1.0, 0),
        "l.0.small": _layer(6, 10, 8, 0.5, 1),
        "l.1.small": _layer(4, 10, 8, 0.01, 2),
        "l.1.dead": _layer(3, 10, 8, 0.0, 3),
    }
    made["l.0.big"].B[:, 2] = 0
    return made


@pytest.fixture
def directory(tmp_path: Path, layers: dict[str, LowRankFactors]) -> Path:
    head = {"score.weight": torch.ones(2, 8)}
    base = BaseReference("base", "base", None, "x")
    write_adapter(tmp_path / "a", Adapter.of(layers, head, ("score",), "SEQ_CLS", base))
    return tmp_path / "a"


@pytest.mark.parametrize(("kept", "cuts"), [(10**6, 3), (150, 5), (0, 6)])
def test_a_layer_is_cut_once_if_it_fits_into_memory(
    layers: dict[str, LowRankFactors], kept: int, cuts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At rank 2 they have 140, 36 and 36 numbers; the dead one is not cut."""
    made = []
    truncate = Decomposition.truncate

    def counted(self: Decomposition, factors: LowRankFactors, rank: int) -> LowRankFactors:
        made.append(rank)
        return truncate(self, factors, rank)

    monkeypatch.setattr("methods.factors.Decomposition.truncate", counted)
    monkeypatch.setattr("sora_cli.adapter.pruning._KEPT", kept)
    pruned, _ = prune_layers(layers, Keep(rank=2))
    first, again = dict(pruned), dict(pruned)
    assert len(made) == cuts
    assert all(torch.equal(first[path].dense(), again[path].dense()) for path in layers)


def _true_errors(
    before: dict[str, LowRankFactors], after: dict[str, LowRankFactors]
) -> tuple[dict[str, float], float]:
    lost = {p: (f.dense() - after[p].dense()).norm().item() for p, f in before.items()}
    norms = {p: f.dense().norm().item() for p, f in before.items()}
    total = math.hypot(*lost.values()) / math.hypot(*norms.values())
    return {p: lost[p] / norms[p] if norms[p] else 0.0 for p in before}, total


@pytest.mark.parametrize(
    "rule", [{}, {"energy": 0.9}, {"rank": 2}, {"max_params": 300}, {"mean_rank": 2.5}]
)
def test_printed_errors_are_true(layers: dict[str, LowRankFactors], rule: dict[str, Any]) -> None:
    pruned, losses = prune_layers(layers, Keep(**rule))
    errors, total = _true_errors(layers, pruned)
    for path, loss in losses.items():
        assert loss.relative_error == pytest.approx(errors[path], abs=1e-6)
        assert loss.after == pruned[path].rank
    whole = sum(losses.values(), start=type(loss)(0, 0, 0, 0))
    assert whole.relative_error == pytest.approx(total, abs=1e-6)


def test_each_layer_is_decomposed_once(
    layers: dict[str, LowRankFactors], monkeypatch: pytest.MonkeyPatch
) -> None:
    decomposed, decompose = [], LowRankFactors.decompose

    def counted(self: LowRankFactors) -> Any:
        decomposed.append(self)
        return decompose(self)

    monkeypatch.setattr(LowRankFactors, "decompose", counted)
    pruned, _ = prune_layers(layers, Keep(rank=2))
    assert [f.rank for _ in range(3) for f in pruned.values()] == 3 * [2, 2, 2, 0]
    assert len(decomposed) == len(layers)


def test_default_leaves_out_exact_zeros_only(layers: dict[str, LowRankFactors]) -> None:
    pruned, losses = prune_layers(layers, Keep())
    assert {p: f.rank for p, f in pruned.items()} == {
        "l.0.big": 5, "l.0.small": 6, "l.1.small": 4, "l.1.dead": 0,
    }  # fmt: skip
    assert all(loss.dropped == 0 for loss in losses.values())
    assert torch.equal(pruned["l.0.small"].B, layers["l.0.small"].B)  # not even rotated


def test_energy_holds_for_each_layer_and_is_smallest(layers: dict[str, LowRankFactors]) -> None:
    pruned, losses = prune_layers(layers, Keep(energy=0.9))
    for path, loss in losses.items():
        if not loss.squared:
            continue
        assert 1 - loss.relative_error**2 >= 0.9
        s = layers[path].singular_values()
        fewer = (s[: pruned[path].rank - 1] ** 2).sum() / (s**2).sum()
        assert fewer < 0.9


def test_rank_is_a_ceiling(layers: dict[str, LowRankFactors]) -> None:
    pruned, _ = prune_layers(layers, Keep(rank=5))
    assert [f.rank for f in pruned.values()] == [5, 5, 4, 0]


def test_max_params_is_kept_and_spends_where_it_matters(
    layers: dict[str, LowRankFactors],
) -> None:
    for budget in (18, 70, 100, 300, 400, 10_000):
        pruned, _ = prune_layers(layers, Keep(max_params=budget))
        used = sum(f.parameters for f in pruned.values())
        assert used <= budget
        assert pruned["l.1.dead"].rank == 0
        weak_left = pruned["l.1.small"].rank
        if weak_left:  # a hundred times weaker than its equal in size: last to be paid for
            assert pruned["l.0.small"].rank == 6
    assert [f.rank for f in pruned.values()] == [5, 6, 4, 0]


def test_max_params_is_optimal_among_layers_of_one_shape() -> None:
    same = {f"l.{i}.x": _layer(3, 10, 8, scale, i) for i, scale in enumerate((1, 0.7, 0.2))}
    pruned, losses = prune_layers(same, Keep(max_params=5 * 18))
    values = torch.cat([f.singular_values() for f in same.values()])
    best = (values.sort(descending=True).values[5:] ** 2).sum().item()
    assert sum(f.rank for f in pruned.values()) == 5
    assert sum(loss.dropped for loss in losses.values()) == pytest.approx(best, rel=1e-9)


def test_command_keeps_head_and_records_what_was_done(
    directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prune(directory, tmp_path / "p", rank=2)
    told(capsys.readouterr().out, hide=NUMBER)
    back = read_adapter(tmp_path / "p")
    assert torch.equal(back.head["score.weight"], torch.ones(2, 8))
    assert back.ranks() == {"l.0.big": 2, "l.0.small": 2, "l.1.small": 2, "l.1.dead": 0}
    assert back.ranks_start() == {"l.0.big": 6, "l.0.small": 6, "l.1.small": 4, "l.1.dead": 3}
    (entry,) = back.meta.lineage
    assert (entry["command"], entry["rank"]) == ("prune", 2)
    prune(tmp_path / "p", tmp_path / "q", energy=0.8)
    assert [step["command"] for step in read_adapter(tmp_path / "q").meta.lineage] == ["prune"] * 2


def test_lossless_says_that_nothing_was_lost(
    directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prune(directory, tmp_path / "p")
    told(capsys.readouterr().out, hide=NUMBER)


def test_mean_rank_keeps_the_strongest_of_all_layers(layers: dict[str, LowRankFactors]) -> None:
    values = {path: f.drop_zeros().singular_values() for path, f in layers.items()}
    everything = torch.cat(list(values.values()))
    for mean in (0.25, 1, 2.6, 3):
        pruned, losses = prune_layers(layers, Keep(mean_rank=mean))
        kept = sum(f.rank for f in pruned.values())
        assert kept == int(4 * mean)
        best = (everything.sort(descending=True).values[kept:] ** 2).sum().item()
        assert sum(loss.dropped for loss in losses.values()) == pytest.approx(best, rel=1e-9)
    whole, _ = prune_layers(layers, Keep(mean_rank=100))
    assert [f.rank for f in whole.values()] == [5, 6, 4, 0]
    of_eight, _ = prune_layers(layers, Keep(mean_rank=0.5), modules=8)
    assert sum(f.rank for f in of_eight.values()) == 4


def test_strongest_never_keeps_zeros() -> None:
    values = {"a": torch.tensor([2.0, 0.0]), "b": torch.tensor([1.0]), "c": torch.zeros(0)}
    assert strongest(values, 9) == {"a": 1, "b": 1, "c": 0}
    assert strongest(values, 1, {"a": 100, "b": 1, "c": 1}) == {"a": 0, "b": 1, "c": 0}


@pytest.fixture
def trained(makers: Makers) -> Path:
    """A recipe of two classes with 30 rows to choose on, and its run."""
    return makers.recipe(finished)


def _prune(recipe: Path, out: Path, *words: str) -> int:
    given = ["prune", str(recipe.parent / "out"), "-o", str(out), "--recipe", str(recipe)]
    return run([*given, *words])


def test_bits_are_tested_as_they_are_stored(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--max-drop", "40pt", "--bits", "3", "--head-bits", "8"]
    assert _prune(trained, tmp_path / "p", *words) == 0
    said = capsys.readouterr().out
    small = read_adapter(tmp_path / "p")
    (entry,) = small.meta.lineage
    assert (entry["bits"], entry["head_bits"], small.meta.bits) == (3, 8, 3)
    assert "the unrounded adapter" in said
    assert "head rounded to 8 bits" in said
    scores = []
    for target in (trained.parent / "out", tmp_path / "p"):
        assert run(["eval", str(target), "--recipe", str(trained), "--json"]) == 0
        scores.append(json.loads(capsys.readouterr().out)["validation"]["accuracy"])
    written = present(certificate_of(tmp_path / "p").written)
    assert written.test is not None
    assert scores[0] - scores[1] == pytest.approx(written.test.drop, abs=1e-9)


def test_a_test_may_leave_no_component_to_pack(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prune(trained.parent / "out", tmp_path / "a", rank=1)
    words = ["--recipe", trained, "--max-drop", "99pt", "--bits", "2"]
    assert run(["prune", *map(str, [tmp_path / "a", "-o", tmp_path / "p", *words])]) == 0
    out, err = capsys.readouterr()
    assert "kept: 0 of " in out
    assert "rounded to" not in out
    assert "to pack it" not in err


def _foreign(folder: Path, layers: dict[str, LowRankFactors], alpha: float) -> Path:
    """A bfloat16 LoRA of rank 6 as PEFT writes it, with its scaling in the configuration."""
    tensors = {}
    for path in ("l.0.big", "l.0.small"):
        prefix = f"base_model.model.{path}.lora_"
        tensors[f"{prefix}A.weight"] = layers[path].A.bfloat16()
        tensors[f"{prefix}B.weight"] = layers[path].B.bfloat16()
    config = {"peft_type": "LORA", "r": 6, "lora_alpha": alpha, "target_modules": ["big", "small"]}
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("alpha", "rule", "dtype"),
    [
        (12, {}, "bfloat16"),  # a scaling of 2 is exact
        (9, {}, "float32"),  # one of 1.5 would round
        (9, {"rank": 2}, "bfloat16"),  # lossy all the same
    ],
)
def test_dtype_is_kept_where_that_loses_nothing(
    tmp_path: Path,
    layers: dict[str, LowRankFactors],
    alpha: float,
    rule: dict[str, int],
    dtype: str,
) -> None:
    foreign = _foreign(tmp_path / "f", layers, alpha)
    prune(foreign, tmp_path / "p", **rule)
    with open_adapter(tmp_path / "p") as file:
        assert file.source.dtype == dtype
    if not rule:
        before, after = read_adapter(foreign), read_adapter(tmp_path / "p")
        for path, factors in before.layers.items():
            assert torch.equal(after.layers[path].dense(), factors.dense())


def test_max_drop_needs_the_adapters_own_classes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path, tiny_bert(num_labels=2), data={"label_names": ["no", "yes"]})
    train(recipe)
    words = ["prune", str(tmp_path / "out"), "-o", str(tmp_path / "p"), "--recipe", str(recipe)]
    refused(capsys, *words, "--max-drop", "0.02", "data.label_names=[yes,no]")
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize("rule", [{}, {"rank": 2}, {"max_params": 150}])
def test_the_error_of_rounding_is_true(
    directory: Path,
    layers: dict[str, LowRankFactors],
    rule: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    prune(directory, tmp_path / "p", bits=4, **rule)
    said = capsys.readouterr().out
    before = {path: layers[path] for path in layers if path != "l.1.dead"}
    with open_adapter(tmp_path / "p") as file:
        assert (file.source.dtype, file.meta.bits) == ("float32", 4)
        after, errors = dict(file.layers), file.meta.rounding_errors
    zero = LowRankFactors(torch.zeros(0, 10), torch.zeros(8, 0))
    _, total = _true_errors(before, {path: after.get(path, zero) for path in before})
    assert f"{total:.2%}" in said
    cut, _ = prune_layers(layers, Keep(**rule))
    for path, factors in after.items():
        exact = cut[path].dense()
        error = float((factors.dense() - exact).norm() / exact.norm())
        assert errors[path] == pytest.approx(error, abs=1e-5)
        assert 0 < error < 0.3


def _with_outlier(size: float) -> LowRankFactors:
    """One component with a number far from all others on either side."""
    g = torch.Generator().manual_seed(0)
    factors = LowRankFactors(torch.randn(1, 64, generator=g), torch.randn(64, 1, generator=g))
    factors.A[0, 3] = factors.B[7, 0] = size
    return factors


def _written(folder: Path, layers: dict[str, LowRankFactors]) -> Path:
    write_adapter(folder, Adapter.of(layers, {}, (), None, BaseReference("base", "base")))
    return folder


def test_rounding_that_leaves_too_little_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in a merge; the way out works, and the share is that of the update along itself."""
    factors = _with_outlier(100)
    before, after = factors.dense(), round_factors(factors, 4).dense()
    share = float((after * before).sum() / before.square().sum())
    assert share < LEAST
    source = _written(tmp_path / "a", {"l.0": factors})
    refused(capsys, "prune", source, "-o", tmp_path / "p", "--bits", "4")
    assert not (tmp_path / "p").exists()
    prune(source, tmp_path / "p", bits=8)


def test_a_module_of_which_little_is_left_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    g = torch.Generator().manual_seed(1)
    large = LowRankFactors(1e5 * torch.randn(2, 64, generator=g), torch.randn(64, 2, generator=g))
    source = _written(tmp_path / "a", {"l.0": large, "l.1": _with_outlier(100)})
    prune(source, tmp_path / "p", bits=4)
    told = capsys.readouterr().err
    assert "warning: 4 bits hold 9" in told
    assert "least: l.1 " in told
    prune(source, tmp_path / "q", bits=8)
    assert "warning" not in capsys.readouterr().err


def test_an_adapter_without_components_is_not_rounded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    zero = LowRankFactors(torch.zeros(2, 8), torch.zeros(6, 2))
    source = _written(tmp_path / "a", {"l.0": zero})
    refused(capsys, "prune", source, "-o", tmp_path / "p", "--bits", "4")
    assert not (tmp_path / "p").exists()
    prune(source, tmp_path / "p")


def test_a_rounded_adapter_can_be_cut_but_not_rounded_again(
    directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prune(directory, tmp_path / "p", bits=4)
    refused(capsys, "prune", tmp_path / "p", "-o", tmp_path / "q", "--bits", "2")
    assert not (tmp_path / "q").exists()
    prune(tmp_path / "p", tmp_path / "q", rank=1)
    assert "leaves the grid of 4 bits" in capsys.readouterr().err
    meta = read_adapter(tmp_path / "q").meta
    assert meta.bits is None
    assert not meta.rounding_errors
    prune(tmp_path / "p", tmp_path / "same")
    same = read_adapter(tmp_path / "same").meta
    assert same.bits == 4
    assert same.rounding_errors


@pytest.mark.parametrize(
    "words",
    [
        ["--bits", "5"],
        ["--bits", "0"],
        ["--head-bits", "8"],
        ["--bits", "4", "--head-bits", "4"],
        ["--bits", "4", "--heal", "3"],
    ],
    ids=" ".join,
)
def test_other_bits_are_refused(
    directory: Path, tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    refused(capsys, "prune", directory, "-o", tmp_path / "p", *words)
    assert not (tmp_path / "p").exists()
