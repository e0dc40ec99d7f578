"""From raw columns to what the model and its loss take, and back to what a person reads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value

from sora_cli.core.errors import SoraError
from sora_cli.data.places import RowError
from sora_cli.recipe.families import task_names
from sora_cli.recipe.recipe import DataBlock, TaskBlock
from sora_cli.tasks import create_task
from sora_cli.tasks.base import Task
from sora_cli.tasks.encoded import Predictions
from tests.helpers_errors import refusal
from tests.helpers_runs import GLUE, glue_rows, pair_rows, tiny_tokenizer

CLASSIFICATION, REGRESSION = "sequence-classification", "sequence-regression"


def _bound(rows: Dataset, *, name: str = CLASSIFICATION, **data: Any) -> Any:
    task: Task = create_task(TaskBlock(name=name), DataBlock(path="unused", **data))
    task.bind(rows)
    return task


def _labelled(labels: list[Any]) -> Dataset:
    return Dataset.from_dict({"text": ["the cat"] * len(labels), "label": labels})


def test_unknown_family_names_the_nearest() -> None:
    assert {CLASSIFICATION, REGRESSION} < set(task_names())
    with pytest.raises(SoraError, match="did you mean 'sequence-classification'"):
        create_task(TaskBlock(name="sequence-clasification"), DataBlock(path="unused"))


@pytest.mark.parametrize("glue", GLUE)
def test_text_columns_of_glue_are_found(glue: str) -> None:
    name = REGRESSION if glue == "stsb" else CLASSIFICATION
    assert _bound(glue_rows(glue, 6), name=name).input_columns == GLUE[glue][0]


def test_named_text_columns_win_and_keep_their_order() -> None:
    rows = glue_rows("rte", 4).add_column("text", ["a"] * 4)
    for columns in (["sentence2", "sentence1"], ["text"]):
        assert _bound(rows, text_columns=columns).input_columns == tuple(columns)


def test_no_text_columns() -> None:
    rows = glue_rows("cola", 4).rename_column("sentence", "utterance")
    with refusal():
        _bound(rows)


@pytest.mark.parametrize("glue", [g for g in GLUE if g != "stsb"])
def test_names_of_a_class_label_keep_their_order(glue: str) -> None:
    task = _bound(glue_rows(glue, 9))
    names = list(GLUE[glue][1])
    assert task.label_names == names
    options = task.model_options()
    assert options["num_labels"] == len(names)
    assert options["id2label"] == dict(enumerate(names))
    assert options["label2id"] == {name: i for i, name in enumerate(names)}
    assert options["problem_type"] == "single_label_classification"


@pytest.mark.parametrize(
    ("labels", "given", "names", "encoded"),
    [
        (["no", "yes", "maybe", "no"], None, ["maybe", "no", "yes"], [1, 2, 0, 1]),
        (["no", "yes", "no"], ["yes", "no"], ["yes", "no"], [1, 0, 1]),
        ([0, 2, 0], None, ["0", "1", "2"], [0, 2, 0]),
        ([1, 0], ["bad", "good"], ["bad", "good"], [1, 0]),
        ([True, False], None, ["False", "True"], [1, 0]),
    ],
)
def test_label_names(labels: list[Any], given: Any, names: list[str], encoded: list[int]) -> None:
    task = _bound(_labelled(labels), label_names=given)
    assert task.label_names == names
    assert task.encode(_labelled(labels), tiny_tokenizer()).dataset["labels"][:] == encoded


def test_a_class_only_the_names_know() -> None:
    task = _bound(glue_rows("mnli", 2))  # entailment and neutral occur, contradiction does not
    assert task.model_options()["num_labels"] == 3


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([-1, 0], "counted from 0: -1, 0"),
        ([0.5, 1.0], "fractional"),
        ([1, None], "no label in column 'label'\nrow 1 "),
    ],
)
def test_what_is_no_class(labels: list[Any], message: str) -> None:
    with pytest.raises(SoraError, match=message):
        _bound(_labelled(labels))


@pytest.mark.parametrize(
    ("labels", "message", "row"),
    [
        (["no", "purple"], "label 'purple' in column 'label' is none of the 2 classes", 1),
        (["no", None], "has no label in column", 1),
        ([None, "no"], "has no label in column", 0),
    ],
)
def test_labels_unseen_in_training(labels: list[Any], message: str, row: int) -> None:
    task = _bound(_labelled(["no", "yes"]))
    with pytest.raises(RowError, match=message) as caught:
        task.check(_labelled(labels))
    assert caught.value.row == row
    assert "purple" not in labels or "classes: no, yes" in caught.value.lines()[1]


CLASSES = Features({"text": Value("string"), "label": ClassLabel(names=["b", "a"])})


@pytest.mark.parametrize(
    ("train", "other", "message"),
    [
        (["neg", "pos"], [0, 1], r"whole numbers here \(0\), but texts in the training .*'neg'"),
        ([0, 1], ["0", "1"], r"texts here \('0'\), but whole numbers in the training rows \(0\)"),
        (["1", "2"], [1, 1], "whole numbers here"),
        ([True, False], [0, 1], "whole numbers here .* but true or false"),
        ([0, 1], [True, False], "true or false here"),
        ([0, 1], [0.0, 1.0], r"fractional numbers \(0\.0\)"),
        ([0, 1], None, "numbers of named classes here"),
    ],
)
@pytest.mark.parametrize("names", [None, ["x", "y"]])
def test_labels_of_another_kind_than_those_trained_on(
    train: list[Any], other: list[Any] | None, message: str, names: list[str] | None
) -> None:
    """Accuracy was 0.0000 where 0 and 1 were taken for places among "neg" and "pos"."""
    rows = Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]}, CLASSES)
    task = _bound(_labelled(train), label_names=names)
    with pytest.raises(RowError, match=message) as caught:
        task.check(rows if other is None else _labelled(other))
    assert other == [0.0, 1.0] or (caught.value.row, caught.value.trained) == (0, 0)


def test_named_classes_in_another_order_than_those_trained_on() -> None:
    renamed = Features({**CLASSES, "label": ClassLabel(names=["a", "b"])})
    rows = {"text": ["a", "b"], "label": [0, 1]}
    task = _bound(Dataset.from_dict(rows, CLASSES))
    task.check(Dataset.from_dict(rows, CLASSES))
    with pytest.raises(RowError, match="the classes are a, b here, but b, a in the training rows"):
        task.check(Dataset.from_dict(rows, renamed))


def test_names_that_swap_numbers_are_refused() -> None:
    with pytest.raises(SoraError, match=r"data\.label_names do not fit the data's classes: 1, 0"):
        _bound(_labelled([0, 1]), label_names=["1", "0"])


@pytest.mark.parametrize("glue", ["cola", "rte"])
def test_encoding_is_the_tokenizers_own(glue: str) -> None:
    rows, tokenizer = glue_rows(glue, 11), tiny_tokenizer()
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]  # as BERT's
    encoded = _bound(rows).encode(rows, tokenizer)
    assert encoded.truncated == 0
    assert set(encoded.dataset.column_names) == {
        "input_ids", "token_type_ids", "attention_mask", "labels",
    }  # fmt: skip
    for i, row in enumerate(rows):
        direct = tokenizer(*[row[column] for column in GLUE[glue][0]])
        got = encoded.dataset[i]
        assert {k: got[k] for k in direct} == dict(direct)
        assert got["labels"] == row["label"]
        assert encoded.lengths[i] == len(direct["input_ids"])
    if glue == "rte":
        assert 1 in encoded.dataset[0]["token_type_ids"]


@pytest.mark.parametrize("glue", ["cola", "rte"])
def test_truncation_is_the_tokenizers_own_and_counted(glue: str) -> None:
    rows, tokenizer = glue_rows(glue, 40), tiny_tokenizer()
    encoded = _bound(rows, max_length=9).encode(rows, tokenizer)
    texts = [[row[column] for column in GLUE[glue][0]] for row in rows]
    full = [len(tokenizer(*text)["input_ids"]) for text in texts]
    assert 0 < sum(n > 9 for n in full) < 40
    assert encoded.truncated == sum(n > 9 for n in full)
    cut = [tokenizer(*text, truncation=True, max_length=9)["input_ids"] for text in texts]
    assert encoded.dataset["input_ids"][:] == cut
    assert encoded.lengths.tolist() == [min(n, 9) for n in full]


def test_batches_are_padded_to_their_own_longest_row() -> None:
    rows, tokenizer = glue_rows("rte", 4), tiny_tokenizer()
    task = _bound(rows)
    encoded = task.encode(rows, tokenizer)
    batch = task.collator(tokenizer)([encoded.dataset[i] for i in range(4)])
    assert batch["input_ids"].shape == (4, encoded.lengths.max())
    assert batch["attention_mask"].sum(dim=1).tolist() == encoded.lengths.tolist()
    assert task.loss_items(batch) == 4


@pytest.mark.parametrize("labels", [[1, 0, 5], [1.5, 0.0, 5.0], ["1.5", "0", "5"]])
def test_regression_labels_are_floats(labels: list[Any]) -> None:
    task = _bound(_labelled(labels), name=REGRESSION)
    encoded = task.encode(_labelled(labels), tiny_tokenizer())
    values = encoded.dataset["labels"][:]
    assert values == [float(x) for x in labels]
    assert all(type(value) is float for value in values)
    batch = task.collator(tiny_tokenizer())([encoded.dataset[i] for i in range(3)])
    assert batch["labels"].dtype == torch.float32
    assert task.label_names is None
    assert task.model_options() == {"num_labels": 1, "problem_type": "regression"}


@pytest.mark.parametrize(
    ("labels", "message"),
    [([1.0, float("nan")], "NaN"), (["high", "low"], "not all numbers"), ([1.0, None], "not all")],
)
def test_what_is_no_number(labels: list[Any], message: str) -> None:
    task = _bound(_labelled(labels), name=REGRESSION)
    with pytest.raises(SoraError, match=message):
        task.check(_labelled(labels))


def test_loss_is_the_exact_mean() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(50, 3)).astype(np.float32), rng.integers(0, 3, 50)
    shifted = np.exp(logits.astype(float) - logits.max(axis=1, keepdims=True))
    chosen = shifted[np.arange(50), labels] / shifted.sum(axis=1)
    task = _bound(glue_rows("mnli", 3))
    assert task.loss(Predictions(logits, labels)) == pytest.approx(-np.log(chosen).mean(), rel=1e-9)
    number = _bound(glue_rows("stsb", 3), name=REGRESSION)
    outputs, wanted = rng.normal(size=(50, 1)).astype(np.float32), rng.normal(size=50)
    expected = ((outputs[:, 0].astype(float) - wanted) ** 2).mean()
    assert number.loss(Predictions(outputs, wanted)) == pytest.approx(expected, rel=1e-9)


def test_readable_records() -> None:
    task = _bound(glue_rows("rte", 4))
    outputs = np.array([[0.25, -1.0], [0.0, 2.0]], dtype=np.float32)
    assert task.readable(Predictions(outputs, np.array([1, 1]))) == [
        {"prediction": "entailment", "label": "not_entailment", "logits": [0.25, -1.0]},
        {"prediction": "not_entailment", "label": "not_entailment", "logits": [0.0, 2.0]},
    ]
    number = _bound(glue_rows("stsb", 4), name=REGRESSION)
    given = Predictions(np.array([[0.5], [4.0]]), np.array([1.0, 3.5]))
    assert number.readable(given) == [
        {"prediction": 0.5, "label": 1.0},
        {"prediction": 4.0, "label": 3.5},
    ]


def test_rows_may_have_labels_in_another_order_than_training() -> None:
    """Classes come from the training rows alone; other splits are read by them."""
    train = Dataset.from_list([{**row, "label": "ny"[row["label"]]} for row in pair_rows(6)])
    task = _bound(train)
    other = train.select([1, 0])
    assert task.encode(other, tiny_tokenizer()).dataset["labels"][:] == [
        "ny".index(label) for label in other["label"]
    ]


def test_rows_that_are_cut_before_their_text_have_nothing_to_learn() -> None:
    rows = Dataset.from_dict({"text": ["the cat", "", "a dog sees"], "label": [0, 1, 0]})
    for limit, unread in ((2, 2), (3, 0)):
        found = _bound(rows, max_length=limit).encode(rows, tiny_tokenizer()).lacking
        assert found == {"have no text": 1, "have no text within data.max_length": unread}
    pairs = Dataset.from_list(pair_rows(4))
    for limit, unread in ((3, 4), (4, 0)):
        found = _bound(pairs, max_length=limit).encode(pairs, tiny_tokenizer()).lacking
        assert found == {"have no text": 0, "have no text within data.max_length": unread}
