"""`start.adapter`: a run that begins with a finished adapter, cut or whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from methods.keep import Keep
from sora_cli.adapter.adapter import Adapter
from sora_cli.adapter.digest import result_digest
from sora_cli.adapter.pruning import prune_layers
from sora_cli.adapter.reading import read_adapter
from sora_cli.app import run
from sora_cli.report import read_report
from tests.helpers_adapters import forget_base_weights
from tests.helpers_errors import refused
from tests.helpers_models import tiny_bert
from tests.helpers_runs import resumes_as_if_whole, train, write_recipe
from tests.present import present


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of rank 4, and a recipe for others beside it."""
    folder = tmp_path_factory.mktemp("origin")
    recipe = write_recipe(
        folder,
        tiny_bert(num_labels=2),
        method={"name": "lora", "r": 4},
        training={"max_steps": 8, "evaluate": "no", "checkpoint": "no"},
    )
    train(recipe, f"output.dir={folder}/origin")
    return recipe


def _from(recipe: Path, name: str = "origin") -> str:
    return f"start.adapter={recipe.parent}/{name}"


def _out(folder: Path, name: str = "out") -> str:
    return f"output.dir={folder}/{name}"


def _dense(adapter: Adapter) -> dict[str, Tensor]:
    return {path: factors.dense() for path, factors in adapter.layers.items()}


def test_no_step_gives_the_adapter_back(origin: Path, tmp_path: Path) -> None:
    report = train(origin, _out(tmp_path), _from(origin), "training.max_steps=0")
    old, new = read_adapter(origin.parent / "origin"), read_adapter(tmp_path / "out")
    for path, factors in old.layers.items():
        assert torch.equal(new.layers[path].A, factors.A)
        assert torch.equal(new.layers[path].B, factors.B)
    assert new.head.keys() == old.head.keys()
    assert all(torch.equal(new.head[name], old.head[name]) for name in old.head)
    before = present(read_report(origin.parent / "origin"))
    assert report.metrics == before.metrics
    assert (report.steps, report.status) == (0, "completed")
    assert report.start is not None
    assert report.start.digest == result_digest(origin.parent / "origin" / "adapter")
    assert {m.end for m in report.start.ranks.values()} == {4}


@pytest.mark.parametrize(
    ("key", "value"), [("mean_rank", 1.4), ("rank", 2), ("max_params", 2000), ("energy", 0.7)]
)
def test_a_cut_start_is_what_prune_leaves(
    origin: Path, tmp_path: Path, key: str, value: float
) -> None:
    report = train(
        origin, _out(tmp_path), _from(origin), f"start.{key}={value}", "training.max_steps=0"
    )
    stored = read_adapter(origin.parent / "origin").layers
    expected, losses = prune_layers(stored, Keep(**{key: value}))
    found = read_adapter(tmp_path / "out")
    assert found.ranks() == {path: loss.after for path, loss in losses.items()}
    for path, factors in found.layers.items():
        torch.testing.assert_close(factors.dense(), expected[path].dense(), atol=1e-6, rtol=1e-5)
    assert report.start is not None
    assert report.start.rule == {key: value}
    assert {p: m.start for p, m in report.ranks.items()} == found.ranks()


def test_a_rounded_start_is_what_prune_bits_leaves(origin: Path, tmp_path: Path) -> None:
    words = [_from(origin), "start.rank=2", "start.bits=3", "training.max_steps=0"]
    report = train(origin, _out(tmp_path), *words)
    small = read_adapter(tmp_path / "out")
    assert small.meta.bits == 3
    assert run(["prune", f"{origin.parent}/origin", "-o", str(tmp_path / "p"), "--rank", "2",
                "--bits", "3"]) == 0  # fmt: skip
    other = read_adapter(tmp_path / "p")
    numbers = 0
    for path, factors in small.layers.items():
        error = factors.minus(other.layers[path]).norm() / factors.norm()
        assert error < 0.15  # A and B share the scaling in another way: other roundings
        numbers += factors.parameters
    assert report.start is not None
    assert report.start.bits == 3
    assert report.parameters.adapter_end == numbers
    assert numbers * 3 / 8 < (report.parameters.adapter_bytes or 0) < numbers * 3 / 8 * 1.3
    whole = present(read_report(origin.parent / "origin"))
    assert whole.parameters.adapter_bytes == 4 * whole.parameters.adapter_end


@pytest.mark.parametrize(
    "words",
    [
        ["start.bits=3"],
        ["start.bits=5", "training.max_steps=0"],
        ["start.bits=3", "training.max_steps=0", "method.alpha=12"],
    ],
    ids=" ".join,
)
def test_a_start_that_cannot_be_rounded_is_refused(
    origin: Path, tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", origin, _out(tmp_path), _from(origin), *words]
    refused(capsys, *command)


def test_cut_factors_are_balanced_as_they_are_trained(origin: Path, tmp_path: Path) -> None:
    train(origin, _out(tmp_path), _from(origin), "start.rank=2", "training.max_steps=0")
    scaling = 16 / 4
    for factors in read_adapter(tmp_path / "out").layers.values():
        gram_a = factors.A @ factors.A.T
        gram_b = (factors.B.T @ factors.B) / scaling**2
        torch.testing.assert_close(gram_a, gram_b, atol=1e-6, rtol=1e-4)
        assert float((gram_a - gram_a.diag().diag()).abs().max()) < 1e-6


def test_training_goes_on_from_there(origin: Path, tmp_path: Path) -> None:
    words = [_from(origin), "start.mean_rank=1.4"]
    still = train(origin, _out(tmp_path, "still"), *words, "training.max_steps=0")
    report = train(origin, _out(tmp_path), *words, "training.max_steps=3")
    assert report.steps == 3
    assert report.live_components == [sum(m.start for m in report.ranks.values())] * 3
    assert {p: m.end for p, m in report.ranks.items()} == {p: m.end for p, m in still.ranks.items()}
    before, after = (read_adapter(tmp_path / name) for name in ("still", "out"))
    assert not any(torch.equal(before.layers[p].B, f.B) for p, f in after.layers.items())
    assert report.parameters.adapter_end == still.parameters.adapter_end == after.parameters


def test_a_resumed_run_is_as_if_whole(
    origin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tmp_path / "start.yaml"
    recipe.write_text(
        f"extends: {origin}\nstart: {{adapter: {origin.parent}/origin, mean_rank: 1.4}}\n"
        "training: {max_steps: 4, checkpoint: 1}\n"
    )
    report = resumes_as_if_whole(recipe, tmp_path, monkeypatch)
    assert report.start is not None
    assert [r.step for r in report.resumed] == [2]


def test_a_run_is_not_resumed_from_another_start(
    origin: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(origin.parent / "origin", tmp_path / "origin")
    words = [str(origin), "--no-verify", _out(tmp_path), f"start.adapter={tmp_path}/origin"]
    train(origin, *words[1:], "training.max_steps=2", "training.checkpoint=1")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    (tmp_path / "out" / "report.json").write_text(json.dumps({**report, "status": "failed"}))
    train(origin, _out(tmp_path, "other"), _from(origin), "training.max_steps=3")
    shutil.rmtree(tmp_path / "origin" / "adapter")
    shutil.copytree(tmp_path / "other" / "adapter", tmp_path / "origin" / "adapter")
    words += ["training.max_steps=2", "training.checkpoint=1", "--resume"]
    refused(capsys, "train", *words)


def test_the_result_is_a_run_like_any(origin: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    words = [_out(tmp_path), _from(origin), "start.rank=1", "training.max_steps=0"]
    assert run(["train", str(origin), *words]) == 0
    report = present(read_report(tmp_path / "out"))
    assert report.verification.verdict == "same"
    for command in (
        ["inspect", out],
        ["verify", out],
        ["eval", out, "--recipe", str(origin)],
        ["merge", out, "-o", f"{tmp_path}/merged"],
        ["train", str(origin), "--no-verify", _from(tmp_path / "x", "out"), _out(tmp_path, "more")],
    ):
        assert run(command) == 0


def test_dead_layers_begin_with_rank_zero(origin: Path, tmp_path: Path) -> None:
    report = train(
        origin, _out(tmp_path), _from(origin), "start.max_params=300", "training.max_steps=2"
    )
    assert 0 in {m.start for m in report.ranks.values()}
    again = train(origin, _out(tmp_path, "again"), _from(tmp_path / "x", "out"))
    assert again.start is not None
    assert {m.start for m in again.start.ranks.values()} == {4}
    assert set(read_adapter(tmp_path / "again").ranks_start().values()) == {4}
    assert {p: m.start for p, m in again.ranks.items()} == {
        p: m.end for p, m in report.ranks.items()
    }


def test_the_cut_method_starts_from_an_adapter(origin: Path, tmp_path: Path) -> None:
    method = ["method={name: cut, r_max: 4, target_r: 1}"]
    report = train(origin, _out(tmp_path), _from(origin), *method, "training.max_steps=5")
    assert sum(m.end for m in report.ranks.values()) == len(report.ranks)


def test_a_dry_run_shows_the_start(
    origin: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [_from(origin), "start.mean_rank=1", "training.max_steps=0", _out(tmp_path)]
    assert run(["train", str(origin), "--dry-run", *words]) == 0
    said = capsys.readouterr().out
    assert (
        f"started from {origin.parent}/origin: 12 of its 48 components, cut by mean_rank 1" in said
    )
    assert "and its head of" in said
    assert "0 optimiser steps" in said


def test_a_rank_that_the_adapter_replaces_is_said(origin: Path, tmp_path: Path) -> None:
    same = train(origin, _out(tmp_path), _from(origin), "training.max_steps=1").start
    other = train(
        origin, _out(tmp_path, "b"), _from(origin), "method.r=16", "training.max_steps=1"
    ).start
    assert same is not None
    assert other is not None
    assert same.sentence().endswith(": 48 of its 48 components")
    end = "48 of its 48 components; the recipe's rank, which would give 192, is not used"
    assert other.sentence().endswith(end)


@pytest.mark.parametrize(
    "words",
    [
        ["training.max_steps=0"],
        ["start.adapter=HERE", "start.rank=1", "start.energy=0.5"],
        ["start.rank=1"],
        ["start.adapter=HERE", "start.step=1"],
        ["start.adapter=NOWHERE"],
        ["start.adapter=HERE", "start.mean_rank=0.01"],
        ["start.adapter=HERE", "method={name: sora}"],
        ["start.adapter=HERE", "method={name: bitfit}"],
        ["start.adapter=HERE", "method.targets=[query]"],
        ["start.adapter=HERE", "data.label_names=[a, b, c]"],
        ["start.adapter=HERE", "output.dir=HERE"],
    ],
    ids=" ".join,
)
def test_what_cannot_be_is_said(
    origin: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
) -> None:
    here = str(origin.parent / "origin")
    given = [word.replace("HERE", here) for word in words]
    refused(capsys, "train", origin, _out(tmp_path), *given)


def test_another_base_model_is_refused(
    origin: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_recipe(tmp_path, tiny_bert(num_labels=2, seed=1))
    words = [f"model.path={other.parent}/base", _out(tmp_path), _from(origin)]
    refused(capsys, "train", origin, *words)


def test_a_start_of_an_unknown_base_model_is_told(
    origin: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another base of equal shapes: to train, score and verify on it gives the note of a merge."""
    unknown = shutil.copytree(origin.parent / "origin" / "adapter", tmp_path / "unknown")
    forget_base_weights(unknown)
    said = f"note: {origin.parent / 'base'} may not be the base model of {unknown}: its fingerprint"
    train(origin, _out(tmp_path), f"start.adapter={unknown}", "training.max_steps=0")
    assert said in capsys.readouterr().err
    assert run(["verify", str(unknown)]) == 0
    assert said in capsys.readouterr().err
    assert run(["eval", str(unknown), "--recipe", str(origin)]) == 0
    assert said.replace(str(unknown), "the adapter") in capsys.readouterr().err


def test_another_tools_adapter_is_a_start(origin: Path, tmp_path: Path) -> None:
    """Padded, without sora.json: every layer has the stored rank but for zero components."""
    assert (
        run(["prune", f"{origin.parent}/origin", "-o", f"{tmp_path}/a", "--mean-rank", "1.4"]) == 0
    )
    padded = ["export", f"{tmp_path}/a", "-o", f"{tmp_path}/b", "--layout", "padded"]
    assert run(padded) == 0
    (tmp_path / "b" / "sora.json").unlink()
    report = train(origin, _out(tmp_path), f"start.adapter={tmp_path}/b", "training.max_steps=0")
    found = {p: m.start for p, m in report.ranks.items()}
    assert found == read_adapter(tmp_path / "a").ranks()
    kept, start = _dense(read_adapter(tmp_path / "out")), _dense(read_adapter(tmp_path / "a"))
    assert all(torch.equal(kept[path], start[path]) for path in kept)
