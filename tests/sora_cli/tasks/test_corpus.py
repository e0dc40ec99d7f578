"""Queries are searched in a fixed corpus as by sentence-transformers' evaluator, in parts."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
from sklearn.metrics import ndcg_score

from methods.inject import adapted_layers, switched_off
from sora_cli.model.base import Base
from sora_cli.recipe.metric_facts import facts_of
from sora_cli.search.statistics import drop_bound, statistic_of
from sora_cli.tasks import corpus as corpora
from sora_cli.tasks.corpus import Reader, best_documents, open_corpus
from sora_cli.tasks.embedding import Embedding
from sora_cli.tasks.encoded import Encoded, Predictions
from sora_cli.tasks.row_scores import row_scores
from tests.helpers_errors import refusal
from tests.helpers_runs import WORDS, write_rows
from tests.helpers_vectors import (
    bound_task,
    opened_base,
    sentence_model,
    vectors_of,
    write_sentence_model,
)
from tests.present import present

METRICS = [
    "ndcg_at_10", "mrr_at_10", "recall_at_1", "recall_at_10", "accuracy_at_1", "accuracy_at_10"
]  # fmt: skip
Rows = Sequence[Mapping[str, Any]]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several parts, and several blocks of queries."""
    monkeypatch.setattr(corpora, "PART", 7)
    monkeypatch.setattr(corpora, "_QUERIES", 5)


def documents(number: int) -> list[dict[str, Any]]:
    """Documents in no order of their ids; some have the same text."""
    rng = random.Random(0)
    made = [
        {"id": f"d{i}", "text": " ".join(rng.choices(WORDS, k=rng.randint(3, 8)))}
        for i in range(number)
    ]
    for i in range(0, number, 9):
        made[i]["text"] = made[(i + 4) % number]["text"]
    return made


def queries(held: Rows, number: int, *, several: int = 1) -> list[dict[str, Any]]:
    """Each query has the first words of its document; every third has several rows."""
    rows = []
    for i in range(number):
        own = held[i * 2 % len(held)]
        query = f"{' '.join(own['text'].split()[:3])} {WORDS[i % len(WORDS)]} {i}"
        for extra in range(several if i % 3 == 0 else 1):
            document = held[(i * 2 + 5 * extra) % len(held)]["id"]
            rows.append({"query": query, "positive": document, "grade": 3 - extra})
    return rows


def read_by(task: Embedding, base: Base) -> Reader:
    """The model as it reads rows, in the order of the data set."""

    def outputs(encoded: Encoded) -> np.ndarray:
        return vectors_of(task, base, encoded).numpy()

    def bare(encoded: Encoded) -> np.ndarray:
        with switched_off(adapted_layers(base.model)):
            return outputs(encoded)

    return Reader(base.processor, outputs, bare)


def predicted(task: Embedding, base: Base, rows: Rows) -> Predictions:
    encoded = task.encode(Dataset.from_list([dict(row) for row in rows]), base.processor)
    reader = read_by(task, base)
    outputs = reader._outputs(encoded)
    found = task.found(encoded, outputs, reader)
    return Predictions(outputs, None, encoded, found=found)


def prepared(
    folder: Path, rows: Rows, held: Rows, **options: Any
) -> tuple[Embedding, Base, Predictions]:
    folder.mkdir(exist_ok=True)
    file = write_rows(folder / "corpus.jsonl", [dict(document) for document in held])
    task = bound_task(rows, data={"corpus": str(file)}, **options)
    base = opened_base(task, write_sentence_model(folder / "model"))
    return task, base, predicted(task, base, rows)


@pytest.mark.parametrize("several", [1, 3])
@pytest.mark.usefixtures("small")
def test_scores_are_those_of_the_information_retrieval_evaluator(
    tmp_path: Path, several: int
) -> None:
    held = documents(61)
    rows = queries(held, 20, several=several)
    for row in rows:
        row.pop("grade")
    task, _, made = prepared(tmp_path, rows, held, metrics=METRICS)
    relevant: dict[str, set[str]] = {}
    for row in rows:
        relevant.setdefault(row["query"], set()).add(row["positive"])
    evaluator = InformationRetrievalEvaluator(
        {query: query for query in relevant},
        {document["id"]: document["text"] for document in held},
        relevant,
        accuracy_at_k=[1, 10],
        precision_recall_at_k=[1, 10],
        corpus_chunk_size=11,
    )
    theirs = evaluator(sentence_model(tmp_path / "model" / "base"))
    ours = task.metrics(made)
    assert 0.1 < ours["recall_at_1"] < 0.9
    for name in METRICS:
        assert ours[name] == pytest.approx(theirs[f"cosine_{name.replace('_at_', '@')}"], rel=1e-9)
        scored = bound_task(rows, data={"corpus": task.data.corpus}, metrics=[name])
        assert scored.row_scores(made).value == pytest.approx(ours[name])
        assert scored.row_scores(made).rows_alone


@pytest.mark.usefixtures("small")
def test_grades_give_linear_gains(tmp_path: Path) -> None:
    held = documents(40)
    rows = queries(held, 12, several=3)
    task, base, made = prepared(tmp_path, rows, held, metrics=METRICS)
    corpus, asked = task.corpus, list(dict.fromkeys(row["query"] for row in rows))
    assert corpus is not None
    wanted = np.zeros((len(asked), len(corpus)))
    for row in rows:
        number = present(corpus.number(row["positive"]))
        wanted[asked.index(row["query"]), number] = row["grade"]
    every = best_documents(
        torch.from_numpy(made.outputs)[: len(asked)],
        read_by(task, base).vectors(corpus, lambda texts: task.documents(texts, base.processor)),
        len(corpus),
    )
    scores = np.empty_like(wanted)  # the order alone: ids break ties
    np.put_along_axis(scores, every.places, -np.arange(len(corpus))[None].astype(float), axis=1)
    assert task.metrics(made)["ndcg_at_10"] == pytest.approx(ndcg_score(wanted, scores, k=10))
    plain = [{**row, "grade": 1} for row in rows]
    assert task.metrics(predicted(task, base, plain))["ndcg_at_10"] != pytest.approx(
        task.metrics(made)["ndcg_at_10"]
    )


@pytest.mark.parametrize("k", [1, 4, 30])
def test_the_best_are_found_in_parts(monkeypatch: pytest.MonkeyPatch, k: int) -> None:
    monkeypatch.setattr(corpora, "_QUERIES", 3)
    generator = torch.Generator().manual_seed(0)
    asked = torch.randn(8, 2, generator=generator, dtype=torch.float64)
    held = torch.randn(6, 2, generator=generator, dtype=torch.float64).repeat(4, 1)  # equal ones
    cosines = torch.cosine_similarity(asked[:, None], held[None], dim=-1).round(decimals=9)
    expected = cosines.sort(dim=1, descending=True, stable=True)
    for sizes in ([24], [1, 2, 21], [6, 6, 6, 6], [23, 1]):
        found = best_documents(asked, torch.split(held, sizes), k)
        assert found.places.tolist() == expected.indices[:, :k].tolist()
        np.testing.assert_allclose(found.scores, expected.values[:, :k], atol=1e-8)


def test_documents_are_named_by_id_or_by_text(tmp_path: Path) -> None:
    held = [{"id": 10, "text": "a b"}, {"id": 9, "text": "c d"}, {"id": 7, "text": "e"}]
    corpus = open_corpus(str(write_rows(tmp_path / "corpus.jsonl", held)))
    assert corpus.ids == ["10", "7", "9"]
    assert corpus.texts([2, 0]) == ["c d", "a b"]
    assert corpus.numbers([10, "9", "e", "c d"], "positive") == [[0], [2], [1], [2]]
    assert corpus.numbers([[10, "e"], "9"], "positive") == [[0, 1], [2]]
    assert corpus.named([7, "9"], "positive") == ["e", "c d"]
    assert corpus.named([["e", "c d"], ["a b"]], "positive") is None
    assert corpus.named([[7, 9], ["10"]], "positive") == [["e", "c d"], ["a b"]]
    assert corpus.named(["c d", "not there"], "positive") is None
    by_id = [{"query": "q", "positive": 9}, {"query": "p", "positive": 10}]
    by_text = [{"query": "q", "positive": "c d"}, {"query": "p", "positive": "a b"}]
    data = {"corpus": str(corpus.path)}
    for rows in (by_id, by_text):
        read = Dataset.from_list([dict(row) for row in rows])
        task = bound_task(rows, data=data)
        task.check(read)
        assert task.in_texts(read)["positive"][:] == ["c d", "a b"]
        assert task.wanted(read)["wanted"] == [[2], [0]]


@pytest.mark.usefixtures("small")
def test_lists_of_documents_score_as_a_row_for_each(tmp_path: Path) -> None:
    held = documents(40)
    rows = queries(held, 12, several=3)
    lists: dict[str, dict[str, Any]] = {}
    for row in rows:
        made = lists.setdefault(row["query"], {"query": row["query"], "pos": [], "grade": []})
        made["pos"].append(row["positive"])
        made["grade"].append(row["grade"])
    task, _, made = prepared(tmp_path / "rows", rows, held, metrics=METRICS)
    other, base, listed = prepared(tmp_path / "lists", list(lists.values()), held, metrics=METRICS)
    assert other.metrics(listed) == pytest.approx(task.metrics(made), rel=1e-12)
    alike = [{**row, "grade": 1} for row in lists.values()]  # a number is the grade of all
    plain = [{**row, "grade": 1} for row in rows]
    assert other.metrics(predicted(other, base, alike)) == pytest.approx(
        task.metrics(predicted(task, base, plain)), rel=1e-12
    )
    wrong = [{**row, "grade": [1, 1, 1, 1]} for row in alike]
    with refusal():
        other.wanted(Dataset.from_list(wrong))


def test_a_changed_corpus_is_read_again(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "corpus.jsonl", [{"id": "a", "text": "one"}])
    before = open_corpus(str(file))
    assert open_corpus(str(file)) is before
    write_rows(tmp_path / "corpus.jsonl", [{"id": "a", "text": "another"}])
    assert open_corpus(str(file)).digest != before.digest


def test_a_query_counts_once_and_its_rows_are_one() -> None:
    values, asked = np.array([1.0, 1.0, 0.0, 1.0, 0.5]), np.array([0, 0, 1, 2, 3])
    shares = np.ones(5)
    scores = row_scores("ndcg_at_10", "mean by query", values, shares, asked)
    assert scores.value == pytest.approx(np.mean([1, 0, 1, 0.5]))
    assert scores.take(np.array([0, 1, 2])).value == pytest.approx(0.5)
    once = scores.take(np.array([1, 2, 3, 4]))
    assert (once.formula, once.parts.shape) == ("mean", (4, 1))
    right = row_scores("recall_at_1", "right by query", values[:4], shares[:4], asked[:4])
    assert not right.is_right_or_wrong
    assert right.of_these(np.array([0, 2, 3])).is_right_or_wrong
    # many rows of few queries, which the bootstrap groups
    many = np.repeat(np.arange(60), 5)
    one, other = (np.random.default_rng(seed).random(60)[many] for seed in (0, 1))
    full, less = (
        row_scores("ndcg_at_10", "mean by query", v, np.ones(300), many) for v in (one, other)
    )
    bound = drop_bound(full, less)
    assert bound.drop == pytest.approx(one.mean() - other.mean())
    assert bound.drop < bound.upper < bound.drop + 0.2


def test_rows_of_one_document_are_right_or_wrong(tmp_path: Path) -> None:
    held = documents(30)
    for several, exact in ((1, METRICS[2:]), (2, METRICS[4:])):
        rows = queries(held, 12, several=several)
        task, _, made = prepared(tmp_path / str(several), rows, held, metrics=METRICS)
        first = np.unique([row["query"] for row in rows], return_index=True)[1]
        for name in METRICS:
            scored = bound_task(rows, data={"corpus": task.data.corpus}, metrics=[name])
            for scores in (scored.row_scores(made), scored.blank_scores(made.encoded)):
                assert scores is not None
                method = statistic_of(scores.of_these(first)).method_on(99, 0.95)
                assert method.exact == (name in exact), name
            assert facts_of(name).ends_at_1


def test_vectors_that_are_not_finite_score_nan(tmp_path: Path) -> None:
    held = documents(12)
    task, _, made = prepared(tmp_path, queries(held, 4), held, metrics=METRICS)
    assert made.found is not None
    made.found.scores[0, 0] = np.nan
    assert np.isnan(list(task.metrics(made).values())).all()
    with refusal():
        task.compared_answers(made)
    with refusal():
        task.answer_columns(made)


def test_answers_are_the_best_documents(tmp_path: Path) -> None:
    held = documents(12)
    task, _, made = prepared(tmp_path, queries(held, 4), held, top_k=3)
    ids, scores = task.answer_columns(made)
    assert task.answered_by == ("document_ids", "document_scores")
    assert [len(own) for own in ids] == [3] * 4
    assert scores == [sorted(own, reverse=True) for own in scores]
    assert task.compared_answers(made) == [own[0] for own in ids]
    assert [row["prediction"] for row in task.readable(made)] == [own[0] for own in ids]
    assert [row["label"] for row in task.readable(made)] == [
        r["positive"] for r in queries(held, 4)
    ]


def test_bad_rows_and_documents(tmp_path: Path) -> None:
    held = [{"id": "a", "text": "one"}, {"id": "b", "text": "two"}, {"id": "c", "text": "one"}]
    file = write_rows(tmp_path / "corpus.jsonl", held)
    corpus = open_corpus(str(file))
    with refusal():
        corpus.numbers(["b", "three", "two", 4], "positive")
    with refusal():
        corpus.numbers(["two", "one"], "positive")
    with refusal():
        corpus.named(["a", "two"], "positive")
    rows = [{"query": "q", "positive": "b", "grade": grade} for grade in (1, 0)]
    task = bound_task(rows, data={"corpus": str(file)})
    with refusal():
        task.wanted(Dataset.from_list(rows))
    with refusal():
        bound_task(rows, data={"columns": {"grade": "grade"}})
    for number, bad in enumerate([
        [{"id": "a", "text": "one"}, {"id": "b", "text": "two"}, {"id": "a", "text": "three"}],
        [{"id": "a", "text": " "}],
        [{"id": None, "text": "one"}, {"id": "b", "text": "two"}],
        [{"number": "a", "text": "one"}],
    ]):  # fmt: skip
        with refusal():
            open_corpus(str(write_rows(tmp_path / f"{number}.jsonl", bad)))
    (tmp_path / "empty.jsonl").write_text("")
    for name in ("empty.jsonl", "none.jsonl"):
        with refusal():
            open_corpus(str(tmp_path / name))
    assert replace(task.blank_scores(task.encode(Dataset.from_list(rows[:1]), opened_base(
        task, write_sentence_model(tmp_path / "model")).processor))).value == 0  # fmt: skip
