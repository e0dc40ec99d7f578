"""Every task family with every method, and each of both with every verb: see `tests.pairs`."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from sora_cli.app import run
from sora_cli.data.rows import load_rows
from sora_cli.recipe.load import load_recipe
from sora_cli.report import RunReport, read_report
from tests.architectures import CAUSAL, tiny
from tests.helpers_families import FAMILIES
from tests.helpers_methods import set_method
from tests.helpers_runs import resumes_as_if_whole
from tests.pairs import Case, all_cases, cover
from tests.present import present

WITHOUT_LABELS = {
    "causal-lm": {"output"},
    "causal-lm, packed": {"output"},
    "sequence-classification, decoder": {"label"},
    "sequence-regression": {"label"},
    "multiple-choice": {"label"},
    "preference": set(),
    "reward": set(),
    "thumbs": {"label"},
    "seq2seq": {"output"},
    "question-answering": {"answers"},
    "token-classification": {"tags"},
    "image-classification": {"label"},
    "image-text": set(),
    "embedding": {"negative"},
    "reranking": {"labels"},
    "reranking, single": {"label"},
}
"""By family, the columns that rows to be answered do not have."""
TELLS = {"task.name", "data.max_length", "data.columns", "task.stride", "task.max_answer_length",
         "task.max_new_tokens", "data.label_names"}  # fmt: skip
"""What a model's own files do not tell."""


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


@dataclass(frozen=True)
class Run:
    """A run of a case in out/, which was compared with the trained model.

    Attributes:
        folder: for what is made of it.
    """

    case: Case
    recipe: Path
    folder: Path
    capsys: pytest.CaptureFixture[str]
    monkeypatch: pytest.MonkeyPatch

    @property
    def out(self) -> Path:
        return self.recipe.parent / "out"

    def report(self) -> RunReport:
        return present(read_report(self.out))

    def train(self, *words: str) -> None:
        assert run(["train", str(self.recipe), *words]) == 0
        assert self.report().verification.verdict == "same"

    def eval(self, target: Path, *words: str) -> Any:
        self.capsys.readouterr()
        command = ["eval", str(target), "--recipe", str(self.recipe), "--json", *words]
        assert run(command) == 0
        return json.loads(self.capsys.readouterr().out)


def files(made: Run) -> None:
    """Files give the score again, and so does the merged model.

    The merged model, without our file beside it, also answers as it is scored.
    """
    made.train()
    out, merged = made.out, made.folder / "merged"
    report, loaded = made.report(), load_recipe(made.recipe).recipe
    assert set(report.metrics["validation"]) == {*loaded.task.options.metrics, "loss"}
    rows, scored = load_rows(loaded.data).report["validation"], made.folder / "scored.jsonl"
    _close(made.eval(out, "--predictions", str(scored)), report.metrics)
    records = read_lines(scored)
    assert len(records) == len(rows)
    assert all({"split", "row", "prediction"} <= record.keys() for record in records)
    assert run(["merge", str(out), "-o", str(merged)]) == 0
    (merged / "sora.json").unlink()
    _close(made.eval(merged, "--predictions", str(scored), "--force"), report.metrics)
    # rewards are measured against the base model, which a merged one does not hold
    answering = out if loaded.task.options.needs_reference else merged
    labels = WITHOUT_LABELS[made.case.family]
    words = [word for word in told(made.recipe) if not word.startswith("task.name=")]
    words += ["--task", loaded.task.name]  # a bare model does not tell
    asked, answers = answered(answering, rows, labels, made.folder, *words)
    records = read_lines(scored)
    assert len(answers) == len(records) == len(asked)
    for row, record, own in zip(answers, records, asked, strict=True):
        assert {name: row[name] for name in own} == own
        check(loaded.task.name, row, record)
    if made.case.family == "causal-lm":  # its base has no new head, so it was scored first
        before = made.eval(made.recipe.parent / "base")["validation"]
        assert before["loss"] == pytest.approx(report.without_adapters["validation"])
        assert report.metrics["validation"]["loss"] < before["loss"]


def resume(made: Run) -> None:
    """A resumed run equals one that was not stopped."""
    made.train()
    step = made.report().steps // 2 + 1  # the cut is over, AdaLoRA's budget is falling
    resumed = resumes_as_if_whole(
        made.recipe, made.folder, made.monkeypatch, whole=made.out, step=step
    ).resumed
    assert [each.step for each in resumed] == [step]


def dry_run(made: Run) -> None:
    """Memory is predicted before training."""
    words = ["training.max_steps=3"]
    assert run(["train", str(made.recipe), "--dry-run", *words]) == 0
    assert "predicted peak" in made.capsys.readouterr().out
    assert not made.out.exists()
    made.train(*words)
    assert made.report().steps == 3


def small(made: Run) -> None:
    """What is cut and rounded is the same in every layout."""
    made.train("training.max_steps=3")
    names = ("small", "padded", "packed.safetensors")
    cut, padded, packed = (made.folder / name for name in names)
    assert run(["prune", str(made.out), "-o", str(cut), "--rank", "1", "--bits", "8"]) == 0
    made.capsys.readouterr()
    assert run(["inspect", str(cut), "--json"]) == 0
    ranks = json.loads(made.capsys.readouterr().out)["ranks"]
    assert max(rank["live"] for rank in ranks.values()) == 1
    assert run(["export", str(cut), "-o", str(padded), "--layout", "padded"]) == 0
    assert "verified: " in made.capsys.readouterr().err
    assert run(["export", str(cut), "-o", str(packed), "--format", "packed"]) == 0
    assert made.eval(packed) == made.eval(cut)


VERBS = {"files": files, "resume": resume, "dry run": dry_run, "small": small}
VERSIONS = ("files", "resume")
KINDS = ("gemma4_text", "glm4", "gpt_oss", "lfm2", "qwen3_5_text")
"""Kinds of models with layers of their own: `tests/interop/test_architectures.py` has many more."""


def _marked(at: int, case: Case) -> Any:
    """The first cases hold each family, method and verb, and are not long."""
    marks = [pytest.mark.versions] if case.verb in VERSIONS else []
    marks += [] if at < len(FAMILIES) else [pytest.mark.long]
    return pytest.param(case, marks=marks, id=str(case))


@pytest.mark.parametrize("case", [_marked(*each) for each in enumerate(cover(all_cases()))])
def test_a_family_a_method_and_a_verb(
    case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = FAMILIES[case.family](tmp_path)
    set_method(recipe, case.method, dropout=0.1)
    (tmp_path / "made").mkdir()
    VERBS[case.verb](Run(case, recipe, tmp_path / "made", capsys, monkeypatch))


@pytest.mark.long
@pytest.mark.parametrize("case", cover(all_cases(families=KINDS)), ids=str)
def test_a_kind_of_model_a_method_and_a_verb(
    case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = FAMILIES["causal-lm"](tmp_path)
    tiny(case.family, CAUSAL).save_pretrained(tmp_path / "base")
    set_method(recipe, case.method, dropout=0.1)
    (tmp_path / "made").mkdir()
    own = replace(case, family="causal-lm")
    VERBS[case.verb](Run(own, recipe, tmp_path / "made", capsys, monkeypatch))


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
    if kind == "embedding":
        cosine = np.dot(row["query_vector"], row["document_vector"])  # of unit length
        assert cosine == pytest.approx(record["cosine"], abs=1e-5)
        return
    if kind == "reranking" and "scores" in row:
        assert row["scores"] == pytest.approx(record["scores"], abs=1e-4)
        assert row["documents"][np.argmax(row["scores"])] == record["prediction"]
        return
    if kind == "reranking":
        assert row["score"] == pytest.approx(record["prediction"], abs=1e-4)
        return
    if kind in ("preference", "reward"):
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
