"""`sora train`, end to end on a tiny model, for every method."""

from __future__ import annotations

import hashlib
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file

from methods.base import AdapterMethod, LowRankLinear
from methods.factors import LowRankFactors
from sora_cli.adapter.digest import result_digests
from sora_cli.adapter.reading import read_adapter
from sora_cli.app import run
from sora_cli.model.base import load_base
from sora_cli.recipe.load import load_recipe
from sora_cli.report import read_report
from sora_cli.tasks import create_task
from tests.helpers_adapters import assert_same, logits
from tests.helpers_errors import refused
from tests.helpers_methods import EXAMPLES, method_words
from tests.helpers_models import tiny_bert
from tests.helpers_runs import glue_rows, script_scores, train, write_recipe
from tests.matrix import rest_is_long
from tests.present import present

KINDS = {"classification": 2, "regression": 1}
METRICS = {
    "classification": ["accuracy"],
    "regression": ["pearson_spearman", "pearson", "spearman"],
}
HEAD = {
    "bert.pooler.dense.weight",
    "bert.pooler.dense.bias",
    "classifier.weight",
    "classifier.bias",
}


def _recipe(folder: Path, *, kind: str = "classification", **blocks: Any) -> Path:
    task = {"name": f"sequence-{kind}"}
    model = tiny_bert(num_labels=KINDS[kind])
    return write_recipe(folder, model, **{"task": task, **blocks})


def _tree(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.usefixtures("drawn")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", EXAMPLES)
def test_end_to_end_and_loaded_by_peft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, kind: str
) -> None:
    """The in-memory model is caught as the run leaves it, best checkpoint restored."""
    caught: list[Any] = []
    import sora_cli.run.evaluate as evaluation

    evaluate_run = evaluation.evaluate_run

    def watch(report: Any, trainer: Any, ready: Any) -> None:
        caught.append(trainer.model)
        evaluate_run(report, trainer, ready)

    monkeypatch.setattr(evaluation, "evaluate_run", watch)
    recipe = _recipe(tmp_path, kind=kind)
    report = train(recipe, *method_words(method))
    out = tmp_path / "out"
    assert {p.name for p in out.iterdir()} == {
        "adapter",
        "checkpoints",
        "history.json",
        "ranks.png",
        "report.json",
    }
    assert report.digests == result_digests(out / "adapter")
    picture = (out / "ranks.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 10_000
    metrics = report.metrics["validation"]
    assert list(metrics) == [*METRICS[kind], "loss"]
    base = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "base", num_labels=KINDS[kind]
    )
    loaded = peft.PeftModel.from_pretrained(base, str(out / "adapter")).eval()
    (trained,) = caught
    expected = logits(trained.eval())
    assert_same(logits(loaded), expected)
    start = load_base(load_recipe(recipe).recipe.model, _task(kind)).model.eval()
    assert (logits(start) - expected).abs().max() > 0.01  # something was learned
    head = read_adapter(out).head
    assert set(head) == HEAD
    for name, tensor in head.items():
        assert torch.equal(tensor, trained.get_parameter(name))


def _task(kind: str) -> Any:
    recipe = load_recipe("stsb" if kind == "regression" else "rte").recipe
    task = create_task(recipe.task, recipe.data)
    task.bind(glue_rows("stsb" if kind == "regression" else "rte", 4))
    return task


def test_finished_run_is_not_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = _recipe(tmp_path, training={"max_steps": 2})
    train(recipe)
    before = _tree(tmp_path / "out")
    refused(capsys, "train", recipe, "training.seed=1")
    assert _tree(tmp_path / "out") == before
    train(recipe, "training.seed=1", "--force")
    assert _tree(tmp_path / "out") != before


def test_frozen_head_keeps_its_seeds_value_and_is_saved(tmp_path: Path) -> None:
    recipe = _recipe(tmp_path)
    train(recipe, "training.train_head=false", "training.seed=7")
    transformers.set_seed(7)
    base = load_base(load_recipe(recipe).recipe.model, _task("classification"))
    head = read_adapter(tmp_path / "out").head
    assert len(head) == 4
    for name, tensor in head.items():
        assert torch.equal(tensor, base.model.get_parameter(name))
    train(recipe, "--force", "training.seed=7")
    assert not torch.equal(read_adapter(tmp_path / "out").head["classifier.weight"],
                           head["classifier.weight"])  # fmt: skip


def test_early_stopping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script_scores(monkeypatch, [0.5, 0.7, 0.6, 0.6, 0.9, 0.9])
    recipe = _recipe(tmp_path, training={"epochs": 6, "early_stopping": 2})
    report = train(recipe)
    assert report.steps == 4 * 6
    assert report.best_step == 2 * 6
    script_scores(monkeypatch, [0.5, 0.7, 0.6, math.nan, 0.9, 0.9])
    report = train(recipe, "--force", "training.keep_best=false")
    assert report.steps == 4 * 6
    assert report.best_step is None


def test_adalora_is_not_stopped_before_its_budget_is_met(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores fall while triplets are taken away; that is no reason to stop above the budget."""
    script_scores(monkeypatch, [0.9, 0.8, 0.7, 0.6, 0.65, 0.5])
    recipe = _recipe(tmp_path, training={"epochs": 6, "early_stopping": 2})
    report = train(recipe, "method.name=adalora", "method.init_r=4", "method.target_r=2")
    assert sum(r.end for r in report.ranks.values()) == 2 * len(report.ranks)


def test_max_steps_wins_over_epochs(tmp_path: Path) -> None:
    report = train(_recipe(tmp_path, training={"epochs": 50, "max_steps": 8, "evaluate": 3}))
    assert report.steps == 8
    assert len(report.live_components) == 8
    assert [e["step"] for e in report.history if "eval_accuracy" in e][:2] == [3, 6]


@pytest.mark.parametrize("method", rest_is_long(EXAMPLES))
def test_accumulated_run_is_the_same_run(tmp_path: Path, method: str) -> None:
    """4 micro-batches of 2 rows, or one of 8: the same batches, gradients, and so the same end."""
    recipe = _recipe(tmp_path)
    words = [*method_words(method), "training.model_dropout=0", "training.max_steps=5"]
    words += ["training.learning_rate=1e-3", "training.evaluate=no", "training.logging_steps=1"]
    results, norms = [], []
    for parts in (1, 4):
        report = train(recipe, *words, "--force", f"training.gradient_accumulation={parts}")
        state = load_file(tmp_path / "out/checkpoints/step-000005/state.safetensors")
        results.append({n: t for n, t in state.items() if n.startswith("model.")})
        norms.append([e["grad_norm"] for e in report.history if "grad_norm" in e])
    assert len(norms[0]) == 5
    # AdamW alone would hide a constant factor
    assert norms[1] == pytest.approx(norms[0], rel=1e-3)
    for name, tensor in results[0].items():
        torch.testing.assert_close(results[1][name], tensor, atol=2e-5, rtol=1e-3)


def test_model_dropout_changes_training(tmp_path: Path) -> None:
    recipe, heads = _recipe(tmp_path, training={"epochs": 1}), []
    for rate in (0.0, 0.5):
        train(recipe, "--force", f"training.model_dropout={rate}")
        heads.append(read_adapter(tmp_path / "out").head["classifier.weight"])
    assert not torch.equal(*heads)


@pytest.mark.parametrize(("threshold", "said"), [(0.0, True), (0.05, False)])
def test_no_rank_changed_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], threshold: float, said: bool
) -> None:
    report = train(_recipe(tmp_path), f"method.threshold={threshold}")
    event = "NO RANK CHANGED: sora ended with all the components it started with"
    assert (event in report.events) is said
    assert (f"note: {event}" in capsys.readouterr().err) is said


def test_lora_is_not_blamed_for_keeping_its_rank(tmp_path: Path) -> None:
    report = train(_recipe(tmp_path), "method.name=lora")
    assert not any("NO RANK CHANGED" in event for event in report.events)


def test_everything_dead_still_ends_well(tmp_path: Path) -> None:
    report = train(_recipe(tmp_path), "method.threshold=5")
    assert sum(r.end for r in report.ranks.values()) == 0
    assert report.parameters.adapter_end == 0
    assert any("every gate is zero" in event for event in report.events)
    assert sum(read_adapter(tmp_path / "out").ranks().values()) == 0


def test_talk_is_on_stderr_and_results_on_stdout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = _recipe(tmp_path)
    train(recipe)
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[0].startswith("validation: accuracy 0.")
    assert any(line.startswith("components: ") and "of 48 kept" in line for line in lines)
    assert lines[-1].startswith("time: ")
    assert f"sora inspect {tmp_path / 'out'}" in captured.err
    assert "12 layers, 48 components" in captured.err


def _train_in_full(
    recipe: Path, capsys: pytest.CaptureFixture[str], *words: str
) -> tuple[int, str]:
    code = run(["train", str(recipe), *words])
    return code, capsys.readouterr().err


def test_a_run_ends_with_a_comparison_of_model_and_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = _recipe(tmp_path)
    code, told = _train_in_full(recipe, capsys)
    assert code == 0
    assert "verified: 100.00% of the adapter's effect" in told
    assert "classes, in train / validation: '0' " in told
    code, told = _train_in_full(recipe, capsys, "--force", "--no-verify")
    assert code == 0
    assert "verified" not in told


def test_a_run_whose_check_cannot_tell_says_so_and_ends_with_0(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["method.name=lora", "training.learning_rate=1e-7", "training.max_steps=4"]
    code, told = _train_in_full(_recipe(tmp_path), capsys, *words)
    assert code == 0
    assert "not verified, cannot tell: the adapter changes the " in told
    report = present(read_report(tmp_path / "out"))
    assert report.verification.verdict == "cannot tell"
    assert 0 < report.verification.effects[0]["size"] < 1e-5


def test_files_that_differ_from_the_model_fail_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    factors = AdapterMethod.factors

    def wrong(self: AdapterMethod, layer: LowRankLinear) -> LowRankFactors:
        good = factors(self, layer)
        return LowRankFactors(good.A, 1.5 * good.B)

    monkeypatch.setattr(AdapterMethod, "factors", wrong)
    code, told = _train_in_full(_recipe(tmp_path), capsys)
    assert code == 1
    assert "DIFFERENT" in told


def _piped(folder: Path, *words: str) -> tuple[str, bytes]:
    """Stdout and stderr of a training run through pipes."""
    recipe = write_recipe(folder, tiny_bert(num_labels=2))
    command = [sys.executable, "-m", "sora_cli", "train", str(recipe), "--no-verify", *words]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode(), done.stderr


def test_a_run_through_a_pipe_draws_no_bars(tmp_path: Path) -> None:
    shown, said = _piped(tmp_path, "--json")
    assert shown == (tmp_path / "out" / "report.json").read_text()
    assert not set(b"\r\x1b") & set(said)
    assert len(said) < 5000
    lines = said.decode().splitlines()
    assert any(line.startswith("training: 100%| ") and "loss=" in line for line in lines)
    assert any(line.startswith("epoch 1.0: accuracy") for line in lines)


@pytest.mark.long
def test_a_quiet_run_gives_its_results_only(tmp_path: Path) -> None:
    shown, said = _piped(tmp_path, "--quiet")
    assert said == b""
    assert "accuracy" in shown
    assert "adapter parameters" in shown
