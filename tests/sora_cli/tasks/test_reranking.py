"""Rerankers beside sentence-transformers' CrossEncoder: losses, gradients, scores and files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from sentence_transformers import CrossEncoder
from sentence_transformers.cross_encoder.evaluation import CrossEncoderRerankingEvaluator
from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss, LambdaLoss
from torch import nn

from sora_cli.app import run
from sora_cli.core.exit_codes import OK
from sora_cli.model.base import load_base
from sora_cli.recipe.recipe import DataBlock, ModelBlock, TaskBlock
from sora_cli.report import read_report
from sora_cli.search.bca import influences
from sora_cli.tasks import create_task
from sora_cli.tasks.encoded import Predictions
from sora_cli.tasks.ranking_scores import ranked
from sora_cli.tasks.reranking import Reranking
from tests.helpers_errors import refused
from tests.helpers_families import FAMILIES, ranking_rows, single_rows
from tests.helpers_models import tiny_bert, tiny_llama
from tests.helpers_runs import save_base, write_rows


def read_lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


LENGTH = 9  # tokens: some pairs are cut


def bound(rows: list[dict[str, Any]], **options: Any) -> Reranking:
    data = DataBlock(path="unused", max_length=LENGTH)
    task = create_task(TaskBlock(name="reranking", **options), data)
    assert isinstance(task, Reranking)
    task.bind(Dataset.from_list(rows))
    return task


def flat(rows: list[dict[str, Any]]) -> tuple[list[tuple[str, str]], list[float]]:
    pairs = [(row["query"], text) for row in rows for text in row["documents"]]
    return pairs, [label for row in rows for label in row["labels"]]


def cross_encoder(folder: Path, length: int = LENGTH) -> CrossEncoder:
    return CrossEncoder(str(folder), num_labels=1, max_length=length, device="cpu")


def samples(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "query": row["query"],
            **{
                name: [
                    text
                    for text, label in zip(row["documents"], row["labels"], strict=True)
                    if (label > 0) is wanted
                ]
                for name, wanted in (("positive", True), ("negative", False))
            },
        }
        for row in rows
    ]


@pytest.mark.parametrize("form", ["lists", "single"])
@pytest.mark.parametrize("loss", ["binary", "lambda"])
@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_loss_and_gradients_are_those_of_cross_encoder(
    tmp_path: Path, kind: str, loss: str, form: str
) -> None:
    """On the same rows, with graded labels for the loss that takes them."""
    rows = ranking_rows(8)
    if loss == "lambda":
        for row in rows:
            row["labels"][0] *= 3
    tiny = tiny_bert if kind == "encoder" else tiny_llama
    folder = save_base(tiny(num_labels=1), tmp_path / "base")
    given = rows if form == "lists" else single_rows(rows)
    task = bound(given, loss=loss)
    base = load_base(ModelBlock(path=str(folder)), task, dropout=0.0)
    model = base.model.double().train()  # type: ignore[operator]
    encoded = task.encode(Dataset.from_list(given), base.processor, training=True)
    assert encoded.truncated
    ours, _ = task.batch_loss(model, task.collator(base.processor)(list(encoded.dataset)))
    ours.backward()

    theirs = cross_encoder(folder).double()
    theirs.model.load_state_dict(model.state_dict())
    theirs.eval()
    pairs, labels = flat(rows)
    if loss == "binary":
        expected = BinaryCrossEntropyLoss(theirs)(
            list(zip(*pairs, strict=True)), torch.tensor(labels)
        )
    else:
        lists = [row["query"] for row in rows], [row["documents"] for row in rows]
        wanted = [torch.tensor(row["labels"]) for row in rows]
        expected = LambdaLoss(theirs, mini_batch_size=-1)(list(lists), wanted)
    expected.backward()
    # both of their losses are returned in 32 bits
    assert float(ours) == pytest.approx(float(expected), rel=1e-6)
    there = dict(theirs.model.named_parameters())
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter.grad, there[name].grad, rtol=1e-6, atol=1e-6), name


def predictions(task: Reranking, rows: list[dict[str, Any]], numbers: Any, folder: Path) -> Any:
    base = save_base(tiny_bert(num_labels=1), folder / "base")
    processor = load_base(ModelBlock(path=str(base)), task).processor
    encoded = task.encode(Dataset.from_list(rows), processor)
    return Predictions(np.asarray(numbers, dtype=np.float32), None, encoded)


class _Given:
    """Stands where the evaluator wants a model: it answers with given numbers."""

    def __init__(self, numbers: dict[tuple[str, str], float]) -> None:
        self.numbers = numbers

    def predict(self, pairs: Any, **_: Any) -> np.ndarray:
        return np.array([self.numbers[tuple(pair)] for pair in pairs], dtype=np.float32)


def evaluated(rows: list[dict[str, Any]], numbers: Any) -> dict[str, float]:
    given = dict(zip(flat(rows)[0], numbers, strict=True))
    evaluator = CrossEncoderRerankingEvaluator(samples(rows), write_csv=False)
    evaluator.store_metrics_in_model_card_data = lambda *_: None
    return evaluator(_Given(given))


def test_scores_are_those_of_sentence_transformers_with_ties_and_without(tmp_path: Path) -> None:
    """Also of queries without a relevant document, or with many; in both forms of rows."""
    rng = np.random.default_rng(0)
    rows = [
        {
            "query": f"q{i}",
            "documents": [f"d{i} {j}" for j in range(rng.integers(2, 15))],
            "labels": [],
        }
        for i in range(30)
    ]
    for i, row in enumerate(rows):
        row["labels"] = [float(i % 7 > 0 and x < 0.3) for x in rng.random(len(row["documents"]))]
    numbers = rng.integers(0, 60, len(flat(rows)[0])) / 8
    expected = evaluated(rows, numbers)
    for given in (rows, single_rows(rows)):
        task = bound(given)
        made = task.metrics(predictions(task, given, numbers, tmp_path))
        assert made["ndcg_at_10"] == pytest.approx(expected["ndcg@10"], abs=1e-9)
        assert made["mrr_at_10"] == pytest.approx(expected["mrr@10"], abs=1e-9)
    assert ranked(np.array([1.0]), np.array([1.0])) == (1.0, 1.0)
    # of graded labels the gain is the label
    ndcg, mrr = ranked(np.array([2.0, 1.0, 0.0]), np.array([0.0, 3.0, 1.0]))
    assert ndcg == pytest.approx((3 / np.log2(3) + 1 / 2) / (3 + 1 / np.log2(3)), abs=1e-12)
    assert mrr == 0.5


def test_rows_of_one_query_count_once(tmp_path: Path) -> None:
    """In the mean, on the rows that test, and in the bootstrap: as one row with lists."""
    rows = ranking_rows(120)
    for i, row in enumerate(rows):
        row["query"] = f"query {i}"
    rng = np.random.default_rng(0)
    models = [rng.normal(size=len(flat(rows)[0])) for _ in range(2)]
    scores = {}
    for form, given in (("lists", rows), ("single", single_rows(rows))):
        task = bound(given)
        scores[form] = [
            task.row_scores(predictions(task, given, numbers, tmp_path)) for numbers in models
        ]
        first = scores[form][0]
        assert first.value == pytest.approx(
            task.metrics(predictions(task, given, models[0], tmp_path))["ndcg_at_10"], abs=1e-12
        )
    counts = np.cumsum([0, *(len(row["documents"]) for row in rows[:-1])])
    single = [score.take(counts) for score in scores["single"]]
    for alone, lists in zip(single, scores["lists"], strict=True):
        assert len(alone) == len(lists) == 120
        assert alone.value == pytest.approx(lists.value, abs=1e-12)
    moved = [influences(*pair) for pair in (single, scores["lists"])]
    assert np.abs(moved[0] - moved[1]).max() < 1e-9
    # of all rows too, where a query has several: as if each had a share of its query
    sizes = [len(row["documents"]) for row in rows]
    shares = np.repeat(1 / np.array(sizes), sizes)
    whole = scores["single"][0]
    weights = rng.integers(0, 3, (4, len(whole))).astype(float)
    expected = (weights * shares) @ whole.parts[:, 0] / (weights @ shares)
    assert np.allclose(whole.weighted(weights), expected, atol=1e-12)


def test_rows_of_a_query_share_its_key(tmp_path: Path) -> None:
    rows = ranking_rows(6)
    given = single_rows(rows)
    task = bound(given)
    (raw,) = task.raw_keys(Dataset.from_list(given))
    made = predictions(task, given, np.zeros(len(given)), tmp_path)
    (read,) = task.input_keys(made.encoded)
    for keys in (raw, read):
        assert len(set(keys.tolist())) == len({row["query"] for row in rows})


@pytest.fixture(scope="module", params=["reranking", "reranking, single"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder with rows of lists; a decoder with a document a row, whose loss compares them."""
    folder = tmp_path_factory.mktemp("trained")
    assert run(["train", str(FAMILIES[request.param](folder)), "training.max_steps=4"]) == OK
    return folder


def predicted(folder: Path, target: Path) -> tuple[list[tuple[str, str]], np.ndarray]:
    out = folder / "answers.jsonl"
    words = ["predict", str(target), str(folder / "validation.jsonl"), "-o", str(out), "--force"]
    assert run(words) == OK
    rows = read_lines(out)
    if "scores" in rows[0]:
        pairs = [(row["query"], text) for row in rows for text in row["documents"]]
        return pairs, np.array([one for row in rows for one in row["scores"]])
    return [(row["query"], row["passage"]) for row in rows], np.array([r["score"] for r in rows])


def lists_of(folder: Path) -> list[dict[str, Any]]:
    rows = read_lines(folder / "validation.jsonl")
    if "documents" in rows[0]:
        return rows
    lists: dict[str, dict[str, Any]] = {}
    for row in rows:
        own = lists.setdefault(row["query"], {"query": row["query"], "documents": [], "labels": []})
        own["documents"].append(row["passage"])
        own["labels"].append(row["label"])
    return list(lists.values())


def test_cross_encoder_opens_adapter_and_merged_model_with_their_head(trained: Path) -> None:
    merged = trained / "merged"
    assert run(["merge", str(trained / "out"), "-o", str(merged), "--force"]) == OK
    pairs, ours = predicted(trained, trained / "out")
    report = read_report(trained / "out").metrics["validation"]
    with_adapter = cross_encoder(trained / "base", 64)
    before = with_adapter.predict(pairs, activation_fn=nn.Identity())
    with_adapter.load_adapter(str(trained / "out/adapter"))
    for model in (with_adapter, cross_encoder(merged, 64)):
        assert isinstance(model.activation_fn, nn.Sigmoid)
        theirs = model.predict(pairs, activation_fn=nn.Identity())
        assert np.abs(theirs - ours).max() < 1e-5
        assert np.abs(theirs - before).max() > 1e-2
        found = CrossEncoderRerankingEvaluator(samples(lists_of(trained)), write_csv=False)(model)
        assert found["ndcg@10"] == pytest.approx(report["ndcg_at_10"], abs=1e-9)
        assert found["mrr@10"] == pytest.approx(report["mrr_at_10"], abs=1e-9)


def test_models_are_compared_by_the_document_that_a_query_puts_first(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = read_lines(trained / "validation.jsonl")
    asked = [{k: v for k, v in row.items() if k not in ("label", "labels")} for row in rows]
    for number, row in enumerate(asked):
        row["query"] = f"{row['query']} {('the', 'a', 'not')[number % 3]}"
    file = write_rows(tmp_path / "asked.jsonl", asked * 2)
    words = ["prune", str(trained / "out"), "-o", str(tmp_path / "s"), "--force", "--max-differ"]
    assert run([*words, "90%", "--unlabelled", file]) in (OK, 3)
    texts = capsys.readouterr().err
    assert "are left out" in texts
    single = [{**row, "documents": row["documents"][:1]} if "documents" in row else row
              for row in asked]  # fmt: skip
    if "documents" not in asked[0]:
        single = [{**row, "query": f"{i} {row['query']}"} for i, row in enumerate(asked)]
    alone = write_rows(tmp_path / "alone.jsonl", single)
    refused(capsys, *words, "5%", "--unlabelled", alone)


BAD: dict[str, tuple[dict[str, Any], list[str]]] = {
    "lists of different lengths": ({"labels": [1, 0, 0]}, []),
    "a label that is no number": ({"labels": [1, "no"]}, []),
    "a label below 0": ({"labels": [1, -1]}, []),
    "no label": ({"labels": None}, []),
    "a grade": ({"labels": [1, 3]}, []),
    "a grade is taken": ({"labels": [1, 3], "documents": ["a", ""]}, ["task.loss=lambda"]),
    "no documents": ({"documents": [], "labels": []}, []),
    "no query": ({"query": ""}, []),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_is_refused_by_its_line(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed, words = BAD[name]
    recipe = FAMILIES["reranking"](tmp_path)
    rows = ranking_rows(8)
    rows[3] = {"query": "a dog", "documents": ["the dog", "a cat"], "labels": [1, 0], **changed}
    lines = [json.dumps(row) for row in rows]
    (tmp_path / "train.jsonl").write_text("\n".join(lines), encoding="utf-8")
    refused(capsys, "train", str(recipe), *words)


def _none(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**row, "labels": [0.0] * len(row["labels"])} for row in rows]


def _one(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**row, "documents": row["documents"][:1], "labels": [1.0]} for row in rows]


def _unlike(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**row, "labels": 1} for row in rows]


def _equal(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**row, "labels": [1.0] * len(row["labels"])} for row in rows]


@pytest.mark.parametrize("change", [_none, _one, _unlike, _equal])
def test_rows_that_rank_nothing_are_refused(
    change: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = FAMILIES["reranking"](tmp_path)
    write_rows(tmp_path / "train.jsonl", change(ranking_rows(8)))
    words = ["task.loss=lambda"] if change is _equal else []
    refused(capsys, "train", str(recipe), *words)
