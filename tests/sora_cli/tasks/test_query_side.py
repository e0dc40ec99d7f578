"""`task.adapt: query`: the base model alone embeds documents, in steps, scores and answers."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
from torch import Tensor

from methods.inject import inject
from methods.registry import create
from sora_cli.app import run
from sora_cli.core.exit_codes import OK
from sora_cli.model.base import Base
from sora_cli.report import read_report
from sora_cli.tasks.embedding import Embedding
from sora_cli.tasks.embedding_batch import in_rows
from sora_cli.tasks.embedding_scores import row_losses
from tests.golden import told
from tests.helpers_errors import refused
from tests.helpers_runs import resumes_as_if_whole, train
from tests.helpers_vectors import bound_task, opened_base, write_sentence_model
from tests.present import present
from tests.sora_cli.commands.test_corpus import write_search
from tests.sora_cli.tasks.test_corpus import read_by
from tests.sora_cli.tasks.test_embedding import distinct_rows
from tests.sora_cli.tasks.test_embedding_rows import Rows, in_lists

ROWS = distinct_rows(12, negatives=2)


def adapted(folder: Path, rows: Rows = ROWS) -> tuple[Embedding, Base, Any]:
    """A model with adapters that change it, and its base without them, in 64 bits."""
    task = bound_task(rows, adapt="query")
    base = opened_base(task, write_sentence_model(folder))
    plain = deepcopy(base.model)
    generator = torch.Generator().manual_seed(0)
    layers = inject(base.model, create("lora", r=4), generator=generator)
    for layer in layers.values():
        layer.B.data.normal_(generator=generator)
    return task, base, plain


def gradients(base: Base, loss: Tensor) -> dict[str, Tensor]:
    base.model.zero_grad()
    torch.autograd.backward(loss)
    return {n: p.grad.clone() for n, p in base.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize(("size", "own"), [(12, ROWS), (5, ROWS), (5, in_lists(ROWS, [2, 0, 1]))])
def test_a_step_is_that_of_the_disabled_adapter(
    tmp_path: Path, size: int, own: Rows, held: bool
) -> None:
    task, base, plain = adapted(tmp_path, own)
    rows = task.encode(Dataset.from_list([dict(r) for r in own]), base.processor, training=True)
    collate = task.collator(base.processor)
    whole = collate(list(rows.dataset))
    queries = task._side(base.model, whole, "query")
    with torch.no_grad():
        documents = task._side(plain, whole, "documents")
    vectors = in_rows(queries, documents, whole)
    expected = row_losses(vectors, whole["keys"], None, task.options.scale).mean()
    theirs = gradients(base, expected)
    if held:
        read = present(task.with_documents(rows, read_by(task, base)))
        rows = replace(read, dataset=read.dataset)
    parts = [range(i, min(i + size, len(ROWS))) for i in range(0, len(ROWS), size)]
    batches = [collate([rows.dataset[i] for i in part]) for part in parts]
    assert any(name.startswith("documents_") for name in batches[0]) != held
    with torch.no_grad():
        made = task.before_step(base.model, batches)
    share = [task.loss_items(batch) / len(ROWS) for batch in batches]
    losses = [task.batch_loss(base.model, batch)[0] for batch in made]
    loss = torch.stack([part * own for part, own in zip(losses, share, strict=True)]).sum()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-9)
    ours = gradients(base, loss)
    assert ours.keys() == theirs.keys()
    scale = max(float(value.abs().max()) for value in theirs.values())
    for name, value in theirs.items():
        assert torch.allclose(ours[name], value, rtol=1e-9, atol=1e-9 * scale), name


def test_scores_take_the_bases_documents(tmp_path: Path) -> None:
    task, base, plain = adapted(tmp_path)
    rows = task.encode(Dataset.from_list([dict(r) for r in ROWS]), base.processor)
    reader = read_by(task, base)
    outputs = reader._outputs(rows)
    assert task.adapted_rows(rows) == 12
    settled = task.settled(rows, outputs[:12], reader)
    bare = read_by(task, replace(base, model=plain))._outputs(rows)
    np.testing.assert_allclose(settled[:12], outputs[:12], rtol=1e-12)
    np.testing.assert_allclose(settled[12:], bare[12:], rtol=1e-9)
    assert np.abs(outputs[12:] - bare[12:]).max() > 1e-3


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("query")
    path = write_search(folder, training={"max_steps": 6, "evaluate": 3, "learning_rate": 0.05})
    base = write_sentence_model(folder / "sentences")
    text = path.read_text().replace(str(folder / "base"), str(base))
    path.write_text(text.replace("name: embedding", "name: embedding\n  adapt: query"))
    train(path)
    return path


def test_scores_are_those_of_two_models_of_sentence_transformers(recipe: Path) -> None:
    folder = recipe.parent
    base = SentenceTransformer(str(folder / "sentences" / "base"), device="cpu")
    mine = SentenceTransformer(str(folder / "sentences" / "base"), device="cpu")
    mine.load_adapter(str(folder / "out" / "adapter"))
    rows = [json.loads(line) for line in (folder / "validation.jsonl").read_text().splitlines()]
    held = [json.loads(line) for line in (folder / "corpus.jsonl").read_text().splitlines()]
    evaluator = InformationRetrievalEvaluator(
        {str(i): row["query"] for i, row in enumerate(rows)},
        {row["id"]: row["text"] for row in held},
        {str(i): {row["positive"]} for i, row in enumerate(rows)},
        precision_recall_at_k=[1, 10],
    )
    theirs = evaluator.compute_all_metrics(mine, corpus_model=base) if (
        evaluator.score_functions
    ) else evaluator(mine, corpus_model=base)  # fmt: skip
    report = present(read_report(folder / "out"))
    ours = report.metrics["validation"]
    assert ours["recall_at_10"] == pytest.approx(theirs["cosine_recall@10"])
    assert ours["ndcg_at_10"] == pytest.approx(theirs["cosine_ndcg@10"], abs=1e-6)
    assert report.without_adapters["validation"] != ours["recall_at_10"]


def test_predict_and_eval_take_the_base_for_documents(recipe: Path, tmp_path: Path) -> None:
    folder = recipe.parent
    base = SentenceTransformer(str(folder / "sentences" / "base"), device="cpu")
    mine = SentenceTransformer(str(folder / "sentences" / "base"), device="cpu")
    mine.load_adapter(str(folder / "out" / "adapter"))
    for file, column, model in (
        ("corpus.jsonl", "document", base),
        ("asked.jsonl", "query", mine),
    ):
        out = tmp_path / f"{column}.npy"
        assert run(["predict", str(folder / "out"), str(folder / file), "-o", str(out)]) == OK
        rows = [json.loads(line) for line in (folder / file).read_text().splitlines()]
        texts = [row["text" if column == "document" else "query"] for row in rows]
        np.testing.assert_allclose(np.load(out), model.encode(texts), atol=1e-5)
    found = tmp_path / "found.jsonl"
    words = ["predict", str(folder / "out"), str(folder / "asked.jsonl"), "-o", str(found)]
    assert run([*words, "--corpus", str(folder / "corpus.jsonl"), "--k", "2"]) == OK
    vectors = np.load(tmp_path / "query.npy") @ np.load(tmp_path / "document.npy").T
    lines = [json.loads(line) for line in found.read_text().splitlines()]
    best = [line["document_scores"][0] for line in lines]
    np.testing.assert_allclose(best, vectors.max(axis=1), atol=1e-5)


def test_a_resumed_run_is_byte_equal(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resumes_as_if_whole(recipe, tmp_path, monkeypatch, whole=recipe.parent / "out", step=4)


def test_the_directory_says_so(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapter = recipe.parent / "out" / "adapter"
    assert run(["inspect", str(adapter)]) == OK
    shown = capsys.readouterr().out
    told("\n".join(line for line in shown.splitlines() if "quer" in line))
    card = (adapter / "README.md").read_text()
    told("\n".join(line for line in card.splitlines() if "quer" in line))


def test_mistakes(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(recipe.parent)
    refused(capsys, "merge", "out", "-o", tmp_path / "merged")
    dry = ["train", recipe.name, "output.dir=new"]
    refused(capsys, *dry, "method={name: head}")
    refused(capsys, *dry, "model.new_tokens=[hello]")
    refused(capsys, *dry, "data.corpus=null", "task.loss=cosent", "task.metrics=[spearman]")
    assert not (tmp_path / "merged").exists()
