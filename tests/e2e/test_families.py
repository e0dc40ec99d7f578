"""Every task family through the commands: the same promises hold whatever is learned."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from methods.registry import low_rank_names
from sora_cli.app import run
from sora_cli.data.rows import load_rows
from sora_cli.recipe.load import load_recipe
from sora_cli.report import read_report
from tests.helpers_families import FAMILIES
from tests.helpers_runs import resumes_as_if_whole
from tests.matrix import rest_is_long

OPTIONS = {
    "adalora": ["method.target_r=2", "method.init_r=4"],
    "lora": ["method.r=4"],
    "cut": ["method.r_max=4"],
}


WITHOUT_LABELS = {
    "causal-lm": {"output"},
    "causal-lm, packed": {"output"},
    "sequence-classification, decoder": {"label"},
    "multiple-choice": {"label"},
    "preference": set(),
    "seq2seq": {"output"},
    "question-answering": {"answers"},
    "token-classification": {"tags"},
    "image-classification": {"label"},
    "image-text": set(),
}
"""By family, the columns that rows to be answered do not have."""
TELLS = {"task.name", "data.max_length", "data.columns", "task.stride", "task.max_answer_length",
         "task.max_new_tokens", "data.label_names"}  # fmt: skip
"""What a model's own files do not tell."""


def _eval(capsys: pytest.CaptureFixture[str], target: Path, recipe: Path, *words: str) -> Any:
    capsys.readouterr()
    assert run(["eval", str(target), "--recipe", str(recipe), "--json", *words]) == 0
    return json.loads(capsys.readouterr().out)


def _close(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for split, scores in expected.items():
        assert found[split] == pytest.approx(scores, rel=1e-4, abs=1e-6)


def told(recipe: Path) -> list[str]:
    """The recipe's values that a model's files do not hold, as overrides."""
    values = {key: value for key, value, origin in load_recipe(recipe).values()}
    words = [f"{key}={json.dumps(value)}" for key, value in values.items() if key in TELLS]
    columns = {k.rpartition(".")[2]: v for k, v in values.items() if k.startswith("data.columns.")}
    return [*(w for w in words if w.partition("=")[2] not in ("null", "{}")),
            *([f"data.columns={json.dumps(columns)}"] if columns else [])]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """By family, the recipe of a run in out/, which was verified against the trained model."""

    @cache
    def train_it(family: str) -> Path:
        recipe = FAMILIES[family](tmp_path_factory.mktemp(family.replace(", ", "-")))
        assert run(["train", str(recipe)]) == 0
        return recipe

    return train_it


Trained = Callable[[str], Path]
SHORT = ("preference", "causal-lm", "causal-lm, packed", "sequence-classification, decoder",
         "token-classification", "seq2seq")  # fmt: skip
IN_ORDER = [*SHORT, *(family for family in FAMILIES if family not in SHORT)]


@pytest.mark.versions
@pytest.mark.parametrize("family", rest_is_long(IN_ORDER, len(SHORT)))
def test_files_give_the_score_again_and_so_does_the_merged_model(
    family: str, trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The merged model, without our file beside it, also answers as it is scored."""
    recipe = trained(family)
    out, merged = recipe.parent / "out", tmp_path / "merged"
    report, loaded = read_report(out), load_recipe(recipe).recipe
    assert report is not None
    assert set(report.metrics["validation"]) == {*loaded.task.options.metrics, "loss"}
    rows, scored = load_rows(loaded.data).report["validation"], tmp_path / "scored.jsonl"
    _close(_eval(capsys, out, recipe, "--predictions", str(scored)), report.metrics)
    records = read_lines(scored)
    assert len(records) == len(rows)
    assert all({"split", "row", "prediction"} <= record.keys() for record in records)
    assert run(["merge", str(out), "-o", str(merged)]) == 0
    (merged / "sora.json").unlink()
    words = ["--predictions", str(scored), "--force"]
    _close(_eval(capsys, merged, recipe, *words), report.metrics)
    # rewards are measured against the base model, which a merged one does not hold
    answering = out if loaded.task.name == "preference" else merged
    asked, answers = answered(answering, rows, WITHOUT_LABELS[family], tmp_path, *told(recipe))
    records = read_lines(scored)
    assert len(answers) == len(records) == len(asked)
    for row, record, own in zip(answers, records, asked, strict=True):
        assert {name: row[name] for name in own} == own
        check(loaded.task.name, row, record)


def read_lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def answered(
    model: Path, rows: Any, labels: set[str], folder: Path, *words: str
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows without their labels, and what `sora predict` makes of them."""
    asked = rows.remove_columns(labels & set(rows.column_names))
    binary = any("image" in name for name in rows.column_names)
    ending = "parquet" if binary else "jsonl"
    file, out = folder / f"asked.{ending}", folder / f"answered.{ending}"
    asked.to_parquet(str(file)) if binary else asked.to_json(str(file))
    assert run(["predict", str(model), str(file), "-o", str(out), *words]) == 0
    made = pq.read_table(out).to_pylist() if binary else read_lines(out)
    return asked.with_format("arrow").to_list(), made


def check(kind: str, row: dict[str, Any], record: dict[str, Any]) -> None:
    if kind == "image-text":
        assert row["similarity"] == pytest.approx(record["cosine"], abs=1e-5)
        return
    if kind == "preference":
        assert row[row["prefers"]] == record["prediction"]
        for side, reward in record["rewards"].items():
            assert row[f"reward_{side}"] == pytest.approx(reward, abs=1e-4)
        return
    assert row["prediction"] == record["prediction"]
    if kind == "multiple-choice":
        assert row["choice"] == record["places"]["prediction"]
        assert row["prediction"] == row["choices"][row["choice"]]
        assert 1 / 3 <= row["probability"] < 1
    if kind == "question-answering":
        assert row["score"] == pytest.approx(record["score"], abs=1e-4)
        assert row["prediction"] == row["context"][row["start"] : row["end"]]
    if kind == "token-classification":
        assert len(row["prediction"]) == len(row["tokens"])


def test_a_base_without_a_new_head_is_scored_before_training(
    trained: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = trained("causal-lm")
    before = _eval(capsys, recipe.parent / "base", recipe)
    report = read_report(recipe.parent / "out")
    assert report is not None
    assert report.without_adapters is not None
    assert before["validation"]["loss"] == pytest.approx(report.without_adapters["validation"])
    assert report.metrics["validation"]["loss"] < before["validation"]["loss"]


@pytest.mark.versions
@pytest.mark.parametrize("family", rest_is_long(FAMILIES, 2))
def test_a_resumed_run_equals_one_that_was_not_stopped(
    family: str, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = trained(family)
    whole = recipe.parent / "out"
    resumed = resumes_as_if_whole(recipe, tmp_path, monkeypatch, whole=whole).resumed
    assert [each.step for each in resumed] == [2]


@pytest.mark.parametrize("method", [n for n in low_rank_names() if n != "sora"])
@pytest.mark.parametrize("family", rest_is_long(FAMILIES))
def test_every_method_trains_it(family: str, method: str, tmp_path: Path) -> None:
    recipe = FAMILIES[family](tmp_path)
    words = [f"method.name={method}", *OPTIONS[method], "training.max_steps=3"]
    assert run(["train", str(recipe), *words]) == 0
    report = read_report(tmp_path / "out")
    assert report is not None
    assert report.steps == 3


@pytest.mark.parametrize("family", rest_is_long(FAMILIES, 3))
def test_a_dry_run_predicts_its_memory(
    family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["train", str(FAMILIES[family](tmp_path)), "--dry-run"]) == 0
    assert "predicted peak" in capsys.readouterr().out
