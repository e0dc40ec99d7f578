"""`training.compact_every`: through real runs."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from sora_cli.adapter.reading import read_adapter
from sora_cli.app import run
from sora_cli.report import RunReport
from tests.helpers_errors import refused
from tests.helpers_models import tiny_bert
from tests.helpers_runs import files_of, script_scores, signal_at, train, write_recipe
from tests.present import present

DYING = {"threshold": 0.08, "gate_lr": 1e-4}  # gates die and stay dead
RESTLESS = {"threshold": 0.02, "gate_lr": 0.05}  # some come back


def _recipe(folder: Path, method: dict[str, Any], **training: Any) -> Path:
    folder.mkdir()
    training = {"epochs": 4, "max_grad_norm": 0.0, **training}
    return write_recipe(folder, tiny_bert(num_labels=2), method=method, training=training)


def _losses(report: RunReport) -> list[float]:
    return [entry["eval_loss"] for entry in report.history if "eval_loss" in entry]


def test_a_run_without_revivals_is_the_same_but_smaller(tmp_path: Path) -> None:
    plain = train(_recipe(tmp_path / "a", DYING))
    cut = train(_recipe(tmp_path / "b", DYING, compact_every=3))
    record = present(cut.compaction)
    assert record.removed > 0
    total = sum(ranks.start for ranks in cut.ranks.values())
    assert record.removals[-1].left == total - record.removed
    assert all(removal.step % 3 == 0 for removal in record.removals)
    assert _losses(cut) == pytest.approx(_losses(plain), rel=1e-3)
    assert {p: r.end for p, r in cut.ranks.items()} == {p: r.end for p, r in plain.ranks.items()}
    assert [r.start for r in cut.ranks.values()] == [4] * len(cut.ranks)
    assert any("cannot come back" in event for event in cut.events)
    assert plain.compaction is None


def test_the_best_checkpoint_may_have_more_components_than_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script_scores(monkeypatch, [0.9, 0.1])
    recipe = _recipe(tmp_path / "a", DYING, compact_every=3)
    report = train(recipe)
    assert report.best_step == 6
    assert report.steps == 24
    kept = sum(ranks.end for ranks in report.ranks.values())
    assert kept == report.live_components[5] > report.live_components[-1]
    adapter = read_adapter(tmp_path / "a" / "out")
    assert sum(f.rank for f in adapter.layers.values()) == kept


def test_counting_only_changes_nothing(tmp_path: Path) -> None:
    plain = train(_recipe(tmp_path / "a", RESTLESS, keep_best=False))
    options = {"keep_best": False, "compact_every": 1, "compact_only_count": True}
    counted = train(_recipe(tmp_path / "b", RESTLESS, **options))
    assert _losses(counted) == _losses(plain)
    record = present(counted.compaction)
    assert plain.method_details["revivals"] > 0
    assert record.would_have_revived is not None
    assert 0 < record.would_have_revived <= plain.method_details["revivals"]
    assert record.would_have_revived <= record.removed
    assert any("came back later" in event for event in counted.events)


CUT = {"name": "cut", "r_max": 4, "target_r": 1, "cut_at": 9}


def _cut(folder: Path, **training: Any) -> Path:
    return _recipe(folder, CUT, keep_best=False, **training)


def test_components_without_gates_that_were_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = train(_cut(tmp_path / "a"))
    recipe = _cut(tmp_path / "b", compact_every=4)
    smaller = train(recipe)
    assert smaller.compaction is not None
    left = smaller.live_components[-1]
    assert [(r.step, r.left) for r in smaller.compaction.removals] == [(12, left)]
    assert smaller.live_components == plain.live_components
    assert _losses(smaller) == pytest.approx(_losses(plain), rel=1e-4)
    assert [r.end for r in smaller.ranks.values()] == [r.end for r in plain.ranks.values()]
    words = [f"output.dir={tmp_path}/c"]
    with monkeypatch.context() as patch:  # within an epoch, after the removal
        signal_at(patch, 15, signal.SIGTERM)
        assert run(["train", str(recipe), *words]) == 143
    resumed = train(recipe, *words, "--resume")
    assert resumed.resumed
    assert resumed.compaction == smaller.compaction
    assert files_of(tmp_path / "c" / "adapter") == files_of(tmp_path / "b" / "out" / "adapter")


def test_files_give_the_trained_models_outputs(tmp_path: Path) -> None:
    """The self check compares the compacted model with its adapter."""
    assert run(["train", str(_recipe(tmp_path / "a", DYING, compact_every=2))]) == 0


@pytest.mark.parametrize(
    "words",
    [
        ["method={name: lora}"],
        ["training.compact_every=0"],
        ["training.compact_only_count=true", "training.compact_every=null"],
    ],
    ids=" ".join,
)
def test_what_can_not_be(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
) -> None:
    recipe = _recipe(tmp_path / "a", DYING, compact_every=2)
    refused(capsys, "train", recipe, *words)


def test_not_with_a_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = _recipe(tmp_path / "a", DYING, compact_every=2)
    block = "path={vary: method.threshold, schedule: {start: 0, stop: 0.1, num: 2}}"
    refused(capsys, "path", recipe, block, "--dry-run")
