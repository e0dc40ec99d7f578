"""Vectors, losses, gradients and scores are those of sentence-transformers, in 64 bits."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from sentence_transformers import util
from sentence_transformers.sentence_transformer import losses
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
from torch import Tensor

from methods.dropout import replace_dropouts
from sora_cli.model.base import Base
from sora_cli.tasks import embedding_batch, embedding_scores
from sora_cli.tasks.embedding import Embedding
from sora_cli.tasks.encoded import Predictions
from tests.helpers_errors import refusal
from tests.helpers_families import retrieval_rows, step_gradients
from tests.helpers_models import tiny_bert, tiny_llama, tiny_t5
from tests.helpers_runs import WORDS, tiny_tokenizer
from tests.helpers_vectors import (
    batches_of,
    bound_task,
    opened_base,
    sentence_model,
    vectors_of,
    write_sentence_model,
)

Rows = Sequence[Mapping[str, Any]]
NEAR = {"rtol": 1e-9, "atol": 1e-12}
SHAPES = ["mean", "cls, dense", "lasttoken, decoder", "lasttoken, padded left", "prompts", "long"]


@pytest.fixture(autouse=True)
def _read_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts this short would be read in one pass."""
    monkeypatch.setattr(embedding_batch, "PASS", 2)


def distinct_rows(rows: int, *, negatives: int = 1, seed: int = 0) -> list[dict[str, str]]:
    """No text occurs twice, in whichever column."""
    rng, texts = random.Random(seed), dict[str, None]()
    names = ["query", "positive", "negative", *(f"negative_{i}" for i in range(2, negatives + 1))]
    width = 2 + negatives
    while len(texts) < rows * width:
        texts[" ".join(rng.choices(WORDS, k=rng.randint(3, 9)))] = None
    made = list(texts)
    parts = (made[i : i + width] for i in range(0, rows * width, width))
    return [dict(zip(names, part, strict=False)) for part in parts]


def scored_pairs(rows: int) -> list[dict[str, Any]]:
    """Pairs with scores of which some are equal."""
    return [
        {"query": row["query"], "positive": row["positive"], "score": i % 5 / 2}
        for i, row in enumerate(distinct_rows(rows))
    ]


def written(folder: Path, shape: str) -> Path:
    if "decoder" in shape or "left" in shape:
        made = write_sentence_model(folder, model=tiny_llama(), pooling="lasttoken", unit=False)
        if "left" in shape:
            tokenizer = tiny_tokenizer()
            tokenizer.padding_side = "left"
            tokenizer.save_pretrained(made)
        return made
    if shape == "prompts":
        prompts = {"query": "the ", "document": "not a "}
        return write_sentence_model(folder, prompts=prompts)
    pooling = shape.partition(",")[0] if shape != "long" else "mean"
    return write_sentence_model(folder, pooling=pooling, dense=12 * ("dense" in shape), unit=False)


@pytest.mark.parametrize("shape", SHAPES)
def test_vectors_are_those_of_sentence_transformers(tmp_path: Path, shape: str) -> None:
    folder, rows = written(tmp_path, shape), retrieval_rows(12)
    task = bound_task(rows)
    base, real = opened_base(task, folder), sentence_model(folder)
    encoded = task.encode(Dataset.from_list(rows), base.processor)
    ours = vectors_of(task, base, encoded)
    texts, queries = encoded.dataset["text"][:], len({row["query"] for row in rows})
    theirs = torch.cat([
        real.encode_query(texts[:queries], convert_to_tensor=True, batch_size=4),
        real.encode_document(texts[queries:], convert_to_tensor=True, batch_size=4),
    ])  # fmt: skip
    assert torch.allclose(ours, theirs, rtol=1e-6 if "left" in shape else 1e-9, atol=1e-9)
    told = task.template(base.processor)
    assert (told is not None) == (shape == "prompts")


def _features(real: Any, rows: Rows, columns: Sequence[str]) -> list[Any]:
    return [real.preprocess([row[column] for row in rows]) for column in columns]


def _gradients(model: Any, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    torch.autograd.backward(loss)
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def _ours(task: Embedding, base: Base, batches: Sequence[Any]) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of a step, weighted as the trainer weights its micro-batches."""
    with torch.no_grad():
        made = task.before_step(base.model, batches)
    items = [task.loss_items(batch) for batch in batches]
    parts = [task.batch_loss(base.model, batch)[0] for batch in made]
    loss = torch.stack([p * n / sum(items) for p, n in zip(parts, items, strict=True)]).sum()
    return float(loss.detach()), _gradients(base.model, loss)


def _assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor], near: float = 1e-9) -> None:
    theirs = {name.partition("model.")[2] or name: value for name, value in theirs.items()}
    learned = {name for name, value in ours.items() if value.abs().max() > 0}
    assert learned
    assert learned <= theirs.keys()
    scale = max(float(value.abs().max()) for value in theirs.values())
    for name in learned:
        assert torch.allclose(ours[name], theirs[name], rtol=near, atol=near * scale), name


LOSSES: dict[str, tuple[str, int, int]] = {
    "one pass": ("MultipleNegativesRankingLoss", 16, 1),
    "three wrong documents": ("MultipleNegativesRankingLoss", 16, 3),
    "cached": ("CachedMultipleNegativesRankingLoss", 4, 1),
    "cached, uneven": ("CachedMultipleNegativesRankingLoss", 5, 2),
}


@pytest.mark.parametrize("bits", [64, 32])
@pytest.mark.parametrize("case", LOSSES)
def test_loss_and_gradients_are_those_of_sentence_transformers(
    tmp_path: Path, case: str, bits: int
) -> None:
    name, size, negatives = LOSSES[case]
    folder, rows = written(tmp_path, "mean"), distinct_rows(16, negatives=negatives)
    task = bound_task(rows)
    base, real = opened_base(task, folder), sentence_model(folder)
    near = 1e-9
    if bits == 32:
        base.model.float()
        real.float()
        near = 1e-5
    cached = {"mini_batch_size": size} if name.startswith("Cached") else {}
    loss = getattr(losses, name)(real, **cached)
    features = _features(real, rows, list(rows[0]))
    theirs = loss(features, torch.zeros(16))
    gradients = _gradients(real[0].model, theirs)
    value, ours = _ours(task, base, batches_of(task, base, rows, size))
    assert value == pytest.approx(float(theirs.detach()), rel=near)
    _assert_same(ours, gradients, near)


@pytest.mark.parametrize("size", [20, 6])
def test_the_order_of_scores_is_learned_as_by_cosent(tmp_path: Path, size: int) -> None:
    folder, rows = written(tmp_path, "mean"), scored_pairs(20)
    task = bound_task(rows, loss="cosent")
    base, real = opened_base(task, folder), sentence_model(folder)
    scores = torch.tensor([row["score"] for row in rows])
    theirs = losses.CoSENTLoss(real)(_features(real, rows, ["query", "positive"]), scores)
    value, ours = _ours(task, base, batches_of(task, base, rows, size))
    assert value == pytest.approx(float(theirs.detach()), rel=1e-9)
    _assert_same(ours, _gradients(real[0].model, theirs))


def test_equal_texts_are_no_wrong_answers(tmp_path: Path) -> None:
    folder = written(tmp_path, "mean")
    rows: list[dict[str, str]] = distinct_rows(8)
    rows[1]["positive"] = rows[0]["positive"]  # one document, two queries
    rows[3]["query"] = rows[2]["query"]  # one query, two documents
    rows[5]["negative"] = rows[4]["positive"]
    rows[6]["positive"] = rows[7]["query"]
    task = bound_task(rows)
    base, real = opened_base(task, folder), sentence_model(folder)
    value, _ = _ours(task, base, batches_of(task, base, rows, 8))
    by = {c: real.encode([r[c] for r in rows], convert_to_tensor=True) for c in rows[0]}
    expected = []
    for i, row in enumerate(rows):
        kept = [float(util.cos_sim(by["query"][i], by["positive"][i])) * 20]
        for c in ("positive", "negative"):
            for j, other in enumerate(rows):
                same = other[c] in (row["positive"], row["query"])
                same |= c == "positive" and other["query"] == row["query"]
                if not same:
                    kept.append(float(util.cos_sim(by["query"][i], by[c][j])) * 20)
        expected.append(-kept[0] + float(torch.tensor(kept, dtype=torch.float64).logsumexp(0)))
    assert value == pytest.approx(np.mean(expected), rel=1e-9)


def _steps(folder: Path, rows: Rows, parts: int, dropout: float) -> list[dict[str, Tensor]]:
    """The gradients of a step of 32 rows in that many micro-batches."""
    model = tiny_bert(hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout).bert
    replace_dropouts(model)  # as a run on a CPU does
    return step_gradients(
        folder, model, tiny_tokenizer(), [dict(row) for row in rows], accumulation=parts,
        training={"batch_size": 32}, task={"name": "embedding"},
    )  # fmt: skip


@pytest.mark.parametrize("rows", [32, 30])
def test_micro_batches_of_4_have_the_gradient_of_32_rows(tmp_path: Path, rows: int) -> None:
    (whole,), (split,) = (
        _steps(tmp_path / str(parts), distinct_rows(rows), parts, 0.0) for parts in (1, 8)
    )
    scale = max(float(g.abs().max()) for g in whole.values())
    near = 1e-9 if rows == 32 else 1e-7  # the trainer's share of 4 in 30 rows has 32 bits
    for name, gradient in whole.items():
        assert torch.allclose(gradient, split[name], rtol=near, atol=near * scale), name


def test_the_second_pass_drops_the_same_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, vectors = list[Tensor](), Embedding._side

    def recorded(task: Embedding, *inputs: Any) -> Tensor:
        made.append(vectors(task, *inputs))
        return made[-1]

    monkeypatch.setattr(Embedding, "_side", recorded)
    _steps(tmp_path, distinct_rows(32), 2, 0.3)
    assert len(made) == 8  # of each micro-batch its queries, then its documents
    for first, second in zip(made[:4], made[4:], strict=True):
        assert not first.requires_grad
        assert torch.equal(first, second)
    assert not torch.equal(made[0], made[2])


def test_the_loss_is_computed_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(11, 3, 5, generator=generator, dtype=torch.float64)
    keys = torch.arange(33).view(11, 3) % 20
    whole, gradient = embedding_scores.step_loss(vectors, keys, None, 20.0)
    monkeypatch.setattr(embedding_scores, "_BLOCK", 4)
    parts, summed = embedding_scores.step_loss(vectors, keys, None, 20.0)
    assert torch.allclose(whole, parts, **NEAR)
    assert torch.allclose(gradient, summed, **NEAR)
    assert embedding_scores.mean_loss(vectors, keys, None, 20.0) == pytest.approx(whole.mean())


def predicted(task: Embedding, base: Base, rows: Rows) -> Predictions:
    encoded = task.encode(Dataset.from_list([dict(r) for r in rows]), base.processor)
    return Predictions(vectors_of(task, base, encoded).numpy(), None, encoded)


METRICS = ["ndcg_at_10", "mrr_at_10", "recall_at_1", "recall_at_10"]


def test_scores_are_those_of_the_information_retrieval_evaluator(tmp_path: Path) -> None:
    folder, rows = written(tmp_path, "mean"), retrieval_rows(60, negatives=2)
    for i in range(0, 60, 7):  # some queries have several documents
        rows[i]["query"] = rows[(i + 3) % 60]["query"]
    task = bound_task(rows, metrics=METRICS)
    base, real = opened_base(task, folder), sentence_model(folder)
    documents = {t: f"{i:04d}" for i, t in enumerate(dict.fromkeys(
        row[c] for row in rows for c in ("positive", "negative", "negative_2")
    ))}  # fmt: skip
    relevant = {
        str(i): {documents[other["positive"]] for other in rows if other["query"] == row["query"]}
        for i, row in enumerate(rows)
    }
    evaluator = InformationRetrievalEvaluator(
        {str(i): row["query"] for i, row in enumerate(rows)},
        {number: text for text, number in documents.items()},
        relevant,
        precision_recall_at_k=[1, 10],
    )
    theirs = evaluator(real)
    ours = task.metrics(predicted(task, base, rows))
    assert 0.1 < ours["ndcg_at_10"] < 0.9
    for name in METRICS:
        assert ours[name] == pytest.approx(theirs[f"cosine_{name.replace('_at_', '@')}"], rel=1e-9)


def test_pairs_are_scored_by_the_order_of_their_cosines(tmp_path: Path) -> None:
    from scipy.stats import pearsonr, spearmanr

    folder, rows = written(tmp_path, "mean"), scored_pairs(20)
    task = bound_task(rows, loss="cosent", metrics=["spearman", "pearson", "loss"])
    base, real = opened_base(task, folder), sentence_model(folder)
    first, second = (real.encode([r[c] for r in rows]) for c in ("query", "positive"))
    cosines = util.pairwise_cos_sim(first, second).numpy()
    scores = [row["score"] for row in rows]
    ours = task.metrics(predicted(task, base, rows))
    assert ours["spearman"] == pytest.approx(spearmanr(cosines, scores).statistic, rel=1e-9)
    assert ours["pearson"] == pytest.approx(pearsonr(cosines, scores).statistic, rel=1e-9)
    value, _ = _ours(task, base, batches_of(task, base, rows, 20))
    assert ours["loss"] == pytest.approx(value, rel=1e-9)


def test_a_model_that_is_not_finite_scores_nan(tmp_path: Path) -> None:
    folder, rows = written(tmp_path, "mean"), retrieval_rows(6)
    task = bound_task(rows, metrics=METRICS)
    made = predicted(task, opened_base(task, folder), rows)
    made.outputs[3] = np.nan
    assert np.isnan(list(task.metrics(made).values())).all()
    with refusal():
        task.answer_columns(made)


def test_rows_for_predict_may_have_one_text() -> None:
    rows = retrieval_rows(4)
    for part, name in (("query", "query_vector"), ("positive", "document_vector")):
        task = bound_task(rows)
        alone = task.stand_in(Dataset.from_list([{part: row[part]} for row in rows]))
        assert task.answered_by == (name,)
        task.bind(alone)
        assert task.input_columns == (part,)
    own = [{"q": row["query"], "d": row["positive"]} for row in rows]
    task = bound_task(own, data={"columns": {"query": "q", "positive": "d"}})
    task.bind(task.stand_in(Dataset.from_list([{"d": row["d"]} for row in own])))
    assert (task.answered_by, task.input_columns) == (("document_vector",), ("d",))
    task = bound_task(rows)
    assert task.stand_in(Dataset.from_list(rows)).column_names == ["query", "positive"]
    with refusal():
        task.stand_in(Dataset.from_list([{"other": "a"}]))


def test_columns_of_negatives() -> None:
    columns: dict[str, list[str]] = {
        "negative": ["negative"],
        "numbered": ["negative_1", "negative_2", "negative_10"],
        "other": ["bad1", "bad2"],
    }
    for kind, names in columns.items():
        row = {"query": "a", "positive": "the cat", "negatively": "x"} | dict.fromkeys(names, "no")
        data = {"columns": {"negative": "bad1"}} if kind == "other" else {}
        task = bound_task([row, row], data=data)
        assert list(task.input_columns[2:]) == names


WRONG: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "empty": ([{"query": "a", "positive": "b"}, {"query": " ", "positive": "c"}], {}),
    "no text": ([{"query": "a", "positive": None}, {"query": "b", "positive": "c"}], {}),
    "number": ([{"query": "a", "positive": 7}], {}),
    "no score": ([{"query": "a", "positive": "b", "score": None}], {"loss": "cosent"}),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_row_that_does_not_fit_is_named(case: str) -> None:
    rows, options = WRONG[case]
    task = bound_task(rows, **options)
    with refusal():
        task.check(Dataset.from_list(rows))


ALIKE: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "one row": ([{"query": "the cat", "positive": "a dog"}], {}),
    "one document": ([{"query": w, "positive": "a dog"} for w in ("cat", "bird")], {}),
    "one score": (
        [{"query": w, "positive": "a dog", "score": 1} for w in ("cat", "bird")],
        {"loss": "cosent"},
    ),
}


@pytest.mark.parametrize("case", ALIKE)
def test_rows_with_nothing_to_tell_apart_are_refused(case: str) -> None:
    rows, options = ALIKE[case]
    task = bound_task(rows, **options)
    data = Dataset.from_list(rows)
    task.encode(data, tiny_tokenizer())  # they may be scored
    with refusal():
        task.encode(data, tiny_tokenizer(), training=True)


def test_a_model_that_writes_is_refused() -> None:
    task = bound_task(retrieval_rows(2))
    with refusal():
        task.adapt_model(tiny_t5(), tiny_tokenizer())
