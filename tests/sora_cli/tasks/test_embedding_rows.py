"""Lists of documents: rows with different numbers of wrong ones, and with several right ones."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from sentence_transformers.sentence_transformer import losses
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
from torch import Tensor
from torch.nn.functional import normalize

from sora_cli.data.repeats import first_of_each, groups_of
from sora_cli.run.memory_trace import StorageTracker
from sora_cli.tasks import embedding
from tests.helpers_errors import refusal
from tests.helpers_families import retrieval_rows
from tests.helpers_runs import tiny_tokenizer
from tests.helpers_vectors import (
    batches_of,
    bound_task,
    opened_base,
    sentence_model,
    write_sentence_model,
)
from tests.sora_cli.tasks.test_embedding import (
    METRICS,
    _assert_same,
    _features,
    _gradients,
    _ours,
    _steps,
    distinct_rows,
    predicted,
)

Rows = Sequence[Mapping[str, Any]]


def in_lists(rows: Rows, lengths: Sequence[int]) -> list[dict[str, Any]]:
    """The rows with their first wrong documents in one column, in turn as many as `lengths`."""
    made = []
    for number, row in enumerate(rows):
        wrong = [text for name, text in row.items() if name.startswith("negative")]
        kept = wrong[: lengths[number % len(lengths)]]
        made.append({"query": row["query"], "pos": [row["positive"]], "neg": kept})
    return made


@pytest.mark.parametrize("size", [16, 5])
def test_lists_of_one_length_have_the_loss_of_columns(tmp_path: Path, size: int) -> None:
    folder, rows = write_sentence_model(tmp_path), distinct_rows(16, negatives=3)
    lists = in_lists(rows, [3])
    task = bound_task(lists)
    base, real = opened_base(task, folder), sentence_model(folder)
    theirs = (
        losses.MultipleNegativesRankingLoss(real)
        if size == 16
        else losses.CachedMultipleNegativesRankingLoss(real, mini_batch_size=size)
    )(_features(real, rows, list(rows[0])), torch.zeros(16))
    gradients = _gradients(real[0].model, theirs)
    value, ours = _ours(task, base, batches_of(task, base, lists, size))
    assert value == pytest.approx(float(theirs.detach()), rel=1e-9)
    _assert_same(ours, gradients)


def _masked_loss(real: Any, rows: Rows, wrong: int) -> Tensor:
    """InfoNCE over one table of all documents, in which those that are not there are masked."""
    width = 1 + wrong
    texts = [[*row["pos"], *row["neg"], *["-"] * (wrong - len(row["neg"]))] for row in rows]
    there = torch.tensor([[i < 1 + len(row["neg"]) for i in range(width)] for row in rows])

    def encoded(side: list[str]) -> Tensor:
        made: Tensor = real(real.preprocess(side))["sentence_embedding"]
        return normalize(made, dim=-1)

    queries = encoded([row["query"] for row in rows])
    documents = encoded([text for row in texts for text in row])
    logits = (20 * queries @ documents.T).masked_fill(~there.flatten(), -torch.inf)
    right = torch.arange(len(rows)) * width
    return torch.nn.functional.cross_entropy(logits, right)


@pytest.mark.parametrize("size", [16, 5])
@pytest.mark.parametrize("lengths", [[0, 3, 1], [0, 0, 0, 2]])
def test_documents_that_are_not_there_are_masked(
    tmp_path: Path, lengths: list[int], size: int
) -> None:
    folder = write_sentence_model(tmp_path)
    rows = in_lists(distinct_rows(16, negatives=3), lengths)
    task = bound_task(rows)
    base, real = opened_base(task, folder), sentence_model(folder)
    theirs = _masked_loss(real, rows, max(lengths))
    gradients = _gradients(real[0].model, theirs)
    value, ours = _ours(task, base, batches_of(task, base, rows, size))
    assert value == pytest.approx(float(theirs.detach()), rel=1e-9)
    _assert_same(ours, gradients)
    assert task.loss(predicted(task, base, rows)) == pytest.approx(value, rel=1e-9)


def test_micro_batches_have_the_gradient_of_the_step(tmp_path: Path) -> None:
    rows = in_lists(distinct_rows(32, negatives=3), [0, 3, 1])
    (whole,), (split,) = (_steps(tmp_path / str(parts), rows, parts, 0.0) for parts in (1, 8))
    scale = max(float(g.abs().max()) for g in whole.values())
    for name, gradient in whole.items():
        assert torch.allclose(gradient, split[name], rtol=1e-9, atol=1e-9 * scale), name


def test_a_row_is_trained_on_once_for_each_right_document() -> None:
    lists = [
        {"query": "the cat", "pos": ["a dog", "a bird"], "neg": ["not a cat"]},
        {"query": "good film", "pos": ["bad film"], "neg": []},
    ]
    apart = [
        {"query": row["query"], "pos": text, "neg": row["neg"]}
        for row in lists
        for text in row["pos"]
    ]
    one, other = (
        bound_task(rows).encode(Dataset.from_list(rows), tiny_tokenizer(), training=True)
        for rows in (lists, apart)
    )
    assert one.dataset[:] == other.dataset[:]
    assert one.lengths.tolist() == other.lengths.tolist()
    # memory is that of all texts of a row
    assert one.sizes.tolist() == [sum(map(len, ids)) for ids in one.dataset["input_ids"]]


def test_a_querys_right_documents_are_all_looked_for(tmp_path: Path) -> None:
    folder, rng = write_sentence_model(tmp_path), random.Random(0)
    rows: list[dict[str, Any]] = in_lists(retrieval_rows(40, negatives=3), [1, 3, 0])
    for number, row in enumerate(rows):
        row["pos"] += rng.sample(
            [other["pos"][0] for other in rows if other is not row], number % 3
        )
    task = bound_task(rows, metrics=METRICS)
    base, real = opened_base(task, folder), sentence_model(folder)
    documents = {
        text: str(i)
        for i, text in enumerate(dict.fromkeys(t for r in rows for t in (*r["pos"], *r["neg"])))
    }
    evaluator = InformationRetrievalEvaluator(
        {str(i): row["query"] for i, row in enumerate(rows)},
        {number: text for text, number in documents.items()},
        {
            str(i): {
                documents[t]
                for other in rows
                if other["query"] == row["query"]
                for t in other["pos"]
            }
            for i, row in enumerate(rows)
        },
        precision_recall_at_k=[1, 10],
    )
    theirs, ours = evaluator(real), task.metrics(predicted(task, base, rows))
    assert 0.1 < ours["ndcg_at_10"] < 0.9
    for name in METRICS:
        assert ours[name] == pytest.approx(theirs[f"cosine_{name.replace('_at_', '@')}"], rel=1e-9)


def test_rows_that_share_a_document_are_the_same_input() -> None:
    rows = [
        {"query": "a", "positive": ["x", "y"]},
        {"query": "b", "positive": ["z"]},
        {"query": "c", "positive": ["w", "y"]},
        {"query": "b", "positive": ["v"]},
    ]
    task, data = bound_task(rows), Dataset.from_list(rows)
    keys = [task.raw_keys(data), task.input_keys(task.encode(data, tiny_tokenizer()))]
    assert groups_of(keys[0]).tolist() == [0, 1, 0, 1]
    alone = [{"query": "d", "positive": "w"}, {"query": "e", "positive": "u"}]
    other = bound_task(alone).raw_keys(Dataset.from_list(alone))
    taken, known = first_of_each(keys[0], [other], seed=0)
    assert known.tolist() == [False, False, True, False]
    assert len(taken) == 2
    assert 0 in taken
    assert len(keys[1][1]) == 4


def test_a_row_with_several_documents_is_answered_by_several_vectors(tmp_path: Path) -> None:
    folder = write_sentence_model(tmp_path)
    rows = [{"query": "the cat", "pos": ["a dog", "a bird"]}, {"query": "good", "pos": ["a dog"]}]
    task = bound_task(rows)
    base = opened_base(task, folder)
    task.bind(task.stand_in(Dataset.from_list(rows)))
    assert task.answered_by == ("query_vector", "document_vectors")
    answers = task.answer_columns(predicted(task, base, rows))
    assert [len(several) for several in answers[1]] == [2, 1]
    assert answers[1][0][0] == answers[1][1][0]
    real = sentence_model(folder).encode("a bird")
    assert np.allclose(answers[1][0][1], real, rtol=1e-9)


WRONG: dict[str, Any] = {
    "right documents": {"pos": []},
    "a number": {"neg": [7]},
    "an empty text": {"neg": ["", "a"]},
    "a missing text": {"neg": ["a", None]},
    "no list": {"neg": None},
    "a list of queries": {"query": ["a"]},
}


@pytest.mark.parametrize("case", WRONG)
def test_a_list_that_does_not_fit_is_named(case: str) -> None:
    row = {"query": "a", "pos": ["the cat"], "neg": ["a dog"], **WRONG[case]}
    rows = [{**row, **({"pos": ["b"]} if row["pos"] else {})}] if case != "right documents" else [
        {"query": "b", "pos": ["the cat"], "neg": []}, row
    ]  # fmt: skip
    task = bound_task(rows)
    with refusal():
        task.check(Dataset.from_list(rows))


def test_one_query_has_nothing_to_reject() -> None:
    rows = [{"query": "the cat", "pos": ["a dog", "a bird"]}]
    with refusal():
        bound_task(rows).encode(Dataset.from_list(rows), tiny_tokenizer(), training=True)


def test_the_pass_of_the_queries_is_free_before_that_of_the_documents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"query": r["query"], "positive": r["positive"]} for r in distinct_rows(8)]
    for row in rows:  # both sides have the same length
        row["query"], row["positive"] = (f"{row[side]} {'the ' * 40}" for side in row)
    task = bound_task(rows)
    base = opened_base(task, write_sentence_model(tmp_path))
    with torch.no_grad():
        part, _ = task.before_step(base.model, batches_of(task, base, rows, 4))

    def peak() -> float:
        base.model.zero_grad()
        with StorageTracker([*base.model.parameters(), *part.values()]) as tracker:
            torch.autograd.backward(task.batch_loss(base.model, part)[0])
        return tracker.peak

    base.model.requires_grad_(False)
    base.model.encoder.layer[0].attention.self.query.weight.requires_grad_()
    apart = peak()
    monkeypatch.setattr(embedding, "passed_back", lambda total, _: total)
    assert apart < 0.7 * peak()
