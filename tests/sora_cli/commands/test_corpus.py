"""Commands with a fixed corpus: scores, promises, and the best documents of each query."""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from sora_cli.app import run
from sora_cli.core.exit_codes import FAILED, OK
from sora_cli.report import read_report
from sora_cli.tasks import corpus as corpora
from sora_cli.tasks.embedding import Embedding
from tests.golden import told
from tests.helpers_errors import refused
from tests.helpers_families import write_family_recipe
from tests.helpers_models import tiny_bert
from tests.helpers_runs import (
    WORDS,
    resumes_as_if_whole,
    save_base,
    tiny_tokenizer,
    train,
    write_recipe,
    write_rows,
)
from tests.sora_cli.commands.test_predict import small_parts

PARTS = 3  # of a corpus of DOCUMENTS
DOCUMENTS, TRAIN, TEST = 240, 160, 24


def write_search(folder: Path, **blocks: Any) -> Path:
    """A recipe whose rows name documents of a corpus by id."""
    rng, texts = random.Random(0), dict[str, None]()
    while len(texts) < DOCUMENTS:
        texts[" ".join(rng.choices(WORDS, k=rng.randint(4, 9)))] = None
    held = [{"id": f"d{i}", "text": text} for i, text in enumerate(texts)]
    rows = [
        {"query": f"{' '.join(d['text'].split()[:3])} {rng.choice(WORDS)}", "positive": d["id"]}
        for d in held
    ]
    files = {
        "train": write_rows(folder / "train.jsonl", rows[:TRAIN]),
        "validation": write_rows(folder / "validation.jsonl", rows[TRAIN : TRAIN + TEST]),
    }
    write_rows(folder / "asked.jsonl", [{"query": row["query"]} for row in rows[-TEST:]])
    return write_family_recipe(
        folder,
        model={"path": str(save_base(tiny_bert(), folder / "base"))},
        task={"name": "embedding", "metrics": ["recall_at_10", "ndcg_at_10", "recall_at_1"]},
        data={
            "files": files,
            "corpus": write_rows(folder / "corpus.jsonl", held),
            "max_length": 32,
        },
        **blocks,
    )


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe with a corpus and its finished run in out/."""
    path = write_search(tmp_path_factory.mktemp("search"), training={"max_steps": 4})
    train(path)
    return path


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of documents that a model gets, while each part has some of them."""
    made, inner = list[int](), corpora.Reader.vectors
    monkeypatch.setattr(corpora, "PART", DOCUMENTS // PARTS)

    def counted(self: Any, corpus: Any, encoded: Callable[[Any], Any], **options: Any) -> Any:
        def noted(texts: Any) -> Any:
            made.append(len(texts))
            return encoded(texts)

        return inner(self, corpus, noted, **options)

    monkeypatch.setattr(corpora.Reader, "vectors", counted)
    return made


def best_of(file: Path) -> list[dict[str, Any]]:
    if file.suffix == ".parquet":
        return list(pq.read_table(file).to_pylist())
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".csv":
        rows = csv.DictReader(io.StringIO(text))
        return [{k: v if k == "query" else json.loads(v) for k, v in row.items()} for row in rows]
    return [json.loads(line) for line in text.splitlines()]


def test_each_evaluation_reads_the_corpus_once(tmp_path: Path, read: list[int]) -> None:
    recipe = write_search(tmp_path, training={"max_steps": 4, "evaluate": 2})
    words = ["data.validation=[validation,train]"]
    report = train(recipe, *words)
    # two in training, one for both reported splits, one without the adapters
    assert read == [DOCUMENTS // PARTS] * PARTS * 4
    assert {"train", "select", "validation", "corpus"} <= report.data.fingerprints.keys()
    assert run(["eval", str(tmp_path / "out"), "--json", "--recipe", str(recipe), *words]) == OK
    assert len(read) == PARTS * 5
    assert 0 < report.metrics["validation"]["recall_at_1"] < 1


def test_scores_are_those_of_the_run(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report, out = read_report(recipe.parent / "out"), recipe.parent / "scored.jsonl"
    assert report is not None
    words = ["eval", str(recipe.parent / "out"), "--recipe", str(recipe), "--json"]
    assert run([*words, "--predictions", str(out)]) == OK
    scores = json.loads(capsys.readouterr().out)["validation"]
    assert scores == pytest.approx(report.metrics["validation"])
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    right = [row["prediction"] == row["label"] for row in rows]
    assert sum(right) / len(right) == pytest.approx(scores["recall_at_1"])


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_the_best_documents_of_each_query(
    recipe: Path, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: list[int]
) -> None:
    folder, out = recipe.parent, tmp_path / f"found.{kind}"
    words = ["predict", str(folder / "out"), str(folder / "asked.jsonl"), "-o", str(out)]
    words += ["--corpus", str(folder / "corpus.jsonl"), "--k", "3"]
    small_parts(monkeypatch)
    assert run(words) == OK
    assert read == [DOCUMENTS // PARTS] * PARTS  # once, for five queries at a time
    rows = best_of(out)
    assert list(rows[0]) == ["query", "document_ids", "document_scores"]
    assert len(rows) == TEST
    if kind != "jsonl":
        return
    vectors = tmp_path / "v.jsonl"
    assert run([*words[:3], "-o", str(vectors)]) == OK
    documents = tmp_path / "d.jsonl"
    assert run([*words[:2], str(folder / "corpus.jsonl"), "-o", str(documents)]) == OK
    held = {row["id"]: row["document_vector"] for row in best_of(documents)}
    for row, own in zip(rows, best_of(vectors), strict=True):
        cosines = {
            name: sum(a * b for a, b in zip(own["query_vector"], v, strict=True))
            for name, v in held.items()
        }
        best = sorted(cosines, key=lambda name: (-round(cosines[name], 5), name))[:3]
        assert row["document_scores"] == pytest.approx([cosines[n] for n in best], abs=1e-5)
        assert row["document_ids"][0] == best[0]


def test_a_search_is_continued_with_the_same_corpus_only(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    small_parts(monkeypatch)
    folder, file = recipe.parent, tmp_path / "corpus.jsonl"
    text = (folder / "corpus.jsonl").read_text()
    file.write_text(text)
    words = ["predict", str(folder / "out"), str(folder / "asked.jsonl"), "--corpus", str(file)]
    words += ["-o", str(tmp_path / "found.jsonl")]
    inner, calls = Embedding.answer_columns, list[int]()

    def failing(self: Embedding, predictions: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return inner(self, predictions)

    monkeypatch.setattr(Embedding, "answer_columns", failing)
    assert run(words) != OK
    file.write_text(text.replace("cat", "dog"))
    refused(capsys, *words, hide=r"[0-9a-f]{20,}\S*")
    file.write_text(text)
    assert run(words) == OK
    assert len(best_of(tmp_path / "found.jsonl")) == TEST


def test_a_resumed_run_is_byte_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = write_search(tmp_path, training={"max_steps": 6, "evaluate": 2, "checkpoint": 2})
    resumes_as_if_whole(recipe, tmp_path, monkeypatch, step=3)


def test_a_dry_run_tells_the_corpus(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", str(recipe), "--dry-run", "output.dir=new"]) == OK
    lines = [line for line in capsys.readouterr().out.splitlines() if "corpus" in line]
    told("\n".join(lines), hide=r"about \d.*?  +|\d[\d.]* [kM]?B|/\S*corpus.jsonl +|/\S*yaml:\d+")


def test_a_promise_on_a_corpus_is_exact(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "small"
    words = ["auto", str(recipe), "--max-drop", "60pt", f"output.dir={out}", "--no-verify"]
    assert run([*words, "training.max_steps=10", "auto.sizes=2"]) == OK
    capsys.readouterr()
    certificate = json.loads((out / "certificate.json").read_text())
    assert certificate["bound"]["exact"]
    assert certificate["bound"]["rows_alone"]
    assert certificate["bound"]["statistic"] == "right or wrong"
    again = ["verify", str(out), "--certificate"]
    assert run(again) == OK
    other = tmp_path / "corpus.jsonl"
    held = (recipe.parent / "corpus.jsonl").read_text().splitlines()
    other.write_text("\n".join([*held, json.dumps({"id": "more", "text": "cat"})]))
    assert run([*again, f"data.corpus={other}"]) == FAILED
    assert "rows are not those of the certificate" in capsys.readouterr().out


def test_a_finished_adapter_is_cut_and_compared(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, given = tmp_path / "small", str(recipe.parent / "out")
    promise = ["--max-drop", "60pt", "--recipe", str(recipe)]
    assert run(["prune", given, "-o", str(out), *promise]) == OK
    certificate = json.loads((out / "certificate.json").read_text())
    assert certificate["bound"]["exact"]
    capsys.readouterr()
    assert run(["verify", given, str(out), *promise, "--json"]) == OK
    assert json.loads(capsys.readouterr().out)["bound"]["exact"]
    asked = str(recipe.parent / "asked.jsonl")  # queries are enough: the corpus has the documents
    differ = ["--max-differ", "90%", "--unlabelled", asked, "--recipe", str(recipe)]
    assert run(["verify", given, str(out), *differ, "--json"]) == OK
    assert json.loads(capsys.readouterr().out)["bound"]["exact"]


def test_mistakes(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(recipe.parent)
    dry = ["train", recipe.name, "output.dir=new"]
    refused(capsys, *dry, "data.corpus=corpus.json")
    refused(capsys, *dry, "data.corpus=out")
    write_rows(Path("few.jsonl"), [{"id": "d0", "text": "cat"}])
    refused(capsys, *dry, "data.corpus=few.jsonl")
    write_rows(Path("twice.jsonl"), [{"id": "d0", "text": "cat"}, {"id": "d0", "text": "dog"}])
    refused(capsys, *dry, "data.corpus=twice.jsonl")
    Path("empty.jsonl").write_text("")
    refused(capsys, *dry, "data.corpus=empty.jsonl")
    refused(capsys, *dry, "task.loss=cosent", "task.metrics=[spearman]")
    predict = ["predict", "out", "asked.jsonl", "-o", tmp_path / "found.jsonl"]
    refused(capsys, *predict, "--k", "3")
    refused(capsys, *predict, "--corpus", "twice.jsonl")
    refused(capsys, *predict[:-1], tmp_path / "v.npy", "--corpus", "corpus.jsonl")
    refused(capsys, *predict[:2], "corpus.jsonl", *predict[3:], "--corpus", "corpus.jsonl")
    assert not (tmp_path / "found.jsonl").exists()
    plain = write_recipe(tmp_path, tiny_bert(num_labels=2), data={"corpus": "corpus.jsonl"})
    refused(capsys, "train", plain)
    texts = [f"{WORDS[i % 18]} {WORDS[i // 18]} {' '.join(WORDS * 6)}" for i in range(DOCUMENTS)]
    long = [{"id": f"d{i}", "text": text} for i, text in enumerate(texts)]
    write_rows(Path("long.jsonl"), long)
    assert tiny_tokenizer().model_max_length == 64
    refused(capsys, *dry, "data.corpus=long.jsonl", "data.max_length=100")
