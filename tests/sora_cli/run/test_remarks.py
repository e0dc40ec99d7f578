"""Each remark where it belongs, and nowhere else."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from methods.base import LowRankLinear
from methods.inject import switched_off
from sora_cli.app import run
from sora_cli.data.overlap import Overlap
from sora_cli.recipe.load import load_recipe
from sora_cli.recipe.recipe import DataBlock, TaskBlock, TrainingBlock
from sora_cli.report import RunReport, read_report
from sora_cli.run.evaluate import NONE_ALIVE, evaluate_run
from sora_cli.run.prepare import Prepared, prepare
from sora_cli.run.remarks import (
    adapters_remark,
    base_classes_remark,
    cut_remark,
    data_remarks,
    label_remark,
    overlap_remark,
    overlaps_of,
    prediction_remark,
    skip_remark,
    unknown_remark,
)
from sora_cli.run.results import record_setup
from sora_cli.tasks import create_task
from sora_cli.tasks.base import Task
from sora_cli.tasks.encoded import Encoded, Predictions
from sora_cli.train.trainer import AdapterTrainer, build_trainer
from tests.golden import told
from tests.helpers_families import write_preference_recipe
from tests.helpers_models import tiny_bert
from tests.helpers_runs import (
    glue_rows,
    pair_rows,
    tiny_tokenizer,
    train,
    write_recipe,
    write_rows,
)
from tests.present import present

NAMES = ["entailment", "not_entailment"]


def _task(kind: str = "classification") -> Task:
    task = create_task(TaskBlock(name=f"sequence-{kind}"), DataBlock(path="unused"))
    task.bind(glue_rows("rte" if kind == "classification" else "stsb", 4))
    return task


def _logits(classes: list[int]) -> np.ndarray:
    return np.eye(2, dtype=np.float32)[classes]


@pytest.mark.parametrize(
    ("labels", "names"),
    [([0, 1, 0], NAMES), ([1, 1, 1], NAMES), ([2.0, 2.5], None), ([2.5, 2.5], None)],
    ids=str,
)
def test_one_label_only(labels: list[Any], names: list[str] | None) -> None:
    told("\n".join(f"{label_remark(p, np.array(labels), names)}" for p in ("train", "validation")))


@pytest.mark.parametrize(
    ("own", "names", "missing"),
    [
        (["b", "a"], ["a", "b"], []),
        (["a", "b"], ["a", "b"], []),
        (["b", "a"], ["a", "b"], ["classifier.weight"]),
        (None, ["a", "b"], []),
        (["b", "a"], None, []),
    ],
    ids=str,
)
def test_a_base_model_with_classes_of_its_own(own: Any, names: Any, missing: list[str]) -> None:
    """The head of a model for b and a was trained, or frozen, as one for a and b without a word."""
    told(f"{base_classes_remark(own, names, missing)}")


def _encoded(rows: int, truncated: int, longest: int) -> Encoded:
    return Encoded(Dataset.from_dict({"labels": [0] * rows}), np.full(rows, 9), truncated, longest)


def test_rows_that_were_cut() -> None:
    parts = {"train": _encoded(2000, 3, 214), "validation": _encoded(9, 0, 128)}
    remarks = [cut_remark(parts, 128, limit=limit) for limit in (512, 200, 128)]
    parts["select"] = _encoded(5, 5, 1300)
    remarks.append(cut_remark(parts, 128, limit=10**30))
    remarks.append(cut_remark({"train": _encoded(9, 0, 128)}, 128, limit=512))
    told("\n".join(map(str, remarks)))


def test_rows_seen_in_training() -> None:
    found = (Overlap(0, 0), Overlap(12, 0), Overlap(12, 3))
    told("\n".join(f"{overlap_remark('validation', each, 277)}" for each in found))


@pytest.mark.parametrize(
    ("answers", "labels"),
    [
        ([0, 0, 0, 0], [0, 1, 1, 0]),
        ([1, 1, 1], [1, 1, 1]),  # one label only, which is said elsewhere
        ([0, 1, 0, 1], [0, 0, 0, 1]),
        ([0, 1, 0, 1], [1, 0, 0, 1]),
        ([0, 1, 0, 1], [0, 1, 0, 0]),
        ([0, 1, 0, 0], [0, 1, 0, 0]),
    ],
    ids=str,
)
def test_predictions_of_classes(answers: list[int], labels: list[int]) -> None:
    given = Predictions(_logits(answers), np.array(labels))
    told(f"{prediction_remark(_task(), 'v', given)}")


@pytest.mark.parametrize(
    "answers", [[1.0, 2.0, 3.5], [2.5, 2.5, 2.5], [3.0, 2.0, 1.0], [9.0, 9.5, 9.0]], ids=str
)
def test_predictions_of_numbers(answers: list[float]) -> None:
    outputs = np.array(answers, dtype=np.float32)[:, None]
    given = Predictions(outputs, np.array([1.0, 2.0, 3.0]))
    told(f"{prediction_remark(_task('regression'), 'v', given)}")


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_predictions_that_are_none(kind: str) -> None:
    outputs = np.array([[1.0, 2.0], [math.nan, 0.0], [0.0, math.inf]])
    remark = prediction_remark(_task(kind), "v", Predictions(outputs, np.array([0, 1, 0])))
    assert remark == "2 of 3 predictions on v are not finite"


@pytest.mark.parametrize(
    ("metric", "score", "without", "greater"),
    [
        ("accuracy", 0.90, 0.50, True),
        ("accuracy", 0.54, 0.53, True),  # one row of a hundred
        ("accuracy", 0.55, 0.53, True),
        ("accuracy", 0.53, 0.60, True),
        ("accuracy", 0.0, 0.5, True),
        ("loss", 0.20, 0.90, False),
        ("loss", 0.90, 0.20, False),
        ("loss", 2.0, 1.9, False),
        ("accuracy", math.nan, 0.5, True),
        ("accuracy", 0.5, math.nan, True),
    ],
)
def test_adapters_that_add_nothing_or_harm(
    metric: str, score: float, without: float, greater: bool
) -> None:
    remark = adapters_remark(
        metric, "v", score=score, without=without, rows=100, greater_is_better=greater
    )
    told(f"{remark}")


def test_skipped_steps() -> None:
    told("\n".join(f"{skip_remark(steps, 99)}" for steps in ([], [3, 7], list(range(1, 30)))))


def _prepared(folder: Path, **blocks: Any) -> Prepared:
    path = folder / "tiny.yaml"
    if not path.exists():
        write_recipe(folder, tiny_bert(num_labels=2), **blocks)
    return prepare(load_recipe(path).recipe, lambda _: contextlib.nullcontext())


def test_nothing_is_said_of_sound_data(tmp_path: Path) -> None:
    ready = _prepared(tmp_path)
    report = RunReport(name="", recipe={})
    record_setup(report, ready, TrainingBlock(learning_rate=1e-3, keep_best=False))
    assert report.events == []
    assert report.data.selection == ("no checkpoint is chosen: the last step's weights are scored")
    record_setup(report, ready, TrainingBlock(learning_rate=1e-3))
    assert report.data.selection == ready.rows.rule
    assert report.data.in_training == report.data.contradicted == {"validation": 0}
    lengths = {"train": int(ready.train.lengths.max()), "select": int(ready.select.lengths.max())}
    assert report.data.longest == {**lengths, "validation": lengths["select"]}


def _spoil(folder: Path) -> None:
    """Two training rows in the validation split, one with another label; and a long one."""
    shared = pair_rows(48)[:2]
    shared[1]["label"] = 1 - shared[1]["label"]
    long = {"sentence1": "cat " * 60, "sentence2": "dog", "label": 1}
    write_rows(folder / "validation.jsonl", [*pair_rows(24, seed=1), *shared, long])


@pytest.mark.parametrize("selection", ["validation", "half-validation"])
def test_what_data_are_told_of(tmp_path: Path, selection: str) -> None:
    recipe = write_recipe(tmp_path, tiny_bert(num_labels=2), data={"selection": selection})
    _spoil(tmp_path)
    assert recipe.exists()
    ready = _prepared(tmp_path)
    overlaps = overlaps_of(ready)
    assert sum(found.rows for found in overlaps.values()) == 2
    assert sum(found.contradicted for found in overlaps.values()) == 1
    remarks = data_remarks(ready, overlaps)
    assert not any("\n" in remark for remark in remarks)
    if selection == "validation":
        assert remarks == [
            "2 of 27 rows of validation are training rows, too, 1 of them with another label there"
        ]
    else:
        assert list(overlaps) == ["validation", "select"]


def test_data_are_told_of_before_training_and_after(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(
        tmp_path, tiny_bert(num_labels=2), data={"label_names": NAMES, "max_length": 16}
    )
    _spoil(tmp_path)
    write_rows(tmp_path / "train.jsonl", [{**row, "label": 1} for row in pair_rows(48)])
    assert run(["train", str(recipe), "--no-verify"]) == 0
    said = capsys.readouterr().err
    before, _, after = said.partition("components alive")
    report = present(read_report(tmp_path / "out"))
    for start in ("every training row is 'not_entailment'", "rows cut at 16 tokens: ", "2 of 27 "):
        (event,) = [event for event in report.events if event.startswith(start)]
        assert f"note: {event}\n" in before
        assert f"note: {event}\n" in after
    assert "the longest has 64: data.max_length=64" in said
    assert report.data.longest["validation"] == 64
    assert report.data.in_training == {"validation": 2}


def _scored(ready: Prepared, folder: Path) -> tuple[RunReport, AdapterTrainer]:
    recipe = load_recipe(folder / "tiny.yaml").recipe
    trainer = build_trainer(recipe, ready.task, ready.base, folder / "out", select=ready.select)
    report = RunReport(name="", recipe={})
    evaluate_run(report, trainer, ready)
    return report, trainer


def _excite(ready: Prepared) -> None:
    """Adapters that do much."""
    generator = torch.Generator().manual_seed(0)
    for layer in ready.layers.values():
        layer.B.data.normal_(generator=generator)


def _chosen(trainer: AdapterTrainer, rows: Encoded) -> np.ndarray:
    return trainer.predictions_of(rows, []).outputs.argmax(axis=1)


def test_adapters_that_do_the_work(tmp_path: Path) -> None:
    """Labels are what the model with its adapters says, so that it is always right."""
    ready = _prepared(tmp_path)
    _excite(ready)
    rows = ready.report["validation"]
    _, trainer = _scored(ready, tmp_path)
    said = _chosen(trainer, rows)
    dataset = rows.dataset.remove_columns("labels").add_column("labels", said)
    ready = dataclasses.replace(
        ready, report={"validation": dataclasses.replace(rows, dataset=dataset)}
    )
    before = {
        p: [f.detach().clone() for _, f in m.named_factors()] for p, m in ready.layers.items()
    }
    report, trainer = _scored(ready, tmp_path)
    with switched_off(ready.layers):
        without = _chosen(trainer, rows)
    assert report.metrics["validation"]["accuracy"] == 1
    assert report.without_adapters == {"validation": pytest.approx(np.mean(without == said))}
    assert 0 < np.mean(without == said) < 0.9
    assert not any("add nothing" in event for event in report.events)
    for path, layer in ready.layers.items():
        for factor, old in zip(_factors(layer), before[path], strict=True):
            assert torch.equal(factor, old)


def _factors(layer: LowRankLinear) -> list[torch.Tensor]:
    return [factor.detach().clone() for _, factor in layer.named_factors()]


def _lora(folder: Path, **method: Any) -> Path:
    """A recipe for the method without gates."""
    return write_recipe(folder, tiny_bert(num_labels=2), method={"name": "lora", **method})


def test_a_head_that_does_the_work_alone(tmp_path: Path) -> None:
    words = ["training.learning_rate=1e-9", "training.head_learning_rate=0.01"]
    report = train(_lora(tmp_path, r=2), *words)
    score = report.metrics["validation"]["accuracy"]
    assert report.without_adapters == {"validation": score}
    assert any("the adapters add nothing to the rest of" in event for event in report.events)
    assert NONE_ALIVE not in report.events


def test_a_model_beside_a_reference_is_not_scored_without_adapters(tmp_path: Path) -> None:
    report = train(write_preference_recipe(tmp_path), "training.max_steps=1")
    assert report.without_adapters == {}
    assert not any("the adapters" in event for event in report.events)


@pytest.mark.parametrize(("threshold", "dead"), [(5.0, True), (0.0, False)])
def test_a_dead_adapter_is_not_scored_again(tmp_path: Path, threshold: float, dead: bool) -> None:
    report = train(write_recipe(tmp_path, tiny_bert(num_labels=2)), f"method.threshold={threshold}")
    assert (NONE_ALIVE in report.events) is dead
    assert (report.without_adapters == {}) is dead
    if dead:
        assert not any("add nothing" in event for event in report.events)


def test_dead_or_not_is_no_matter_of_the_method(tmp_path: Path) -> None:
    """A LoRA has no gates, but nothing in it either before its first step."""
    _lora(tmp_path)
    ready = _prepared(tmp_path)
    report, _ = _scored(ready, tmp_path)
    assert NONE_ALIVE in report.events
    _excite(ready)
    report, _ = _scored(ready, tmp_path)
    assert NONE_ALIVE not in report.events


def test_constant_predictions_are_told_of_at_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path, tiny_bert(num_labels=2), data={"label_names": NAMES})
    write_rows(tmp_path / "train.jsonl", [{**row, "label": 1} for row in pair_rows(48)])
    report = train(recipe, "training.epochs=8")
    (event,) = [event for event in report.events if event.startswith("every prediction on")]
    assert event.startswith("every prediction on validation is 'not_entailment' (accuracy 0.")
    assert f"note: {event}" in capsys.readouterr().err


def test_switched_off_layers_give_what_their_bases_do(tmp_path: Path) -> None:
    ready = _prepared(tmp_path)
    _excite(ready)
    layer = next(iter(ready.layers.values())).eval()
    layer.A.data[0, 0] = math.nan
    x = torch.randn(3, layer.A.shape[1], generator=torch.Generator().manual_seed(0))
    places = [factor.data_ptr() for _, factor in layer.named_factors()]
    with torch.no_grad(), switched_off(ready.layers):
        assert torch.equal(layer(x), layer.base(x))
    with pytest.raises(KeyboardInterrupt), switched_off(ready.layers):
        raise KeyboardInterrupt
    assert [factor.data_ptr() for _, factor in layer.named_factors()] == places
    assert math.isnan(float(layer.A.data[0, 0]))


@pytest.mark.parametrize(("unknown", "words", "said"), [(1, 20, False), (1, 19, True)])
def test_texts_that_the_tokenizer_does_not_know(unknown: int, words: int, said: bool) -> None:
    tokenizer = tiny_tokenizer()
    ids = tokenizer(" ".join(["cat"] * (words - unknown) + ["房间"] * unknown))["input_ids"]
    part = Encoded(Dataset.from_dict({"input_ids": [ids]}), np.array([len(ids)]), 0, len(ids))
    remark = unknown_remark({"train": part}, tokenizer)
    assert (remark is not None) is said
    assert remark is None or "([UNK]): 5% of train" in remark
    # one whose unknown token is its end of text, as GPT-2's is, knows every byte
    tokenizer.eos_token = tokenizer.unk_token
    assert unknown_remark({"train": part}, tokenizer) is None
