"""Checkpoints: what is in them, which are kept, and which one a run ends with."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sora_cli.adapter.reading import read_adapter
from sora_cli.train.checkpoint import writer
from tests.helpers_errors import refused
from tests.helpers_models import tiny_bert
from tests.helpers_runs import Trained, script_scores, train, write_recipe

STEPS = 6  # an epoch of 48 rows in steps of 8


def _recipe(folder: Path, *, method: dict[str, Any] | None = None, **training: Any) -> Path:
    blocks = {"training": training, "method": method or {}}
    return write_recipe(folder, tiny_bert(num_labels=2), **blocks)


def _kept(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "out" / "checkpoints").iterdir())


def _state(folder: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(folder / "out" / "checkpoints" / f"step-{step:06d}" / "state.safetensors")


def _assert_weights_of(folder: Path, step: int) -> None:
    """The adapter that was written has the weights of that checkpoint, and of no other."""
    state, adapter = _state(folder, step), read_adapter(folder / "out")
    for name, tensor in adapter.head.items():
        assert torch.equal(tensor, state[f"model.{name}"])
    for path, factors in adapter.layers.items():
        A, B, d = (state[f"model.{path}.{part}"] for part in "ABd")
        scale = 16 / A.shape[0]
        torch.testing.assert_close(factors.B @ factors.A, scale * (B * d) @ A, atol=1e-6, rtol=1e-5)


def test_a_run_directory_holds_no_pickle(tmp_path: Path) -> None:
    train(_recipe(tmp_path, checkpoint=4, evaluate=3))
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".safetensors", ".json", ".png", ".md"}
    for path in files:
        start = path.read_bytes()[:4]
        assert not start.startswith((b"\x80", b"PK")), path  # pickle, zip as torch.save writes


def test_everything_a_run_needs_to_go_on_is_there(classifier: Trained) -> None:
    state = _state(classifier.folder, 2 * STEPS)
    folder = classifier.run / "checkpoints" / f"step-{2 * STEPS:06d}"
    assert sorted(p.name for p in folder.iterdir()) == [
        "complete.json", "run.json", "state.safetensors", "trainer_state.json",
    ]  # fmt: skip
    assert json.loads((folder / "trainer_state.json").read_text())["global_step"] == 2 * STEPS
    described = json.loads((folder / "run.json").read_text())
    assert described["finished"]
    assert described["recipe"]["method"]["r_max"] == 4
    assert set(described["inputs"]) >= {"the base model", "the data (train)"}
    assert len(described["processes"]) == 1
    assert len(described["progress"]["MethodCallback"]["live"]) == 2 * STEPS
    names = [group["name"] for group in described["optimizer"]]
    assert names == ["factors", "gates", "head", "head_no_decay"]
    trained = [name for name in state if name.startswith("model.")]
    assert {"model.bert.pooler.dense.weight", "model.classifier.bias"} <= set(trained)
    assert len(trained) == 12 * 3 + 4
    numbers = [i for group in described["optimizer"] for i in group["params"]]
    assert len(numbers) == len(trained)
    for number in numbers:
        for part in ("exp_avg", "exp_avg_sq", "step"):
            assert f"optimizer.{number}.{part}" in state
    assert state["method.threshold"].item() == 0.01
    assert state["random.0.torch"].dtype == torch.uint8


@pytest.mark.parametrize(
    ("scores", "better", "best"),
    [
        ([0.5, 0.9, 0.7, 0.6], True, 2),
        ([0.5, 0.9, 0.7, 0.6], False, 1),
        ([0.5, 0.9, 0.9, 0.9], True, 2),  # the first of equals
        ([0.5, 0.6, 0.7, 0.8], True, 4),
        ([math.nan, 0.1, math.nan, math.inf], True, 2),
        ([0.0, 0.0, 0.0, 0.0], True, 1),
    ],
)
def test_best_and_last_are_kept_and_the_best_restored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scores: list[float], better: bool, best: int
) -> None:
    script_scores(monkeypatch, scores)
    recipe = _recipe(tmp_path, epochs=4, learning_rate=0.05)
    report = train(recipe, f"task.greater_is_better={str(better).lower()}")
    assert report.steps == 4 * STEPS
    assert report.best_step == best * STEPS
    assert _kept(tmp_path) == [f"step-{s:06d}" for s in sorted({best * STEPS, 4 * STEPS})]
    _assert_weights_of(tmp_path, best * STEPS)
    if best != 4:
        with pytest.raises(AssertionError):
            _assert_weights_of(tmp_path, 4 * STEPS)


def test_last_weights_where_the_best_is_not_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script_scores(monkeypatch, [0.9, 0.1])
    report = train(_recipe(tmp_path, keep_best=False))
    assert report.best_step is None
    assert _kept(tmp_path) == [f"step-{2 * STEPS:06d}"]
    _assert_weights_of(tmp_path, 2 * STEPS)


def test_best_is_kept_where_no_other_checkpoint_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script_scores(monkeypatch, [0.1, 0.9, 0.2, 0.3])
    report = train(_recipe(tmp_path, checkpoint="no", evaluate=3))
    assert report.best_step == 6
    assert _kept(tmp_path) == ["step-000006"]
    _assert_weights_of(tmp_path, 6)


def test_cadence_in_steps_and_the_last_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written, write = [], writer.write_checkpoint

    def recorded(path: Path, *rest: Any) -> None:
        written.append(path.name)
        write(path, *rest)

    monkeypatch.setattr(writer, "write_checkpoint", recorded)
    train(_recipe(tmp_path, checkpoint=5, evaluate="no"))
    assert written == ["step-000005", "step-000010", "step-000012"]
    assert _kept(tmp_path) == ["step-000012"]


def test_no_checkpoints_at_all(tmp_path: Path) -> None:
    report = train(_recipe(tmp_path, checkpoint="no", evaluate="no"))
    assert not (tmp_path / "out" / "checkpoints").exists()
    assert report.best_step is None
    assert report.metrics["validation"]["accuracy"] >= 0


def test_adalora_above_its_budget_is_never_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first epochs score best, and hold more triplets than were asked for."""
    script_scores(monkeypatch, [0.9, 0.8, 0.1, 0.2, 0.15, 0.1])
    recipe = _recipe(tmp_path, epochs=6)
    report = train(recipe, "method.name=adalora", "method.init_r=4", "method.target_r=2",
                   "method.t_final=0.4")  # fmt: skip
    budget = 2 * len(report.ranks)
    assert report.live_components[2 * STEPS - 1] > budget == report.live_components[4 * STEPS - 1]
    assert report.best_step == 4 * STEPS
    assert sum(r.end for r in report.ranks.values()) == budget
    assert f"budget of {budget} triplets met: {budget} left" in report.events


def test_scores_after_the_run_are_those_of_the_best(tmp_path: Path) -> None:
    """A learning rate that destroys the model after a good first epoch, really restored."""
    recipe = _recipe(tmp_path, epochs=6, learning_rate=0.5, schedule="constant", max_grad_norm=0)
    report = train(recipe)
    scores = {e["step"]: e["eval_accuracy"] for e in report.history if "eval_accuracy" in e}
    assert report.metrics["validation"]["accuracy"] == max(scores.values())
    assert report.best_step == min(s for s, v in scores.items() if v == max(scores.values()))
    losses = {e["step"]: e["eval_loss"] for e in report.history if "eval_loss" in e}
    loss = losses[report.best_step]
    assert report.metrics["validation"]["loss"] == pytest.approx(loss, rel=1e-6)
    assert len({round(value, 6) for value in losses.values()}) > 1


def test_checkpoints_to_be_kept_stay(tmp_path: Path) -> None:
    """A step, and a share of the run that is an epoch's last step, beside the newest."""
    recipe = _recipe(tmp_path)
    words = ["training.keep_checkpoints=[2, 0.5]", "training.evaluate=no"]
    train(recipe, *words, "training.checkpoint=no")
    assert _kept(tmp_path) == ["step-000002", "step-000006"]
    train(recipe, *words, "training.checkpoint=5", "--force")
    assert _kept(tmp_path) == ["step-000002", "step-000006", "step-000012"]


def test_checkpoints_that_are_never_reached_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["training.keep_checkpoints=[2, 13]", "training.max_steps=3"]
    train(_recipe(tmp_path), *words, "training.evaluate=no")
    note = "training.keep_checkpoints names 13, but the run has only 3 steps"
    assert note in capsys.readouterr().err
    assert _kept(tmp_path) == ["step-000002", "step-000003"]


def test_a_number_of_steps_is_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, "train", str(_recipe(tmp_path)), "training.keep_checkpoints=[1.5]")
