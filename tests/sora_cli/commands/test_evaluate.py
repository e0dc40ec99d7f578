"""`sora eval`: the run's own numbers again, from files alone, in a fresh process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import transformers

from sora_cli.app import run
from tests import warm
from tests.helpers_errors import refused
from tests.helpers_models import tiny_bert
from tests.helpers_runs import Trained, pair_rows, tiny_tokenizer, train, write_recipe, write_rows
from tests.shared_files import ROOT


def _fresh(*words: str) -> Any:
    """What `sora eval ... --json` prints in a process of its own."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [warm.python(), "-m", "sora_cli", "eval", *words, "--json"],
        capture_output=True, text=True, cwd=ROOT, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # nothing but JSON on stdout


def test_run_directory_in_a_fresh_process(classifier: Trained) -> None:
    scores = _fresh(str(classifier.run), "--recipe", str(classifier.recipe))
    expected = classifier.report.metrics["validation"]
    assert list(scores) == ["validation"]
    assert list(scores["validation"]) == list(expected)
    assert scores["validation"]["accuracy"] == pytest.approx(expected["accuracy"], abs=1e-12)
    assert scores["validation"]["loss"] == pytest.approx(expected["loss"], rel=1e-5)


@pytest.mark.parametrize("place", ["run", "adapter", "merged"])
@pytest.mark.parametrize("kind", ["classifier", "regressor"])
def test_adapter_and_merged_model(
    request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str], kind: str, place: str
) -> None:
    trained: Trained = request.getfixturevalue(kind)
    target = trained.run / "adapter" if place == "adapter" else getattr(trained, place)
    capsys.readouterr()
    assert run(["eval", str(target), "-r", str(trained.recipe), "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)["validation"]
    exact = {"accuracy": 1e-12}  # correlations are of numbers, which factors may move by rounding
    for name, value in trained.report.metrics["validation"].items():
        assert scores[name] == pytest.approx(value, abs=exact.get(name, 1e-5))


def test_the_adapter_is_what_is_scored(
    classifier: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another adapter on the same base gives other numbers."""
    recipe = str(classifier.recipe)
    train(recipe, "training.seed=5", "training.epochs=1", f"output.dir={tmp_path / 'other'}")
    losses = []
    for target in (classifier.run, tmp_path / "other"):
        capsys.readouterr()
        assert run(["eval", str(target), "-r", recipe, "--json"]) == 0
        losses.append(json.loads(capsys.readouterr().out)["validation"]["loss"])
    assert abs(losses[0] - losses[1]) > 1e-3


@pytest.mark.parametrize("kind", ["classifier", "regressor"])
def test_predictions_are_one_record_a_row_in_order(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str
) -> None:
    trained: Trained = request.getfixturevalue(kind)
    path = tmp_path / "predictions.jsonl"
    words = ["-r", str(trained.recipe), "training.eval_batch_size=5", "--predictions", str(path)]
    assert run(["eval", str(trained.run), *words]) == 0
    records = [json.loads(line) for line in path.read_text().splitlines()]
    rows = pair_rows(24, seed=1, regression=kind == "regressor")
    assert [(r["split"], r["row"]) for r in records] == [("validation", i) for i in range(24)]
    assert [r["input"] for r in records] == [
        {name: row[name] for name in ("sentence1", "sentence2")} for row in rows
    ]
    if kind == "regressor":
        assert [r["label"] for r in records] == pytest.approx([row["label"] for row in rows])
        mean = sum((r["prediction"] - r["label"]) ** 2 for r in records) / 24
        assert mean == pytest.approx(trained.report.metrics["validation"]["loss"], rel=1e-4)
        return
    assert [r["label"] for r in records] == [str(row["label"]) for row in rows]
    assert all(r["prediction"] == str(r["logits"].index(max(r["logits"]))) for r in records)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(trained.merged).eval()
    for row, record in zip(rows, records, strict=True):
        batch = tiny_tokenizer()(row["sentence1"], row["sentence2"], return_tensors="pt")
        logits = model(**batch).logits[0].tolist()
        assert record["logits"] == pytest.approx(logits, abs=1e-5)
    hits = sum(r["prediction"] == r["label"] for r in records)
    assert hits / 24 == pytest.approx(trained.report.metrics["validation"]["accuracy"], abs=1e-12)


def test_predictions_do_not_depend_on_the_batch(classifier: Trained, tmp_path: Path) -> None:
    """Rows go through sorted by length; their records must not."""
    made = []
    for size in (1, 24):
        path = tmp_path / f"{size}.jsonl"
        words = [f"training.eval_batch_size={size}", "--predictions", str(path)]
        assert run(["eval", str(classifier.run), "-r", str(classifier.recipe), *words]) == 0
        made.append([json.loads(line)["logits"] for line in path.read_text().splitlines()])
    for one, many in zip(*made, strict=True):
        assert one == pytest.approx(many, abs=1e-5)


def test_every_reported_split(
    classifier: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    validation = {"validation": str(classifier.folder / "validation.jsonl"),
                  "train": str(classifier.folder / "train.jsonl"),
                  "extra": write_rows(tmp_path / "extra.jsonl", pair_rows(7, seed=9))}  # fmt: skip
    words = [f"data.files={json.dumps(validation)}", "data.validation=[validation,extra]"]
    capsys.readouterr()
    assert run(["eval", str(classifier.run), "-r", str(classifier.recipe), *words]) == 0
    shown = capsys.readouterr().out
    accuracy = classifier.report.metrics["validation"]["accuracy"]
    assert f"{accuracy:.4f}" in shown
    assert "extra" in shown
    assert "accuracy" in shown


def test_half_of_the_validation_rows_is_the_same_half(tmp_path: Path) -> None:
    recipe = write_recipe(
        tmp_path, tiny_bert(num_labels=2), data={"selection": "half-validation"},
        training={"epochs": 1},
    )  # fmt: skip
    report = train(recipe)
    path = tmp_path / "p.jsonl"
    assert run(["eval", str(tmp_path / "out"), "-r", str(recipe), "--predictions", str(path)]) == 0
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(records) == 12
    hits = sum(r["prediction"] == r["label"] for r in records) / 12
    assert hits == pytest.approx(report.metrics["validation"]["accuracy"], abs=1e-12)


def test_model_with_unnamed_classes(
    classifier: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """LABEL_0, LABEL_1 are transformers' own names, which say nothing."""
    shutil.copytree(classifier.merged, tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    config = json.loads(file.read_text())
    for key in ("id2label", "label2id"):
        del config[key]
    file.write_text(json.dumps(config))
    capsys.readouterr()
    words = ["-r", str(classifier.recipe), "--json"]
    assert run(["eval", str(tmp_path / "model"), *words]) == 0
    accuracy = json.loads(capsys.readouterr().out)["validation"]["accuracy"]
    assert accuracy == classifier.report.metrics["validation"]["accuracy"]


# what is refused


@pytest.mark.parametrize("place", ["run", "merged"])
@pytest.mark.parametrize("names", ["['1','0']", "['0','1','2']"])
def test_other_classes(
    classifier: Trained, capsys: pytest.CaptureFixture[str], place: str, names: str
) -> None:
    """Also the same ones in another order, where every score would be of the wrong class."""
    target = getattr(classifier, place)
    words = ["-r", str(classifier.recipe), f"data.label_names={names}"]
    refused(capsys, "eval", str(target), *words)


@pytest.mark.parametrize(("zero", "one"), [("0", "1"), ("neg", "pos"), (False, True), (0.0, 1.0)])
def test_labels_of_another_kind_than_those_trained_on(
    classifier: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str], zero: Any, one: Any
) -> None:
    rows = [row | {"label": one if row["label"] else zero} for row in pair_rows(8)]
    other = write_rows(tmp_path / "other.jsonl", rows)
    words = ["-r", str(classifier.recipe), f"data.files.validation={other}"]
    refused(capsys, "eval", str(classifier.run), *words)


def test_a_regression_adapter_has_no_classes(
    regressor: Trained, classifier: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(capsys, "eval", str(regressor.run), "-r", str(classifier.recipe))
    refused(capsys, "eval", str(classifier.run), "-r", str(regressor.recipe))
